"""Reading pickled arrays without running what else a pickle may hold."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proact_onnx.data.reading import reading


def read_pickle(path: Path) -> object:
    """Read a pickle made of containers, numbers, strings and plain NumPy arrays.

    A pickle can name any function to be called while it is read. Here the only names resolved are
    those that NumPy arrays and, in old protocols, byte strings are written with; anything else
    ends the reading before it is imported.

    Raises:
        DataError: If the file is damaged, or holds anything else.
    """
    form = "a pickle of plain arrays"
    with reading(path, form):
        content = path.read_bytes()
    # A damaged pickle raises errors of nearly every class, as the module's documentation says.
    with reading(path, form, Exception):
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


# Stands for the class, which a pickle passes on but must not call.
_ARRAY = object()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which no array needs"
            ) from None


def _plain_dtype(name: str | bytes, *flags: bool) -> np.dtype[Any]:
    dtype = np.dtype(name.decode("latin1") if isinstance(name, bytes) else name, *flags)
    if dtype.kind not in "buif":
        raise pickle.UnpicklingError(f"it holds an array of type {dtype}")
    return dtype


def _empty_array(kind: object, shape: tuple[int, ...], _dtype: object) -> npt.NDArray[Any]:
    if kind is not _ARRAY or shape != (0,):
        raise pickle.UnpicklingError("it holds an array of an unusual form")
    return np.empty(shape, np.uint8)


def _latin1_bytes(text: str, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it holds text encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _plain_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("_codecs", "encode"): _latin1_bytes,
}
