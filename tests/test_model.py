from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.errors import ModelError, OutputError
from proact_onnx.model import (
    ModelInput,
    check_model,
    image_input,
    is_threshold,
    load_model,
    model_digest,
    opset,
    output_names,
    provenance,
    refuse_overwrite,
    save_model,
    set_provenance,
)
from tests.numerics import assert_same_outputs, parse


def small_model(version: int = 17, rows: int = 4) -> onnx.ModelProto:
    return parse(
        f"""
        <ir_version: 7, opset_import: ["": {version}]>
        net (float[N, {rows}] x) => (float[N, 3] y) {{ h = MatMul(x, w)  y = Relu(h) }}
        """,
        w=np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32),
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_model_loads_as_it_was(tmp_path: Path) -> None:
    model = small_model()
    save_model(model, tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx") == model
    assert files(tmp_path) == ["m.onnx"]


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as info:
        load_model(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.onnx")
    assert "is a folder" in refusal(tmp_path)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    assert "is empty" in refusal(empty)
    text = tmp_path / "text.onnx"
    text.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is not an ONNX model" in refusal(text)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = small_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        refusal(path)


def test_a_tensor_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pb"
    path.write_bytes(small_model().graph.initializer[0].SerializeToString())
    refusal(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (6, "has opset 6: export it again, or convert it, at opset 7 or newer"),
        (onnx.defs.onnx_opset_version() + 1, "upgrade onnx, or export at an older opset"),
    ],
)
def test_opsets_out_of_range(tmp_path: Path, version: int, message: str) -> None:
    model = small_model()
    model.opset_import[0].version = version
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert message in refusal(path)


def test_a_model_without_an_opset_is_refused(tmp_path: Path) -> None:
    model = small_model()
    del model.opset_import[:]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert opset(model) == 0
    assert "has opset 0" in refusal(path)


def test_graphs_that_are_not_valid(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = small_model()
    del model.graph.output[:]
    path.write_bytes(model.SerializeToString())
    assert "has no graph outputs" in refusal(path)

    model = small_model()
    model.graph.node[1].op_type = "Rulu"
    path.write_bytes(model.SerializeToString())
    assert "No Op registered for Rulu" in refusal(path)

    model = small_model()
    model.graph.node[0].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())
    assert "nowhere" in refusal(path)


@pytest.mark.parametrize("rows", [4, 4000])
def test_a_weight_with_too_few_bytes(rows: int) -> None:
    model = small_model(rows=rows)
    weight = model.graph.initializer[0]
    weight.raw_data = weight.raw_data[:-4]
    with pytest.raises(ModelError, match=r"the model is not a valid ONNX model: .*w\b"):
        check_model(model, "the model")


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    model, shuffled = small_model(), small_model()
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(model.graph.node))
    (tmp_path / "m.onnx").write_bytes(shuffled.SerializeToString())
    assert load_model(tmp_path / "m.onnx") == model


def test_a_large_model_keeps_its_weights_in_a_second_file(tmp_path: Path) -> None:
    model = small_model(rows=500)
    path = tmp_path / "m.onnx"
    save_model(model, path, inline_limit=1000)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 1000
    assert model == small_model(rows=500), "the caller's model must not be written to"
    loaded = load_model(path)
    assert_same_outputs(model, loaded)
    assert model_digest(path) == model_digest(model)


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    save_model(small_model(), path)
    assert load_model(path) == small_model()
    assert files(tmp_path) == ["m.onnx"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fails)
    with pytest.raises(OutputError, match=r"cannot write .*m.onnx: No space left on device"):
        save_model(small_model(), path)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["m.onnx"]


def test_saving_refuses_to_write_over_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(small_model(), path)
    (tmp_path / "link.onnx").symlink_to(path)
    with pytest.raises(OutputError, match="is the model that was read: choose another name"):
        save_model(small_model(), tmp_path / "link.onnx", inputs=(path,))


def test_saving_into_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"m\.onnx: create the folder .*nowhere first"):
        save_model(small_model(), tmp_path / "nowhere" / "m.onnx")


def test_refuse_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    refuse_overwrite(path, force=False)
    path.touch()
    refuse_overwrite(path, force=True)
    with pytest.raises(OutputError, match=r"m.onnx already exists: .*--force"):
        refuse_overwrite(path, force=False)


def test_the_digest_follows_weights_and_graph() -> None:
    digest = model_digest(small_model())
    assert digest == model_digest(small_model())
    assert len(digest) == 64
    weight, node = small_model(), small_model()
    raw = bytearray(weight.graph.initializer[0].raw_data)
    raw[0] ^= 1
    weight.graph.initializer[0].raw_data = bytes(raw)
    node.graph.node[1].op_type = "Abs"
    assert len({digest, model_digest(weight), model_digest(node)}) == 3


def test_the_digest_does_not_mind_how_numbers_are_packed() -> None:
    packed, unpacked = small_model(), small_model()
    values = onnx.numpy_helper.to_array(packed.graph.initializer[0])
    unpacked.graph.initializer[0].CopyFrom(
        onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, values.shape, values.ravel())
    )
    assert model_digest(packed) == model_digest(unpacked)


def test_provenance() -> None:
    model = small_model()
    model.metadata_props.add(key="licence", value="none")
    assert provenance(model) == {}
    set_provenance(model, {"method": "ranger", "version": "0.1"})
    set_provenance(model, {"method": "proact"})
    assert provenance(model) == {"version": "0.1", "method": "proact"}
    assert {prop.key for prop in model.metadata_props} == {
        "licence",
        "proact_onnx.method",
        "proact_onnx.version",
    }


def test_names_of_what_hardening_adds() -> None:
    assert is_threshold("layer1/relu/hyrelu/threshold")
    assert not is_threshold("layer1/relu/hyrelu/relu")
    assert not is_threshold("hyrelu/zero/float32")


def test_the_image_input() -> None:
    model = small_model()
    expected = ModelInput("x", (None, 4), np.dtype(np.float32))
    assert image_input(model) == expected
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4, 3]))
    assert image_input(model) == expected, "an initializer is no input to feed"
    assert output_names(model) == ("y",)


def test_models_without_one_input() -> None:
    model = small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("state", 1, [2]))
    with pytest.raises(ModelError, match=r"must have one input .* has: 'x', 'state'"):
        image_input(model)
    del model.graph.input[:]
    with pytest.raises(ModelError, match=r"must have one input .* has: none"):
        image_input(model)
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", 1, None))
    with pytest.raises(ModelError, match="input 'x' has no shape"):
        image_input(model)
