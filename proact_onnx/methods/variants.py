"""Methods with options, by one name: ``ranger-neuron``, ``proact-no-distillation``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from proact_onnx.errors import SettingsError
from proact_onnx.methods import METHODS
from proact_onnx.settings import HardenSettings, OutOfRange
from proact_onnx.thresholds import Granularity

# Training under faults: at this rate most layers of a small network see some in every map. They say
# what high thresholds cost, so nothing else need keep these low.
_FAULTY = {"train_ber": 1e-4, "regularisation": 0.0}
# What may follow the name of a method: the settings it stands for, and how it reads in a title.
_OPTIONS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    **{str(g): ({"granularity": str(g)}, f"{g}-wise") for g in Granularity},
    "hybrid": ({"granularity": "hybrid"}, "hybrid"),
    "auto": ({"granularity": "auto"}, "allotted"),
    "clamp": ({"out_of_range": OutOfRange.CLAMP}, "clamping"),
    "zero": ({"out_of_range": OutOfRange.ZERO}, "zeroing"),
    "linear": ({"protect": "linear"}, "linear layers too"),
    "faulty": (_FAULTY, "trained under faults"),
    "no-distillation": ({"distillation": False}, "labels alone"),
    "ramp": ({"form": "ramp"}, "ramp"),
    "tent": ({"form": "tent"}, "tent"),
    "rescaled-auto": ({"rescale": "auto"}, "weights rescaled as allotted"),
    "rescaled-tensor": ({"rescale": "tensor"}, "weights rescaled by tensor"),
    "rescaled": ({"rescale": "channel"}, "weights rescaled"),
    "together": ({"progressive": False}, "all layers together"),
}
_TITLES = {
    "proact": "ProAct",
    "ranger": "Ranger",
    "ftclipact": "FT-ClipAct",
    "fitact": "FitAct",
    "brelu": "BReLU",
    "clip-percentile": "percentile",
}


@dataclass(frozen=True)
class Variant:
    """A method with options.

    Attributes:
        name: What the user calls it.
        title: What it is called in tables.
        method: Name of the method.
        options: Settings that differ from their defaults.
    """

    name: str
    title: str
    method: str
    options: Mapping[str, Any]

    def settings(self, base: HardenSettings) -> HardenSettings:
        """Return settings with the method and its options put in, and all else resolved."""
        chosen = replace(
            base,
            method=self.method,
            granularity=None,
            form=None,
            out_of_range=None,
            rescale="none",
            train_ber=0.0,
        )
        return METHODS[self.method].resolve(replace(chosen, **self.options))


def parse_variant(name: str) -> Variant:
    """Read the name of a method and its options.

    Args:
        name: A method, and after hyphens any of ``layer``, ``channel``, ``neuron``, ``hybrid``,
            ``auto``, ``linear``, ``clamp``, ``zero``, ``ramp``, ``tent``,
            ``faulty`` (trained under a bit error rate of 1e-4), ``no-distillation``, ``together``,
            ``rescaled`` (by channel), ``rescaled-tensor`` and ``rescaled-auto``.

    Raises:
        SettingsError: If the method or an option is not known.
    """
    found = [m for m in METHODS if name == m or name.startswith(f"{m}-")]
    if not found:
        raise SettingsError(f"unknown method {name!r}: choose among {', '.join(METHODS)}")
    method = max(found, key=len)
    rest = name[len(method) + 1 :]
    options: dict[str, Any] = {}
    words = []
    while rest:
        known = [o for o in _OPTIONS if rest == o or rest.startswith(f"{o}-")]
        if not known:
            raise SettingsError(
                f"{name!r} asks method {method} for {rest!r}, which is no option: choose among "
                f"{', '.join(_OPTIONS)}"
            )
        option = max(known, key=len)
        settings, word = _OPTIONS[option]
        options.update(settings)
        words.append(word)
        rest = rest[len(option) + 1 :]
    title = _TITLES[method] + (f" ({', '.join(words)})" if words else "")
    return Variant(name, title, method, options)
