"""What `deploy-check` finds out about a hardened file, and how it says so."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.data import Dataset, Preprocessing
from proact_onnx.deploy import CANDIDATES, Finding, Outcome, check_deployment
from proact_onnx.deploy.base import Candidate, Program, Shapes, tolerance_for, with_static_shapes
from proact_onnx.deploy.examine import Job, examine, largest_error
from proact_onnx.deploy.inputs import draw_images, expect
from proact_onnx.deploy.kept import kept_parameters
from proact_onnx.deploy.plant import Bounds, find_bounds, first_leak, plant
from proact_onnx.deploy.reference import Reference
from proact_onnx.engine import Calls
from proact_onnx.errors import ModelError
from proact_onnx.model import load_model, model_inputs, save_model
from proact_onnx.report import folding_note
from proact_onnx.rewrite import Form, insert
from proact_onnx.settings import DeploySettings
from proact_onnx.thresholds import Thresholds
from tests.command_line import Command
from tests.deployments import DIGITS, PLAIN, bounded, job_for
from tests.numerics import parse, random_feed, run_reference

Array = npt.NDArray[np.generic]
HARDEN = ("harden", "digits.onnx", "--method", "ranger", "--calibration-images", 200)


def ready(*names: str) -> DeploySettings:
    return DeploySettings(runtimes=names, images=2, rounds=1)


@pytest.fixture(scope="module")
def digits(digits_dir: Path) -> onnx.ModelProto:
    return bounded(
        digits_dir / "digits.onnx", digits_dir / "calibration.npz", DIGITS, Form.HARD, True
    )


@pytest.fixture
def files(digits: onnx.ModelProto, digits_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    save_model(digits, tmp_path / "hardened.onnx")
    return tmp_path / "hardened.onnx", digits_dir / "digits.onnx"


# Runtimes with the defects that real ones have.


@dataclass(frozen=True)
class Odd:
    """The reference, but for models with bounds."""

    fault: str
    name: str = "odd"
    tolerance: float = 1e-4
    timed: bool = True

    def available(self) -> bool:
        return True

    def version(self) -> str:
        return "0.1"

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        program = Reference().load(model, shapes)
        if not find_bounds(model).thresholds:
            return program
        if self.fault == "refuses":
            raise NotImplementedError("no operator\n Where here  Stack backtrace: 0: anyhow")
        if self.fault == "crashes":
            os.abort()
        if self.fault == "wrong":
            return lambda feeds: [2 * value for value in program(feeds)]
        if self.fault == "closed" and len(model.graph.output) > 1:
            raise ValueError("one output only")
        if self.fault == "fails":
            weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
            if not all(np.isfinite(values).all() for values in weights):
                raise ValueError("a weight is not finite")
        return program


@dataclass(frozen=True)
class Doubling:
    """An optimiser that calculates with weights."""

    name: str = "doubling"

    def available(self) -> bool:
        return True

    def version(self) -> str:
        return "0.1"

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        first = next(t for t in copy.graph.initializer if t.name in find_bounds(model).weights)
        first.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(first), first.name))
        return copy


@pytest.fixture(scope="module")
def job(digits: onnx.ModelProto, digits_dir: Path) -> Job:
    return job_for(digits, load_model(digits_dir / "digits.onnx"))


def odd(fault: str, job: Job) -> Finding:
    return examine(Candidate(Odd(fault)), job)


def test_a_refusal_is_a_failure_where_the_original_runs(job: Job) -> None:
    finding = odd("refuses", job)
    assert finding.hardened == Outcome("no operator Where here", None)
    assert finding.original == Outcome(None, 0.0)
    assert finding.containment is None
    assert finding.failure == "accepts the original and refuses the hardened model"
    alone = odd("refuses", dataclasses.replace(job, original=None))
    assert alone.hardened.refusal is not None
    assert alone.failure is None


def test_a_crash_is_a_refusal(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = (Candidate(Odd("crashes")), Candidate(Reference()))
    monkeypatch.setattr("proact_onnx.deploy.check.choose", lambda names: crashing)
    report = check_deployment(*files, settings=ready())
    crashed, sound = report.findings
    assert crashed.hardened == Outcome("the runtime crashes and takes its process with it", None)
    assert crashed.original == Outcome(None, 0.0)
    assert sound.hardened == Outcome(None, 0.0)
    assert report.failures == {"odd": "accepts the original and refuses the hardened model"}


def test_wrong_outputs_are_a_failure(job: Job) -> None:
    finding = odd("wrong", job)
    assert finding.hardened.error == pytest.approx(1.0)
    assert finding.failure == "gives wrong outputs (error 1.0e+00)"


def test_what_a_runtime_does_not_show(job: Job) -> None:
    containment = odd("closed", job).containment
    assert containment is not None
    assert not containment.hidden
    assert containment.contained == 4


def test_an_error_at_a_faulty_weight_is_no_containment(job: Job) -> None:
    containment = odd("fails", job).containment
    assert containment is not None
    assert containment.leaks["1e30"] is None
    assert containment.leaks["NaN"] == "an error (a weight is not finite)"


def test_an_optimiser_that_changes_a_weight(job: Job) -> None:
    finding = examine(Candidate(Reference(), Doubling()), job)
    assert finding.runtime == "doubling"
    assert finding.containment is not None
    assert finding.containment.missing == find_bounds(job.hardened).weights[:1]
    assert finding.failure is not None
    assert "gives wrong outputs" in finding.failure


@pytest.mark.parametrize(
    ("hardened", "original", "failed"),
    [
        (Outcome(None, 9e-5), Outcome(None, 9e-5), False),
        (Outcome(None, 2e-4), Outcome(None, 9e-5), True),
        (Outcome(None, 2e-4), Outcome(None, 2e-4), False),
        (Outcome(None, 2e-4), None, True),
        (Outcome(None, float("inf")), None, True),
        (Outcome("no", None), Outcome("no", None), False),
        (Outcome("no", None), None, False),
        (Outcome("no", None), Outcome(None, 0.0), True),
    ],
)
def test_which_findings_are_failures(
    hardened: Outcome, original: Outcome | None, failed: bool
) -> None:
    finding = Finding("a", "1", 1e-4, hardened, original, None, None)
    assert (finding.failure is not None) == failed


def test_latency_needs_an_original_and_a_fast_runtime(job: Job) -> None:
    chosen = {candidate.name: candidate for candidate in CANDIDATES}
    assert examine(chosen["reference"], job).latency is None
    assert examine(chosen["ort-optimiser"], job).latency is None
    latency = examine(chosen["onnxruntime"], job).latency
    assert latency is not None
    assert latency.original > 0
    assert latency.ratio == pytest.approx(latency.hardened / latency.original)
    alone = examine(chosen["onnxruntime"], dataclasses.replace(job, original=None))
    assert alone.latency is None
    assert alone.original is None


# What ONNX Runtime folds.


def test_rescaled_weights_stay_where_they_are_divided_back(files: tuple[Path, Path]) -> None:
    folding = check_deployment(files[0], settings=ready("reference")).folding
    assert folding.rescaled
    assert len(folding.weights) == 8
    assert folding.merged == ()
    assert folding_note(folding) == (
        "ONNX Runtime holds all 8 weight tensors as the file stores them, enlarged, so rescaling "
        "protects its memory too"
    )


def test_rescaled_weights_are_lost_where_they_are_multiplied_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    enlarged = 4096 * rng.standard_normal((8, 1, 3, 3)).astype(np.float32)
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 8, 8] x) => (float[N, 4] y) {
            p = Conv(x, w)  c = Mul(p, scale)  r = Relu(c)  m = GlobalMaxPool(r)
            f = Flatten(m)  y = MatMul(f, v)
        }""",
        w=enlarged,
        scale=np.full((1, 8, 1, 1), 1 / 4096, np.float32),
        v=rng.standard_normal((8, 4)).astype(np.float32),
    )
    model.graph.initializer[1].name = model.graph.node[1].input[1] = "c/rescale/scale"
    limits = Thresholds({"r": np.array(2.0, np.float32)})
    save_model(insert(model, limits).model, tmp_path / "multiplied.onnx")
    report = check_deployment(tmp_path / "multiplied.onnx", settings=ready("onnxruntime"))
    assert report.folding.merged == ("w",)
    note = folding_note(report.folding)
    assert note.startswith(
        "ONNX Runtime merges constants into 1 of 2 weight tensors when it loads the file ("
    )
    assert note.endswith("); what rescaling protects in the file is lost in its memory")


def test_batch_normalisation_that_was_not_folded_is_merged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    ones = rng.uniform(0.5, 2, 3).astype(np.float32)
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y)
        { c = Conv(x, w)  n = BatchNormalization(c, s, s, s, s)  r = Relu(n)  y = Conv(r, v) }""",
        w=weight,
        s=ones,
        v=rng.standard_normal((3, 3, 1, 1)).astype(np.float32),
    )
    save_model(
        insert(model, Thresholds({"r": np.array(2.0, np.float32)})).model, tmp_path / "m.onnx"
    )
    folding = check_deployment(tmp_path / "m.onnx", settings=ready("reference")).folding
    # The factors of a normalisation count as weights, and go with it.
    assert folding.merged == ("w", "s")
    assert folding_note(folding) == (
        "ONNX Runtime merges constants into 2 of 3 weight tensors when it loads the file (w, s)"
    )


def test_kept_numbers_may_move_but_not_change() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((4, 6)).astype(np.float32) for name in "abcd"}
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4, 6] x) => (float[4, 6] y)
        { k = Add(x, a) l = Add(k, b) m = Add(l, c) n = Add(m, d) y = Add(n, z) }""",
        **arrays,
        z=np.zeros(6, np.float32),
    )
    padded = np.zeros((8, 8), np.float32)
    padded[:6, 2:6] = arrays["b"].T
    nearly = arrays["c"].copy()
    nearly[3, 5] = np.nextafter(nearly[3, 5], np.float32(9))
    rewritten = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4, 6] x) => (float[4, 6] y)
        { y = Identity(x) }""",
        a=arrays["a"],
        blocked=padded,
        c=nearly,
    )
    assert kept_parameters(model, rewritten, [*"abcdz"]) == {
        "a": "a",
        "b": "blocked",
        "c": None,
        "d": None,
        "z": "z",
    }


# What is planted, and what contains it.


def residual() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2, 4, 4] x) => (float[N, 3] y)
        { c = Conv(x, w0)  a = Relu(c)
          d = Conv(a, w1)  e = Add(d, a)  b = Relu(e)
          f = Conv(b, w2)  s = Shape(f)  t = Shape<start = 0, end = 1>(b)
          h = Conv(b, w3)  i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h)
          j = Relu(i)  k = Add(i, j)
          m = GlobalMaxPool(k)  n = GlobalMaxPool(f)  o = Relu(n)  q = Add(m, o)
          u = Flatten(q)  y = MatMul(u, w4) }""",
        w0=rng.standard_normal((2, 2, 1, 1)).astype(np.float32),
        w1=rng.standard_normal((2, 2, 1, 1)).astype(np.float32),
        w2=rng.standard_normal((2, 2, 1, 1)).astype(np.float32),
        w3=rng.standard_normal((2, 2, 1, 1)).astype(np.float32),
        w4=rng.standard_normal((2, 3)).astype(np.float32),
    )


def test_layers_are_protected_that_reach_bounded_activations_only() -> None:
    thresholds = {name: np.array(1.0, np.float32) for name in "abjo"}
    for form in Form:
        bounds = find_bounds(insert(residual(), Thresholds(thresholds), form).model)
        # w3 also goes round its activation, and w4 is the output layer.
        assert bounds.weights == ("w0", "w1", "w2"), form
        assert [*bounds.thresholds] == ["a", "b", "j", "o"]
    without = {name: value for name, value in thresholds.items() if name != "b"}
    assert find_bounds(insert(residual(), Thresholds(without)).model).weights == ("w0", "w2")


def test_one_number_of_each_weight_is_replaced() -> None:
    model = residual()
    faulty = plant(model, ["w0", "w4"], np.inf)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in faulty.graph.initializer}
    for name, array in before.items():
        changed = np.argwhere(array != after[name])
        assert len(changed) == (name in ("w0", "w4"))
        for place in changed:
            assert abs(array[tuple(place)]) == np.abs(array).max()
            assert after[name][tuple(place)] == np.inf


def test_half_precision_gets_its_largest_number() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float16[N, 2] x) => (float16[N, 2] y)
        { y = MatMul(x, w) }""",
        w=np.eye(2, dtype=np.float16),
    )
    [weight] = [numpy_helper.to_array(t) for t in plant(model, ["w"], 1e30).graph.initializer]
    assert weight.dtype == np.float16
    assert weight[0, 0] == 65504


ONE = Bounds(
    {
        "a": np.array([[[[1.0]], [[2.0]]]], np.float32),
        "b": np.array(3.0, np.float32),
        "c": np.array(3.0, np.float32),
        "d": np.array(3.0, np.float32),
    },
    (),
    {"c": np.array(-2.0, np.float32), "d": np.array(-np.finfo(np.float32).max)},
)


@pytest.mark.parametrize(
    ("place", "value", "leak"),
    [
        (("a", 0), 1.0, None),
        (("a", 0), 1.1, "a"),
        (("a", 1), 1.1, None),
        (("a", 1), -0.1, "a"),
        (("b", 0), np.nan, "b"),
        (("b", 0), np.inf, "b"),
        (("c", 0), -1.9, None),
        (("c", 0), -2.1, "c"),
        (("c", 0), 3.1, "c"),
        (("d", 0), -1e30, None),
        (("d", 0), -np.inf, "d"),
        (("y", 0), np.inf, "the outputs"),
        (("y", 0), np.nan, "the outputs"),
        (("y", 0), 1e30, None),
    ],
)
def test_the_first_leak(place: tuple[str, int], value: float, leak: str | None) -> None:
    values = {
        "a": np.full((1, 2, 3, 3), 0.5, np.float32),
        "b": np.full((1, 4), 0.5, np.float32),
        "c": np.full((1, 4), -0.5, np.float32),
        "d": np.full((1, 4), -0.5, np.float32),
        "y": np.zeros((1, 2), np.float32),
    }
    values[place[0]].reshape(-1)[-1 if place == ("a", 1) else 0] = value
    hidden = {name: values[name] for name in ONE.thresholds}
    assert first_leak([values["y"], np.array([1])], hidden, ONE) == leak


# Images and expectations.


def test_images_keep_away_from_thresholds(tmp_path: Path) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y)
        { a = Relu(x)  y = MatMul(a, w) }""",
        w=np.eye(2, dtype=np.float32),
    )
    hardened = insert(model, Thresholds({"a": np.array([[1.0, 2.0]], np.float32)})).model
    images = np.array([[1.0, 0], [0, 2], [0.5, 0], [0, 2.000001], [3, 3], [2, 1]], np.float32)
    chosen, _ = draw_images(
        hardened, find_bounds(hardened), 3, Dataset(images, None, "x"), Preprocessing(), PLAIN
    )
    assert {tuple(image) for image in chosen.tolist()} == {(0.5, 0.0), (3.0, 3.0), (2.0, 1.0)}


def test_a_fixed_batch_is_filled() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[3, 2] x) => (float[3, 2] y)
        { y = Relu(x) }"""
    )
    none = Bounds({}, ())
    assert draw_images(model, none, 4, None, Preprocessing(), PLAIN)[0].shape == (6, 2)
    few = Dataset(np.ones((1, 2), np.float32), None, "few")
    assert draw_images(model, none, 4, few, Preprocessing(), PLAIN)[0].shape == (3, 2)


def test_open_extents_need_images() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2, H, W] x) => (float[N, 2, H, W] y)
        { y = Relu(x) }"""
    )
    with pytest.raises(
        ModelError, match=r"input 'x' leaves its extents open: name images .*--data"
    ):
        draw_images(model, Bounds({}, ()), 4, None, Preprocessing(), PLAIN)


def test_what_the_reference_cannot_run_is_expected_from_onnx_runtime() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 2] x) => (float[N, 2] y) { y = com.microsoft.Gelu(x) }"""
    )
    images = np.array([[1.0, -1.0]], np.float32)
    found = expect(model, images, Calls.of(model_inputs(model), images, 1), PLAIN)
    assert found.reference == "plain"
    np.testing.assert_allclose(found.outputs[0], [[0.8413447, -0.1586553]], rtol=1e-5)


def test_errors_are_relative_to_each_output() -> None:
    expected = [np.array([[100.0, 1.0]]), np.array([[0.1]])]
    assert largest_error([np.array([[100.0, 2.0]]), np.array([[0.1]])], expected) == 0.01
    assert largest_error([expected[0], np.array([[0.2]])], expected) == pytest.approx(1.0)
    assert largest_error([np.array([[np.nan, 1.0]]), expected[1]], expected) == np.inf


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("float[N, 2] x) => (float[N, 2] y) { y = MatMul(x, w) }", 1e-4),
        ("float[N, 2] x) => (float[N, 2] y) { h = Cast<to = 1>(v)  y = MatMul(x, h) }", 3e-2),
        ("float[N, 2] x) => (uint8[N, 2] y) { y = QuantizeLinear(x, s) }", 0.1),
    ],
)
def test_tolerance_follows_the_arithmetic(text: str, tolerance: float) -> None:
    weights: dict[str, Array] = {
        "w": np.eye(2, dtype=np.float32),
        "v": np.eye(2, dtype=np.float16),
        "s": np.array(1.0, np.float32),
    }
    used = {name: value for name, value in weights.items() if f"{name})" in text}
    model = parse(f'<ir_version: 8, opset_import: ["": 17]> g ({text}', **used)
    assert tolerance_for(Reference(), model) == tolerance


def test_a_static_shape_reaches_inner_tensors() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y)
        <float[N, 2] a, float[M, 2] b> { a = Relu(x)  b = Relu(a)  y = Relu(b) }"""
    )
    fixed = with_static_shapes(model, {"x": (5, 2)})
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output)
    }
    assert shapes == {"x": [5, 2], "a": [5, 2], "b": ["M", 2], "y": [5, 2]}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    feed = random_feed(fixed)
    np.testing.assert_array_equal(run_reference(fixed, feed)[0], np.maximum(feed["x"], 0))


# The command.


def test_the_command_shows_one_row_a_runtime(command: Command, project: Path) -> None:
    assert command(*HARDEN).code == 0
    shown = command("deploy-check", "--runtimes", "reference,onnxruntime,ort-optimiser,tvm")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert max(map(len, lines[:7])) <= 100
    rows = {line.split()[0]: line.split() for line in lines if " yes " in line}
    assert rows["reference"][2:6] == ["yes", "0.0e+00", "1e-4", "4"]
    assert rows["onnxruntime"][2] == "yes"
    assert float(rows["onnxruntime"][3]) < 1e-5
    # The configured model is the original, so that there are latencies.
    assert rows["onnxruntime"][-2] == "ms"
    assert "of each of 7 protected layers" in shown.out
    assert "ort-optimiser: what they write, run in ONNX Runtime" in shown.out
    assert "ONNX Runtime holds all 8 weight tensors as the file stores them\n" in shown.out


def test_the_command_says_what_comes_through(command: Command, project: Path) -> None:
    assert command(*HARDEN, "--form", "saturate").code == 0
    shown = command("deploy-check", "digits.hardened.onnx", "--runtimes", "reference")
    assert shown.code == 0
    assert "1 of 4" in shown.out
    assert "NaN is not contained in reference: first seen in /features/features.2/Relu" in shown.out
    assert "1e30 is not contained" not in shown.out


@pytest.mark.parametrize("suffix", ["md", "json"])
def test_findings_are_written(suffix: str, command: Command, project: Path) -> None:
    assert command(*HARDEN).code == 0
    arguments = ("deploy-check", "--runtimes", "onnxruntime", "--output", f"found.{suffix}")
    assert command(*arguments).code == 0
    text = (project / f"found.{suffix}").read_text()
    if suffix == "md":
        assert text.startswith("**digits.hardened.onnx in the runtimes installed here, on 4 images")
        assert "| onnxruntime |" in text
        assert "- ONNX Runtime holds all 8 weight tensors" in text
    else:
        found = json.loads(text)
        assert found["failures"] == {}
        assert found["findings"][0]["runtime"] == "onnxruntime"
        assert found["findings"][0]["containment"]["leaks"]["NaN"] is None
        assert found["findings"][0]["latency"]["ratio"] > 0
    again = command(*arguments)
    assert again.code == 1
    assert "already exists" in again.err
    assert command(*arguments, "--force").code == 0


def test_the_command_fails_where_a_runtime_does(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*HARDEN).code == 0
    odd = (Candidate(Odd("refuses")), Candidate(Odd("wrong", "liar")))
    monkeypatch.setattr("proact_onnx.deploy.check.choose", lambda names: odd)
    shown = command("deploy-check")
    assert shown.code == 1
    assert "odd refuses the hardened model: no operator Where here" in shown.out
    assert (
        "odd accepts the original and refuses the hardened model; liar gives wrong outputs"
    ) in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits.onnx",), "digits.onnx is not hardened: it stores no thresholds"),
        (("digits.hardened.onnx", "--runtimes", "onyx"), "unknown runtime 'onyx': choose among"),
        (
            ("digits.hardened.onnx", "--original", "digits.hardened.onnx"),
            "was hardened from another model than",
        ),
        (("digits.hardened.onnx", "--output", "a.txt"), "let its name end in .md or .json"),
        (("digits.hardened.onnx", "--images", "0"), "images must be at least 1"),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: tuple[str, ...], said: str, command: Command, project: Path
) -> None:
    assert command(*HARDEN).code == 0
    shown = command("deploy-check", *arguments)
    assert shown.code == 1
    assert said in " ".join(shown.err.split())
