"""Choosing between the training and the test part of a source that holds both."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from proact_onnx.errors import DataError

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


def choose_part(available: Collection[Part], wanted: Part | None, path: Path) -> Part | None:
    """Choose the part of a source to read.

    Args:
        available: Parts the source is known to hold; none where it is not divided.
        wanted: The part asked for, if any.
        path: The source, for the message.

    Returns:
        The part asked for, or the only one there is, or ``None`` for an undivided source.

    Raises:
        DataError: If the part asked for is not there, or both are and none is asked for.
    """
    if wanted is not None and wanted not in available:
        found = f"only a {' and a '.join(available)} part" if available else "no parts"
        raise DataError(f"{path} holds {found}, not a {wanted} part: leave --part out or change it")
    if wanted is None and len(available) > 1:
        raise DataError(
            f"{path} holds a train and a test part: say with --part train or --part test which is "
            "meant"
        )
    return wanted or next(iter(available), None)
