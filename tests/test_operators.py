"""Models with operators that ONNX Runtime does not have itself, in every command that runs them."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from PIL import Image

from proact_onnx.campaign import Campaign, read_record
from proact_onnx.data import Dataset, load_dataset
from proact_onnx.engine import Provider, Session, operators, with_output_types
from proact_onnx.errors import DataError, ModelError, SettingsError
from proact_onnx.harden import harden
from proact_onnx.model import load_model, save_model
from proact_onnx.report.repeat import commands
from proact_onnx.settings import HardenSettings, InjectSettings, RuntimeSettings
from proact_onnx.verify import verify
from tests.command_line import Command, commands_in
from tests.numerics import parse

extensions = pytest.importorskip("onnxruntime_extensions")

Array = npt.NDArray[np.float32]
LIBRARY = Path(extensions.get_library_path())
FROM_EXTENSIONS = (
    f"operators that ONNX Runtime lacks come from onnxruntime-extensions {extensions.__version__}"
)
RUNTIME = RuntimeSettings(provider="cpu", threads=1)
RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 3))]
IMAGES = RNG.standard_normal((40, 4)).astype(np.float32)

# The operator gives the negative and the positive part, and ONNX cannot tell their type.
NETWORK = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.contrib": 1]>
net (float[N, 4] x) => (float[N, 3] y) {
    h = MatMul (x, w0)
    low, high = ai.onnx.contrib.NegPos (h)
    size = Sub (high, low)
    a = Relu (size)
    y = MatMul (a, w1)
}"""


def hidden() -> Array:
    return np.abs(IMAGES @ WEIGHTS[0])


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins as a fresh process does."""
    monkeypatch.setattr(operators, "_loaded", [])


@pytest.fixture
def without_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "onnxruntime_extensions" else find(name, *more),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(parse(NETWORK, w0=WEIGHTS[0], w1=WEIGHTS[1]), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", images=IMAGES)
    return tmp_path / "net.onnx"


@pytest.fixture
def here(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``proact-onnx`` in the folder of the model."""
    return commands_in(model.parent, monkeypatch, capsys)


def test_the_package_is_used_by_itself_and_told(here: Command, model: Path) -> None:
    done = here("harden", "net.onnx", "--method", "ranger", "--slack", 2, "--data", "data.npz")
    assert done.code == 0, done.err
    assert FROM_EXTENSIONS in done.err
    hardened = model.with_name("net.hardened.onnx")
    onnx.checker.check_model(load_model(hardened))
    [threshold] = [t for t in load_model(hardened).graph.initializer if "threshold" in t.name]
    found = float(onnx.numpy_helper.to_array(threshold))
    # Half of the images decide; the rest reports.
    assert 1.5 * hidden().max() < found <= 2.001 * hidden().max()
    scores = Session(load_model(hardened), Provider.CPU, 1).run(IMAGES)
    np.testing.assert_allclose(scores, hidden() @ WEIGHTS[1], rtol=1e-5, atol=1e-5)

    done = here("verify", "net.onnx", "--data", "data.npz")
    assert "40 of 40 images pass no threshold" in done.out and done.out.endswith("verified\n")
    done = here("inject", "net.onnx", "net.hardened.onnx", "--data", "data.npz", "--trials", 20)
    assert done.code == 0 and f"net.hardened.onnx: {FROM_EXTENSIONS}" in done.err
    assert "engine: in place" in done.err
    done = here("profile", "net.onnx", "--data", "data.npz", "--trials", 2)
    assert done.code == 0 and FROM_EXTENSIONS in done.err
    done = here("compare", "net.onnx", "--methods", "none,ranger", "--data", "data.npz",
                "--test-data", "data.npz", "--trials", 20, "--distance-ber", 0)  # fmt: skip
    assert done.code == 0, done.err


def test_a_library_is_named(
    here: Command, model: Path, without_extensions: None, tmp_path: Path
) -> None:
    """A copy of the library, for one that nobody else knows."""
    refused = here("harden", "net.onnx", "--method", "ranger", "--data", "data.npz")
    assert refused.code == 1 and refused.err == (
        "error: operator NegPos of domain ai.onnx.contrib is unknown to ONNX Runtime: install "
        "onnxruntime-extensions, or give the library that has it with --operators\n"
    )
    shutil.copy(LIBRARY, tmp_path / "own.so")
    (tmp_path / "proact.toml").write_text("[runtime]\noperators = 'own.so'\n", encoding="utf-8")
    options = ("--method", "ranger", "--slack", 2, "--data", "data.npz")
    done = here("harden", "net.onnx", *options)
    assert done.code == 0 and "extensions" not in done.err
    (tmp_path / "proact.toml").unlink()

    done = here("deploy-check", "net.hardened.onnx", "--original", "net.onnx", "--operators",
                "own.so", "--runtimes", "onnxruntime", "--output", "found.json")  # fmt: skip
    assert done.code == 0, done.err
    [finding] = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert finding["hardened"]["refusal"] is None


@pytest.mark.usefixtures("without_extensions")
def test_records_say_where_operators_come_from(model: Path, tmp_path: Path) -> None:
    shutil.copy(LIBRARY, tmp_path / "own.so")
    runtime = RuntimeSettings(provider="cpu", threads=1, operators=(tmp_path / "own.so",))
    data, settings = Dataset(IMAGES, None, "data.npz"), InjectSettings(ber=(1e-4,), trials=20)
    Campaign(model, data, settings, runtime=runtime).run(tmp_path / "own.jsonl")
    made_by = json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])["made_by"]
    assert made_by["operators"] == str(tmp_path / "own.so")
    [command] = commands(read_record(tmp_path / "own.jsonl"))
    assert f" --operators {tmp_path / 'own.so'} " in command


def test_records_give_the_version_of_the_package(model: Path, tmp_path: Path) -> None:
    data, settings = Dataset(IMAGES, None, "data.npz"), InjectSettings(ber=(1e-4,), trials=20)
    Campaign(model, data, settings, runtime=RUNTIME).run(tmp_path / "run.jsonl")
    made_by = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])["made_by"]
    assert made_by["onnxruntime-extensions"] == extensions.__version__
    assert "operators" not in made_by


def test_what_is_no_library_of_operators(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        operators.load_operators([tmp_path / "none.so"], load_model(model))
    assert str(caught.value) == (
        f"there is no library of operators {tmp_path / 'none.so'}: check --operators"
    )
    for library in (model, Path(onnxruntime.__file__)):
        with pytest.raises(SettingsError, match=r"is no library of operators for ONNX Runtime \("):
            operators.load_operators([library], load_model(model))
    assert operators._loaded == []


def test_another_domain_is_refused_without_naming_the_package() -> None:
    unheard = parse(
        """<ir_version: 8, opset_import: ["": 17, "some.domain": 1]>
        net (float[N, 4] x) => (float[N, 4] y) { y = some.domain.Unheard (x) }"""
    )
    with pytest.raises(ModelError) as caught:
        Session(unheard, Provider.CPU, 1)
    assert str(caught.value) == (
        "operator Unheard of domain some.domain is unknown to ONNX Runtime: give the library that "
        "has it with --operators"
    )


def test_types_that_onnx_cannot_infer() -> None:
    model = parse(NETWORK, w0=WEIGHTS[0], w1=WEIGHTS[1])
    operators.load_operators((), model)
    stated = with_output_types(model).graph.value_info
    assert {info.name: info.type.tensor_type.elem_type for info in stated} == {
        "low": onnx.TensorProto.FLOAT,
        "high": onnx.TensorProto.FLOAT,
    }
    plain = parse(
        NETWORK.replace("low, high = ai.onnx.contrib.NegPos (h)", "low, high = Split (h)")
    )
    assert with_output_types(plain) is plain


# What reads the content of an image file, and what writes one.
VIEWER = """<ir_version: 8, opset_import: ["": 17, "com.microsoft.extensions": 1]>
viewer (uint8[bytes] image) => (OUTPUT) {
    pixels = com.microsoft.extensions.DecodeImage (image)
    planes = Transpose <perm = [2, 0, 1]> (pixels)
    batch = Unsqueeze (planes, first)
    x = Cast <to = 1> (batch)
    h = Conv (x, w)
    a = Relu (h)
    FINISH
}"""
WRITE = """
    one = Squeeze (a, first)
    last = Transpose <perm = [1, 2, 0]> (one)
    limited = Min (last, most)
    rounded = Cast <to = 2> (limited)
    file = com.microsoft.extensions.EncodeImage <format = "png"> (rounded)
"""


def viewer(output: str, finish: str) -> onnx.ModelProto:
    # Each channel darker, and the first minus the last.
    mix = np.float32([[0.5, 0, -0.5], [0, 0.5, 0], [0, 0, 0.5]])[:, :, None, None]
    weights = {"w": mix, "first": np.int64([0])}
    if "most" in finish:
        weights["most"] = np.float32(255)
    return parse(VIEWER.replace("OUTPUT", output).replace("FINISH", finish), **weights)


def pictures() -> list[npt.NDArray[np.uint8]]:
    generator = np.random.default_rng(1)
    sides = [(9, 7), (12, 5), (6, 6), (8, 8)]
    return [generator.integers(0, 255, (*side, 3), dtype=np.uint8) for side in sides]


@pytest.fixture
def files(tmp_path: Path) -> Dataset:
    """PNG files, one row each, filled up with zeros."""
    contents = []
    for pixels in pictures():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        contents.append(np.frombuffer(file.getvalue(), np.uint8))
    longest = max(map(len, contents))
    rows = np.stack([np.pad(row, (0, longest - len(row))) for row in contents])
    np.savez(tmp_path / "files.npz", **{"input:image": rows})
    return load_dataset(tmp_path / "files.npz")


def expected(pixels: npt.NDArray[np.uint8]) -> Array:
    # The operator gives blue, green, red.
    blue, green, red = np.moveaxis(pixels[..., ::-1].astype(np.float32), -1, 0) / 2
    return np.stack([np.maximum(blue - red, 0), green, red])


def test_encoded_images_go_in(files: Dataset, tmp_path: Path) -> None:
    save_model(viewer("float[1, 3, H, W] y", "y = Identity (a)"), tmp_path / "net.onnx")
    report = harden(
        tmp_path / "net.onnx",
        files,
        test=files,
        settings=HardenSettings(method="ranger", slack=1.5),
        runtime=RUNTIME,
    )
    assert report.fidelity.accuracy_before is None
    assert report.fidelity.output_change == 0.0
    session = Session(load_model(report.output), Provider.CPU, 1)
    for [values], pixels in zip(session.stream(files.images, ["y"]), pictures(), strict=True):
        np.testing.assert_array_equal(values[0, 0], expected(pixels))
    with pytest.raises(ModelError, match="so they cannot be put together: give samples whose"):
        session.run(files.images)
    assert verify(tmp_path / "net.onnx", report.output, files, runtime=RUNTIME).passed


def test_encoded_images_come_out(files: Dataset, tmp_path: Path) -> None:
    """Their lengths differ, and are no numbers of classes."""
    save_model(viewer("uint8[any] file", WRITE), tmp_path / "net.onnx")
    settings = HardenSettings(method="ranger", slack=1.5)
    report = harden(tmp_path / "net.onnx", files, test=files, settings=settings, runtime=RUNTIME)
    assert report.fidelity.accuracy_before is None
    assert report.fidelity.output_change == 0.0
    found = verify(tmp_path / "net.onnx", report.output, files, runtime=RUNTIME)
    assert (found.passed, found.largest_difference, found.changed) == (True, 0.0, None)
    session = Session(load_model(report.output), Provider.CPU, 1)
    [content] = next(session.stream(files.images, ["file"]))
    pixels = np.asarray(Image.open(io.BytesIO(content.tobytes())))
    wanted = np.moveaxis(expected(pictures()[0]), 0, -1).astype(np.uint8)[..., ::-1]
    np.testing.assert_array_equal(pixels, wanted)


def test_whole_calls_are_no_batches(files: Dataset, tmp_path: Path) -> None:
    original = tmp_path / "net.onnx"
    save_model(viewer("float[1, 3, H, W] y", "y = Identity (a)"), original)
    plain = Dataset(files.images["image"], None, "rows")
    with pytest.raises(DataError, match=r"'image' has no axis but one.* as 'input:image' in an"):
        harden(original, plain, settings=HardenSettings(method="ranger"), runtime=RUNTIME)
    with pytest.raises(ModelError, match=r"method proact .* is given whole calls: use --method"):
        harden(original, files, runtime=RUNTIME)
    monitored = HardenSettings(method="ranger", monitor=True)
    with pytest.raises(ModelError, match=r"a monitor counts for each .*: leave --monitor out"):
        harden(original, files, settings=monitored, runtime=RUNTIME)
    inject = InjectSettings(ber=(1e-3,), trials=3)
    with pytest.raises(ModelError, match=r"output 'y' has shape .* for some samples and"):
        Campaign(original, files, inject, runtime=RUNTIME).run(tmp_path / "run.jsonl")
    one = Campaign(original, files.take([0]), inject, runtime=RUNTIME)
    assert one.run(tmp_path / "run.jsonl").summaries[0].trials == 3


def test_a_model_between_image_files(shared_dir: Path, tmp_path: Path) -> None:
    """Decodes an image, enlarges it, and encodes the result."""
    original = shared_dir / "corpus" / "superres_prepost_ortext_opset16.onnx"
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    row = np.frombuffer(file.getvalue(), np.uint8)
    np.savez(tmp_path / "data.npz", **{"input:image": np.stack([row] * 3)})
    data = load_dataset(tmp_path / "data.npz")
    settings = HardenSettings(method="ranger")
    report = harden(
        original, data, tmp_path / "out.onnx", test=data, settings=settings, runtime=RUNTIME
    )
    assert len(report.activations) == 8
    assert report.fidelity.output_change == 0.0
