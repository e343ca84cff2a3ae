"""Where a hardened file will run, and what that means for the form of its bounds."""

from dataclasses import replace

from proact_onnx.errors import SettingsError
from proact_onnx.rewrite import Form
from proact_onnx.settings import HardenSettings, OutOfRange

NPU = "npu"
# No such device was there to try.
_UNTRIED = ("tensorrt",)
# What comes through a bound, by form and target; docs/deploy.md has the measurements.
_NAN = "NaN comes through, and so does an infinite weight wherever its input is zero"
LOSSES: dict[tuple[str, Form], str] = {
    ("onnxruntime", Form.SATURATE): _NAN,
    ("opencv", Form.SATURATE): _NAN,
    ("tract", Form.SATURATE): _NAN,
    ("onnxruntime", Form.TENT): _NAN,
}


def aim(settings: HardenSettings) -> HardenSettings:
    """Choose the form that a target needs, where it needs one.

    An NPU that knows only Clip, Min and Max runs no form but ``saturate``. All other targets run
    every form, so that method, ``form`` and ``out_of_range`` decide as without a target.

    Args:
        settings: The user's settings, before the method fills them in.

    Raises:
        SettingsError: If the settings ask for what the target cannot run.
    """
    if settings.target != NPU:
        return settings
    if settings.form not in (None, str(Form.SATURATE)):
        raise SettingsError(
            f"target {NPU!r} stands for a device that knows only Clip, Min and Max, and form "
            f"{settings.form!r} needs more: leave --form out, or choose saturate"
        )
    if settings.out_of_range is OutOfRange.ZERO:
        raise SettingsError(
            f"target {NPU!r} stands for a device that knows only Clip, Min and Max, which cannot "
            "make zero of what is out of range: leave --out-of-range out, or choose clamp"
        )
    return replace(settings, form=str(Form.SATURATE))


def describe_loss(target: str, form: Form) -> str:
    """Say in one sentence what protection a form loses on a target."""
    if target == NPU:
        return (
            f"target {target}: form {form}, in which a value out of range becomes the threshold in "
            "place of zero, and NaN may come through"
        )
    if target in _UNTRIED:
        return (
            f"target {target}: form {form}, which was not tried there: run 'proact-onnx "
            "deploy-check' where it is installed"
        )
    loss = LOSSES.get((target, form))
    if loss is not None:
        return f"target {target}: form {form} loses protection there: {loss}"
    return f"target {target}: form {form} keeps its protection there"
