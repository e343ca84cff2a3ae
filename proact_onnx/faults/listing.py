"""A fault space written down, so that a record can be read without the model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proact_onnx.faults.space import FaultSpace, Kind, Parameter
from proact_onnx.settings import parse_bits


def spell_bits(bits: Iterable[int]) -> str:
    """Spell positions of bits as ``parse_bits`` reads them, such as ``0-3,7``."""
    spans: list[list[int]] = []
    for bit in sorted(bits):
        if spans and spans[-1][1] == bit - 1:
            spans[-1][1] = bit
        else:
            spans.append([bit, bit])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def spell_storage(space: FaultSpace) -> str:
    """Say to how many numbers of a fault space the memory format applies, and what the rest is.

    Empty where it applies to all.
    """
    sizes: Counter[str] = Counter()
    for parameter in space.parameters:
        sizes[parameter.stored_as] += parameter.size
    converted = sizes.pop("", 0)
    if not sizes:
        return ""
    kept = ", ".join(f"{size:,} {stored_as}" for stored_as, size in sizes.items())
    return f"{converted:,} of {space.elements:,} numbers; stored as in the file are {kept}"


def list_space(space: FaultSpace) -> list[dict[str, Any]]:
    """Spell a fault space as values of JSON, one object a parameter."""
    return [
        {
            "name": parameter.name,
            "kind": str(parameter.kind),
            "shape": list(parameter.shape),
            "layer": parameter.layer,
            "width": parameter.width,
            "bits": spell_bits(parameter.bits),
            "stored_as": parameter.stored_as,
        }
        for parameter in space.parameters
    ]


def read_space(listing: Sequence[Mapping[str, Any]]) -> FaultSpace:
    """Read a fault space as `list_space` spells it.

    Raises:
        KeyError: If a parameter lacks something.
        ValueError: If a kind or an extent is impossible.
        SettingsError: If the positions of bits cannot be understood.
    """
    return FaultSpace(
        tuple(
            Parameter(
                name=str(entry["name"]),
                kind=Kind(entry["kind"]),
                shape=tuple(int(extent) for extent in entry["shape"]),
                layer=str(entry["layer"]),
                width=int(entry["width"]),
                bits=tuple(sorted(parse_bits(entry["bits"]))),
                stored_as=str(entry["stored_as"]),
            )
            for entry in listing
        )
    )
