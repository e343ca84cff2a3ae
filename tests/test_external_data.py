from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.errors import ModelError
from proact_onnx.model import load_model
from tests.numerics import parse

WEIGHT = np.arange(6, dtype=np.float32)


def save_with_location(folder: Path, location: str, **entries: str) -> Path:
    """Write a model whose weight is said to lie at ``location``."""
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[6] x) => (float[6] y) { y = Add(x, w) }
        """,
        w=WEIGHT,
    )
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["w.bin", "data/w.bin"])
def test_reads_from_the_models_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / location).parent.mkdir(exist_ok=True)
    (tmp_path / location).write_bytes(b"skip" + WEIGHT.tobytes())
    path = save_with_location(tmp_path, location, offset="4", length="24")
    weight = load_model(path).graph.initializer[0]
    assert weight.data_location == onnx.TensorProto.DEFAULT
    assert not weight.external_data
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), WEIGHT)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as info:
        load_model(path)
    assert "the external data of 'w' in" in str(info.value)
    return str(info.value)


def test_missing_and_cut_off(tmp_path: Path) -> None:
    path = save_with_location(tmp_path, "w.bin", length="24")
    assert refusal(path).endswith("'w.bin', is missing: copy the file beside the model")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes()[:-1])
    assert refusal(path).endswith("'w.bin', is cut off: copy the file again")


def test_a_file_too_short_for_the_shape(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"1234")
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        load_model(save_with_location(tmp_path, "w.bin"))


def test_outside_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "w.bin"
    outside.write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    for location in ("../w.bin", str(outside), "link.bin", ""):
        assert "lies outside the model's folder" in refusal(save_with_location(folder, location))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = save_with_location(tmp_path, "w.bin", offset="four")
    assert "offset or length is not a number" in refusal(path)
