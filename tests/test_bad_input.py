"""What a user can get wrong: one sentence, exit code 1, and nothing changed on disk."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.campaign import read_campaign
from proact_onnx.data import load_dataset
from proact_onnx.harden import harden
from proact_onnx.settings import HardenSettings
from tests.command_line import Command, snapshot
from tests.numerics import parse

QUICK = ["--trials", 2, "--images", 5, "--ber", "1e-5"]
RANGER = ["--method", "ranger"]

Refused = Callable[..., str]


@pytest.fixture
def refused(command: Command, project: Path) -> Refused:
    """Run a command that must be refused; return its sentence."""

    def run(*arguments: object) -> str:
        before = snapshot(project.parent)
        outcome = command(*arguments)
        assert outcome.code == 1, outcome
        assert outcome.out == ""
        *notices, sentence = outcome.err.splitlines()
        assert sentence.startswith("error: ")
        assert all(not line.startswith("error:") for line in notices)
        assert "Traceback" not in outcome.err
        assert snapshot(project.parent) == before
        return sentence

    return run


@pytest.fixture(scope="session")
def bounded(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The hardened example, made once."""
    path = tmp_path_factory.mktemp("bounded") / "bounded.onnx"
    calibration = load_dataset(digits_dir / "calibration.npz")
    settings = HardenSettings(method="ranger")
    harden(digits_dir / "digits.onnx", calibration, path, settings=settings)
    return path.read_bytes()


@pytest.fixture
def odd_files(project: Path) -> None:
    """Files that are no usable model, beside the good one."""
    good = (project / "digits.onnx").read_bytes()
    (project / "empty.onnx").write_bytes(b"")
    (project / "text.onnx").write_text("this is not a model\n" * 5, encoding="utf-8")
    (project / "cut.onnx").write_bytes(good[: len(good) // 2])
    (project / "folder.onnx").mkdir()
    tanh = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 8, 8] x) => (float[N, 64] y) { f = Flatten(x)  y = Tanh(f) }"""
    )
    onnx.save(tanh, project / "tanh.onnx")
    unknown = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 8, 8] x) => (float[N, 64] y)
        { f = Flatten(x)  r = Relu(f)  d = Det(x)  s = Mul(r, w)  t = Reshape(d, one)
          y = Add(s, t) }""",
        w=np.ones(64, np.float32),
        one=np.array([-1, 1]),
    )
    unknown.graph.node[2].name = "determinant"
    onnx.save(unknown, project / "unknown.onnx")


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize("name", ["inspect", "harden", "inject", "profile", "verify"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.onnx", "cannot read missing.onnx: No such file or directory"),
        ("folder.onnx", "folder.onnx is a folder: give the path of an .onnx file"),
        ("empty.onnx", "empty.onnx is empty: export the model again"),
        ("text.onnx", "text.onnx is not an ONNX model"),
        ("cut.onnx", "cut.onnx is not an ONNX model, or is cut off"),
        ("test.npz", "test.npz is not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model(name: str, file: str, message: str, refused: Refused) -> None:
    assert message in refused(name, file)


@pytest.mark.usefixtures("odd_files")
def test_a_model_without_activations(refused: Refused) -> None:
    sentence = refused("harden", "tanh.onnx")
    assert "tanh.onnx has no activation that can be hardened: " in sentence
    assert "'proact-onnx inspect tanh.onnx' lists what it has" in sentence


@pytest.mark.usefixtures("odd_files")
def test_an_operator_that_cannot_be_trained(refused: Refused) -> None:
    sentence = refused("harden", "unknown.onnx", "--data", "calibration.npz")
    assert "determinant" in sentence
    assert "Det" in sentence
    assert "opset 17" in sentence


@pytest.mark.usefixtures("odd_files")
def test_the_same_operator_is_no_obstacle_without_training(command: Command) -> None:
    assert command("harden", "unknown.onnx", *RANGER).code == 0


def write_data(project: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 16, (20, 1, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 10, 20)
    np.savez(project / "large.npz", images=np.zeros((20, 1, 9, 9), np.uint8), labels=labels)
    np.savez(project / "colour.npz", images=np.zeros((20, 3, 8, 8), np.uint8), labels=labels)
    np.savez(project / "complex.npz", images=images.astype(np.complex64), labels=labels)
    np.savez(project / "outside.npz", images=images, labels=np.where(labels > 8, 10, labels))
    np.savez(project / "negative.npz", images=images, labels=labels - 1)
    np.savez(project / "few.npz", images=images, labels=labels[:19])
    np.save(project / "labels.npy", labels[:7])
    np.savez(project / "none.npz", images=images[:0], labels=labels[:0])
    (project / "broken.npz").write_bytes((project / "test.npz").read_bytes()[:5000])
    (project / "data.txt").write_text("1,2,3", encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [["harden", *RANGER], ["inject", *QUICK], ["verify", "digits.onnx", "bounded.onnx"]],
    ids=["harden", "inject", "verify"],
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing.npz"], "there is no file or folder missing.npz: check the path"),
        (["--data", "large.npz"], "shape 1x9x9 do not fit the model's input 1x8x8"),
        (["--data", "colour.npz"], "shape 3x8x8 do not fit the model's input 1x8x8"),
        (["--data", "complex.npz"], "store them as integers or floats"),
        (["--data", "outside.npz"], "is no class of the model, which has 10 (0 to 9)"),
        (["--data", "negative.npz"], "label -1 of image"),
        (["--data", "few.npz"], "20 images but 19 labels: give one for each image"),
        (["--data", "test.npz", "--labels", "labels.npy"], "697 images but 7 labels"),
        (["--data", "test.npz", "--labels", "missing.npy"], "no file of labels missing.npy"),
        (["--data", "none.npz"], "holds no image data"),
        (["--data", "broken.npz"], "or it is damaged or cut off"),
        (["--data", "data.txt"], "data.txt is no kind of data that can be told by its name"),
        (["--data", "test.npz", "--part", "both"], "no part 'both': choose train or test"),
        (["--scale", "nan"], "scale is nan: give a finite number above zero"),
        (["--std", "1,0"], "std is (1.0, 0.0)"),
        (["--mean", "1,2"], "mean has 2 values but the images (1x8x8) have 1 channels"),
        (["--mean", "a"], "--mean 'a' is not a list of numbers: separate them with commas"),
        (["--resize", "8"], "--resize '8' is not a size: write HEIGHTxWIDTH, such as 32x32"),
        (["--provider", "tpu"], "unknown provider 'tpu': choose among auto, cpu, cuda"),
        (["--threads", "-1"], "threads must be at least 0, not -1"),
        (["--batch-size", "0"], "batch-size must be at least 1, not 0"),
        (["--config", "missing.toml"], "cannot read missing.toml: No such file"),
    ],
)
def test_data_and_options_that_do_not_fit(
    arguments: list[object],
    options: list[str],
    message: str,
    refused: Refused,
    project: Path,
    bounded: bytes,
) -> None:
    write_data(project)
    (project / "bounded.onnx").write_bytes(bounded)
    assert message in refused(*arguments, *options)


@pytest.mark.parametrize("name", ["harden", "inject", "profile", "verify"])
def test_no_images_are_named(name: str, refused: Refused, project: Path) -> None:
    (project / "proact.toml").write_text('model = "digits.onnx"\n', encoding="utf-8")
    role = "calibration" if name == "harden" else "test"
    assert f"no images are given: name them with --data, or as data.{role}" in refused(name)


def test_no_model_is_named(refused: Refused, project: Path) -> None:
    (project / "proact.toml").unlink()
    for name in ("inspect", "harden", "inject", "profile", "verify"):
        assert "no model is given: name one, or set 'model' in proact.toml" in refused(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "unknown method 'magic': choose among proact, ranger"),
        (["--form", "round"], "unknown form 'round': choose among hard, smooth, saturate, ramp"),
        (["--granularity", "net"], "unknown granularity 'net': choose among layer, channel"),
        (["--slack", "0.5"], "slack must be at least 1, not 0.5"),
        (["--learning-rate", "nan"], "learning-rate must be at least 0, not nan"),
        (["--epochs", "-1"], "epochs must be at least 0, not -1"),
        (["--test-data", "missing.npz"], "there is no file or folder missing.npz"),
        (["--output", "proact.toml/x.onnx"], "cannot write proact.toml/x.onnx"),
        (
            ["--output", "missing/x.onnx"],
            "missing/x.onnx: create the folder missing first",
        ),
        (["--output", ".", "--force"], "is a folder: give the name of a file to write"),
        (["--output", "test.npz"], "test.npz already exists: choose another name, or overwrite"),
        (["--output", "digits.onnx", "--force"], "digits.onnx is the model that was read"),
        (["--output", "../project/digits.onnx", "--force"], "is the model that was read"),
        (["--resume"], "there is nothing to resume at"),
    ],
)
def test_what_harden_refuses(options: list[str], message: str, refused: Refused) -> None:
    sentence = (
        refused("harden", *RANGER, *options)
        if options[0] != "--method"
        else refused("harden", *options)
    )
    assert message in sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ber", "2"], "bit error rate 2 is not a probability: give a number from 0 to 1"),
        (["--ber", "-1e-6"], "bit error rate -1e-06 is not a probability"),
        (["--ber", "nan"], "bit error rate nan is not a probability"),
        (["--ber", "often"], "--ber 'often' is not a list of numbers: separate them with commas"),
        (["--ber", "1e-6,"], "--ber '1e-6,' is not a list of numbers"),
        (["--trials", "0"], "trials must be at least 1, not 0"),
        (["--images", "-1"], "images must be at least 0, not -1"),
        (["--confidence", "1"], "confidence must be between 0.5 and 0.9999, not 1"),
        (["--format", "Q99.1"], "format 'Q99.1' takes 101 bits"),
        (["--format", "double"], "unknown number format 'double': use Qm.n"),
        (["--targets", "neuron"], "unknown fault target 'neuron': choose among weight, bias"),
        (["--targets", "weight,"], "--targets 'weight,' has an empty entry"),
        (["--targets", "threshold"], "stores no parameter of kind threshold"),
        (["--layers", "nowhere*"], "no parameter to fault matches layer pattern 'nowhere*'"),
        (["--output-folder", "missing"], "cannot write"),
        (["--output-folder", "proact.toml"], "cannot write"),
        (["--plot", "a.gif"], "cannot write the figure a.gif: choose a name that ends in .png"),
        (["--plot", "a"], "cannot write the figure a: choose a name that ends in .png"),
        (
            ["--plot", "missing/a.png"],
            "missing/a.png: create the folder missing first",
        ),
        (["digits.onnx", "digits.onnx"], "digits.onnx and digits.onnx would share the file"),
    ],
)
def test_what_inject_refuses(
    options: list[str],
    message: str,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every one of them is found out before the first trial."""
    monkeypatch.setattr("proact_onnx.campaign.Campaign.run", None)
    assert message in refused("inject", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ber", "2"], "bit error rate 2 is not a probability"),
        (["--trials", "0"], "trials must be at least 1, not 0"),
        (["--activations", "a,"], "--activations 'a,' has an empty entry"),
        (["--activations", "none*"], "no activation of digits.onnx matches the pattern 'none*'"),
        (["--plot", "a.gif"], "cannot write the figure a.gif: choose a name that ends in"),
        (["--plot", "missing/a.png"], "create the folder missing first"),
        (["--output-folder", "missing"], "missing/digits.profile.csv: create the folder"),
        (["--targets", "threshold"], "the model stores no parameter of kind threshold"),
        (["--data", "missing.npz"], "missing.npz"),
    ],
)
def test_what_profile_refuses(options: list[str], message: str, refused: Refused) -> None:
    assert message in refused("profile", "digits.onnx", *options)


def test_a_figure_does_not_take_the_place_of_a_model(refused: Refused, project: Path) -> None:
    (project / "digits.png").write_bytes((project / "digits.onnx").read_bytes())
    sentence = refused("profile", "digits.png", "--plot", "digits.png")
    assert "digits.png is the model that was read: choose another name" in sentence


def test_two_models_of_one_name_in_one_folder(refused: Refused, project: Path) -> None:
    (project / "other").mkdir()
    (project / "other" / "digits.onnx").write_bytes((project / "digits.onnx").read_bytes())
    models = ["digits.onnx", "other/digits.onnx"]
    sentence = refused("inject", *models, "--output-folder", ".")
    assert "digits.onnx and other/digits.onnx would share the file" in sentence
    sentence = refused("profile", *models, "--output-folder", ".")
    assert re.search(r"would share the file .*digits\.profile\.csv: give them", sentence)


@pytest.mark.parametrize("name", ["inspect", "harden", "inject", "profile", "verify"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[inject", "is not valid TOML"),
        ("[inject]\ntrails = 3", "unknown key 'inject.trails': choose among ber"),
        ("[runtime]\nprovider = 3", "key 'runtime.provider' must be text in quotes, not 3"),
    ],
)
def test_a_settings_file_with_a_mistake(
    name: str,
    text: str,
    message: str,
    refused: Refused,
    project: Path,
) -> None:
    (project / "proact.toml").write_text(text, encoding="utf-8")
    sentence = refused(name)
    assert "proact.toml" in sentence
    assert message in sentence


def test_a_record_of_another_campaign(command: Command, refused: Refused, project: Path) -> None:
    assert command("inject", *QUICK).code == 0
    for options, field in (
        (["--seed", "1"], "seed"),
        (["--format", "Q7.8"], "format"),
        (["--targets", "bias"], "targets"),
        (["--scale", "0.05"], "scale"),
    ):
        sentence = refused("inject", *QUICK, *options)
        assert f"digits.campaign.jsonl holds another campaign: its {field} is" in sentence
        assert "start over with --force" in sentence


def test_a_damaged_record(command: Command, refused: Refused, project: Path) -> None:
    assert command("inject", *QUICK).code == 0
    record = project / "digits.campaign.jsonl"
    header, first, second = record.read_text(encoding="utf-8").splitlines()
    record.write_text("\n".join([header, first[:20], second, ""]), encoding="utf-8")
    sentence = refused("inject", *QUICK)
    assert "digits.campaign.jsonl is damaged at line 2: restore it, or start over" in sentence
    record.write_text("notes of mine\n", encoding="utf-8")
    assert "is not the record of a campaign" in refused("inject", *QUICK)
    assert command("inject", *QUICK, "--force").code == 0
    assert len(read_campaign(record)[1]) == 2


@pytest.mark.parametrize("options", [["--data", "outside.npz"], ["--format", "double"]])
def test_force_keeps_the_record_until_the_new_campaign_runs(
    options: list[str],
    command: Command,
    refused: Refused,
    project: Path,
) -> None:
    write_data(project)
    assert command("inject", *QUICK).code == 0
    refused("inject", *QUICK, *options, "--force")
    assert len(read_campaign(project / "digits.campaign.jsonl")[1]) == 2


def test_an_output_that_exists_is_kept(command: Command, refused: Refused, project: Path) -> None:
    assert command("harden", *RANGER).code == 0
    sentence = refused("harden", *RANGER, "--slack", "2")
    assert sentence.endswith(
        "digits.hardened.onnx already exists: choose another name, or overwrite with --force"
    )
    refused("harden", *RANGER, "--data", "missing.npz", "--force")
    assert command("harden", *RANGER, "--slack", "2", "--force").code == 0


def test_hardening_twice(command: Command, refused: Refused) -> None:
    assert command("harden", *RANGER).code == 0
    sentence = refused("harden", "digits.hardened.onnx", *RANGER)
    assert sentence.endswith("is hardened already: give the model it was made from")


def test_verify_needs_a_pair(command: Command, refused: Refused, project: Path) -> None:
    assert "digits.onnx is not hardened" in refused("verify", "digits.onnx", "digits.onnx")
    assert "cannot read" in refused("verify")


def test_verify_fails_on_another_original(command: Command, project: Path) -> None:
    assert command("harden", *RANGER).code == 0
    model = onnx.load(project / "digits.onnx")
    [bias] = [t for t in model.graph.initializer if t.name == "classifier.3.bias"]
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.5), bias.name)
    )
    onnx.save(model, project / "other.onnx")
    outcome = command("verify", "other.onnx", "digits.hardened.onnx")
    assert outcome.code == 1
    assert "differs from other.onnx on images that pass no threshold" in outcome.err
    assert "verified" not in outcome.out


def test_an_error_is_not_read_as_markup(refused: Refused) -> None:
    assert "cannot read [bold]x.onnx" in refused("inspect", "[bold]x.onnx")
