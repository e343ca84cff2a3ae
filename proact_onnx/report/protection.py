"""What is protected and what is not, as lines of text."""

import math
from collections import defaultdict
from collections.abc import Sequence

from proact_onnx.coverage import Coverage, Unprotected

_NAMES_SHOWN = 3


def unprotected_lines(left: Sequence[Unprotected]) -> list[str]:
    """Functions without a bound, one line for each operator and reason."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for function in left:
        groups[function.op, function.reason].append(function.name)
    lines = []
    for (op, reason), names in groups.items():
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = len(names) - _NAMES_SHOWN
        count = f" and {more:,} more" if more > 0 else ""
        lines.append(f"not protected: {shown}{count} ({op}), {reason}")
    return lines


def coverage_line(coverage: Coverage) -> str:
    """Which share of the values passes a bound."""
    by_nature = (
        f", and {_share(coverage.by_nature)} more a function whose values end by nature"
        if coverage.by_nature > 0
        else ""
    )
    return (
        f"{_share(coverage.bounded)} of the {coverage.values:,} values of an image pass a bound on "
        f"every way to the outputs{by_nature}"
    )


def _share(value: float) -> str:
    """Spell a share rounded down, so that all means all."""
    return f"{math.floor(1e4 * value + 1e-9) / 100:g} %"
