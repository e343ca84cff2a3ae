"""Targets: which form they get, and what is said about it."""

from pathlib import Path

import onnx
import pytest

from proact_onnx.deploy import CANDIDATES
from proact_onnx.deploy.examine import examine
from proact_onnx.errors import SettingsError
from proact_onnx.rewrite import Form
from proact_onnx.settings import TARGETS, HardenSettings, OutOfRange
from proact_onnx.targets import LOSSES, aim, describe_loss
from tests.command_line import Command
from tests.deployments import DIGITS, bounded, job_for
from tests.numerics import operators

HARDEN = ("harden", "digits.onnx", "--method", "ranger", "--calibration-images", 200)
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


def test_an_npu_gets_what_it_knows(command: Command, project: Path) -> None:
    done = command(*HARDEN, "--granularity", "channel", "--target", "npu")
    assert done.code == 0
    assert "target npu: form saturate, in which a value out of range becomes the threshold" in (
        " ".join(done.err.split())
    )
    model = onnx.load(project / "digits.hardened.onnx")
    assert operators(model).count("Min") == 7
    assert not {"Where", "Less", "LessOrEqual"} & set(operators(model))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (HardenSettings(target="npu", form="hard"), "and form 'hard' needs more"),
        (HardenSettings(target="npu", form="smooth"), "and form 'smooth' needs more"),
        (HardenSettings(target="npu", out_of_range=OutOfRange.ZERO), "cannot make zero of what is"),
    ],
)
def test_what_an_npu_cannot_do(settings: HardenSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        aim(settings)


def test_other_targets_leave_the_form_alone() -> None:
    for target in TARGETS:
        if target != "npu":
            for form in (None, *map(str, Form)):
                settings = HardenSettings(target=target, form=form)
                assert aim(settings) == settings
    assert aim(HardenSettings(target="npu", form="saturate")).form == "saturate"
    assert aim(HardenSettings(target="npu", out_of_range=OutOfRange.CLAMP)).form == "saturate"


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("target", [target for target in TARGETS if target in BY_NAME])
def test_losses_are_those_measured(target: str, form: Form, digits_dir: Path) -> None:
    candidate = BY_NAME[target]
    if not candidate.available():
        pytest.skip(f"{target} is not installed")
    data = digits_dir / "calibration.npz"
    model = bounded(digits_dir / "digits.onnx", data, DIGITS, form)
    containment = examine(candidate, job_for(model)).containment
    assert containment is not None
    leaks = any(place is not None for place in containment.leaks.values())
    assert leaks == ((target, form) in LOSSES)


def test_what_is_said_about_a_target() -> None:
    assert (
        describe_loss("opencv", Form.HARD) == "target opencv: form hard keeps its protection there"
    )
    assert describe_loss("onnxruntime", Form.TENT) == (
        "target onnxruntime: form tent loses protection there: NaN comes through, and so does an "
        "infinite weight wherever its input is zero"
    )
    assert "was not tried there" in describe_loss("tensorrt", Form.HARD)


def test_the_command_converts_the_opset(command: Command, project: Path) -> None:
    done = command(*HARDEN, "--opset", "11")
    assert done.code == 0, done.err
    assert "opset converted from 17 to 11" in done.out
    model = onnx.load(project / "digits.hardened.onnx")
    assert [entry.version for entry in model.opset_import] == [11]
    assert model.ir_version == 6
    onnx.checker.check_model(model, full_check=True)
    assert "Less" in operators(model)
    checked = command("deploy-check", "--runtimes", "reference,onnxruntime")
    assert checked.code == 0, checked.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--opset", "8"), "form 'hard' needs opset 9 or newer, and 8 is asked for"),
        (("--opset", "99"), "opset 99 is asked for, and the installed onnx knows"),
        (("--target", "fpga"), "unknown target 'fpga': choose among onnxruntime, openvino"),
        (("--target", "npu", "--form", "ramp"), "and form 'ramp' needs more: leave --form out"),
    ],
)
def test_what_cannot_be_had(
    options: tuple[str, ...], said: str, command: Command, project: Path
) -> None:
    done = command(*HARDEN, *options)
    assert done.code == 1
    assert said in " ".join(done.err.split())
    assert not (project / "digits.hardened.onnx").exists()
