import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.errors import ModelError
from proact_onnx.inspection import Cost, Unprotected, inspect_model
from proact_onnx.model import load_model, save_model
from proact_onnx.rewrite import Form, insert, prepare
from proact_onnx.thresholds import Granularity, Thresholds
from tests.numerics import parse

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def batch_normalised_vgg16() -> onnx.ModelProto:
    """VGG-16 for CIFAR-10 as exporters write it: 13 convolutions, each with BatchNormalization."""
    helper, weights, nodes = onnx.helper, {}, []
    channels, tensor = 3, "x"
    for index, layer in enumerate(VGG16):
        output = f"t{index}"
        if layer == "M":
            nodes.append(
                helper.make_node("MaxPool", [tensor], [output], kernel_shape=[2, 2], strides=[2, 2])
            )
        else:
            names = [f"{output}.{role}" for role in ("weight", "bias", "s", "b", "m", "v")]
            weights[names[0]] = np.zeros((layer, channels, 3, 3), np.float32)
            weights.update({name: np.ones(layer, np.float32) for name in names[1:]})
            nodes += [
                helper.make_node("Conv", [tensor, *names[:2]], [f"{output}.c"], pads=[1, 1, 1, 1]),
                helper.make_node(
                    "BatchNormalization", [f"{output}.c", *names[2:]], [f"{output}.n"]
                ),
                helper.make_node("Relu", [f"{output}.n"], [output]),
            ]
            channels = layer
        tensor = output
    weights |= {"fc.w": np.zeros((512, 10), np.float32), "fc.b": np.zeros(10, np.float32)}
    nodes += [
        helper.make_node("Flatten", [tensor], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("y", 1, ["N", 10])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_vgg16_costs_what_the_paper_says(tmp_path: Path) -> None:
    """Table III, VGG-16 on CIFAR-10: 14.72 M parameters; 1.88, 8.83e-5 and 0.0140 per cent."""
    path = tmp_path / "vgg16.onnx"
    model = batch_normalised_vgg16()
    save_model(model, path)
    inspection = inspect_model(path)
    assert round(inspection.parameters / 1e6, 2) == 14.72
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    assert inspection.fault_space_bits == 32 * stored
    costs = {cost.granularity: cost for cost in inspection.costs}
    assert f"{costs[Granularity.NEURON].overhead:.2f}" == "1.88"
    assert f"{costs[Granularity.LAYER].overhead:.2e}" == "8.83e-05"
    assert f"{costs[Granularity.HYBRID].overhead:.4f}" == "0.0140"
    assert costs[Granularity.HYBRID].thresholds == 12 + 512 * 2 * 2
    assert inspection.unfolded == ()
    assert len(inspection.activations) == 13


def write(path: Path, text: str, **weights: object) -> Path:
    save_model(parse(text, **{name: np.asarray(value) for name, value in weights.items()}), path)
    return path


def test_facts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        """
        <ir_version: 8, opset_import: ["": 17], producer_name: "maker", producer_version: "2">
        net (float[N, 4] x) => (float[N, 3] y)
        <int64[2] shape = {-1, 4}>
        { s = Reshape(x, shape)  h = MatMul(s, w)  b = Add(h, c)  y = Relu(b) }
        """,
        w=np.zeros((4, 3), np.float32),
        c=np.zeros(3, np.float32),
    )
    inspection = inspect_model(path)
    assert (inspection.opset, inspection.ir_version) == (17, 8)
    assert inspection.producer == "maker 2"
    assert inspection.parameters == 15
    assert inspection.fault_space_bits == 15 * 32
    assert inspection.protected == ()
    assert inspection.unprotected == ()
    assert inspection.costs == (
        Cost(Granularity.LAYER, 1, 100 / 15, ""),
        Cost(Granularity.CHANNEL, 3, 300 / 15, ""),
        Cost(Granularity.NEURON, 3, 300 / 15, ""),
        Cost(Granularity.HYBRID, 3, 300 / 15, ""),
    )


def test_a_model_with_open_shapes_says_why_a_figure_is_missing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { h = Mul(x, w)  y = Relu(h) }
        """,
        w=np.zeros((3, 1, 1), np.float32),
    )
    layer, channel, neuron, hybrid = inspect_model(path).costs
    assert layer.thresholds == 1
    assert channel.thresholds == 3
    for cost in (neuron, hybrid):
        assert (cost.thresholds, cost.overhead) == (None, None)
        assert cost.reason.startswith("activation 'y' has no fixed shape (3x?x?)")


def test_a_model_without_parameters(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 3] x) => (float[N, 3] y) '
        "{ y = Relu(x) }",
    )
    cost = inspect_model(path).costs[0]
    assert (cost.thresholds, cost.overhead) == (1, None)
    assert cost.reason == "the model stores no parameters"


def test_what_is_left_unprotected(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[4] x, bool c) => (float[4] y)
        {
          [gate] g = Tanh(x)
          [leaky] a = LeakyRelu(g)
          [hard] b = Clip(a, low, high)
          [six] d = Clip(b, zero, high)
          [choice] y = If(c) <
            then_branch = t () => (float[4] p) { [inner] p = Relu(d) },
            else_branch = f () => (float[4] q) { q = Sigmoid(d) }
          >
        }
        """,
        low=np.float32(-1),
        zero=np.float32(0),
        high=np.float32(6),
    )
    inspection = inspect_model(path)
    names = [activation.name for activation in inspection.activations]
    assert names == ["leaky", "hard", "six", "inner"]
    assert inspection.unprotected == (
        Unprotected("gate", "Tanh", "its values lie within -1 to 1 by nature, NaN aside"),
        Unprotected("q", "Sigmoid", "its values lie within 0 to 1 by nature, NaN aside"),
    )
    # Thresholds of leaky and hard are two each.
    assert inspection.costs[0].thresholds == 6


@pytest.mark.parametrize("form", ["hard", "smooth", "saturate", "ramp"])
def test_a_hardened_model(tmp_path: Path, form: str, shared_dir: Path) -> None:
    original = shared_dir / "models" / "c10_resnet20_dynamo_op20.onnx"
    prepared = prepare(load_model(original)).model
    values = {a.tensor: np.float32(1) for a in find_activations(prepared)}
    hardened = tmp_path / "hardened.onnx"
    save_model(insert(prepared, Thresholds(values), Form(form)).model, hardened)
    before, after = inspect_model(original), inspect_model(hardened)
    assert after.activations == ()
    assert after.unprotected == ()
    assert len(after.protected) == 19
    assert after.parameters == before.parameters
    assert after.fault_space_bits >= before.fault_space_bits


def test_quantised_weights_count(shared_dir: Path) -> None:
    models = shared_dir / "models"
    plain = inspect_model(models / "c10_resnet20_dynamo_op20.onnx")
    quantised = inspect_model(models / "c10_resnet20_int8_qdq_relu.onnx")
    assert quantised.parameters == plain.parameters
    assert quantised.fault_space_bits < 0.3 * plain.fault_space_bits
    assert len(quantised.activations) == 19


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        inspect_model(tmp_path / "missing.onnx")
