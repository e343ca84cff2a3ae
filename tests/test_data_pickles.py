import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from proact_onnx.data.pickles import read_pickle
from proact_onnx.errors import DataError


class Call:
    """Pickled as a call of a function, which reading it would carry out."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "?"])
def test_arrays_come_back(tmp_path: Path, protocol: int, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"a": array, "b": [1, "x"], "c": b"\xff"}, protocol=protocol))
    content = read_pickle(path)
    assert isinstance(content, dict)
    np.testing.assert_array_equal(content["a"], array)
    assert content["a"].dtype == np.dtype(dtype).newbyteorder("=")
    assert content["b"] == [1, "x"]
    assert content["c"] == b"\xff"


def test_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    path, trace = tmp_path / "batch", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"data": Call(os.mkdir, str(trace))}, protocol=2))
    with pytest.raises(DataError, match=r"refers to \w+\.mkdir, which no array needs"):
        read_pickle(path)
    assert not trace.exists()
    # The same bytes do act where nothing guards them, so the test can fail.
    pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    "call",
    [
        Call(eval, "1"),
        Call(getattr, "text", "upper"),
        Call(np.load, "x.npy"),
        Call(np.ndarray, (1 << 40,)),
        Call(np.dtype, "O"),
        Call(np.dtype, [("a", "u1")]),
    ],
)
def test_anything_but_plain_arrays_is_refused(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(call, protocol=2))
    with pytest.raises(DataError, match="not a pickle of plain arrays"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I9\ntU\x01btR.",
            "unusual form",
        ),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "text encoded as"),
        (b"", "damaged or cut off"),
        (b"\x80\x02}", "damaged or cut off"),
        (b"no pickle at all", "damaged or cut off"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pickle(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none"):
        read_pickle(tmp_path / "none")
