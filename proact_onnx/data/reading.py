"""Turning what goes wrong while a file is read into one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proact_onnx.errors import DataError


@contextmanager
def reading(path: Path, form: str, *damage: type[Exception]) -> Iterator[None]:
    """Translate errors of the enclosed reading.

    Args:
        path: What is read.
        form: What it should be, such as ``"a NumPy archive"``.
        damage: Exceptions that mean that the content is not of this form, or cut off.

    Raises:
        DataError: For any ``OSError`` and for the exceptions in ``damage``.
    """
    try:
        yield
    except damage as error:
        raise DataError(
            f"{path} is not {form}, or it is damaged or cut off ({_one_line(error)}): fetch or "
            "make it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or _one_line(error)}): check the path and its "
            "permissions"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
