"""The mirror on whole networks, and what it offers for training inside of one."""

import logging
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from models.export import NETWORKS, Exporter, build_network, export_network
from proact_onnx.errors import ModelError, UnsupportedOperatorError
from proact_onnx.mirror import Mirror
from tests.architectures import ARCHITECTURES, build
from tests.mirror_reference import assert_agrees, open_session, random_feeds

TRAINED = [
    "c10_lenet_dynamo_op18",
    "c10_lenet_torchscript_op11",
    "c10_paperauthor_resnet20_torchscript_op17",
    "c10_resnet20_dynamo_op20",
    "c10_resnet20_torchscript_op17",
    "c10_resnet32_fp16",
    "c10_resnet32_torchscript_op13_bn",
    "c10_resnet56_dynamo_op18",
    "c10_tiny_resnet8_torchscript_op17",
]

THIRD_PARTY = [
    "cifar10_keras_tf2onnx116",
    "cntk25_mnist_opset8",
    "fastestdet",
    "grey96_cnn_fp32_dynamo",
    "gtsrb_tf2onnx19",
    "keras_conv2d_tf2onnx19",
    "lltfi_mnist_tf2onnx116",
    "matlab_acas_sub",
    "meet_segm_tf2onnx19",
    "mnist_cnn_max_keras2onnx",
    "mnist_leaky_relu",
    "mtcnn_pnet",
    "ocr_angle_net_pt13",
    "paddle_ppocr_cls",
    "residual_block_opset19",
    "retinaface_mbnet025",
    "super_resolution_pt12",
    "tinytaxinet_tf2onnx15",
    "ultraface_rfb320",
    "vnncomp_cifar10_deep_kw",
    "vnncomp_cifar10_medium_tf",
    "vnncomp_cifar10_resnet_2b",
    "vnncomp_mnist_convnet_avgpool",
    "yunet_n_dynamic",
]

REFUSED = {
    "corpus/cifar10_external_data_missing": "'features.0.weight' is still in an external data file",
    "corpus/cntk24_mnist_opset1": "Reshape of version 1 .*opset 1",
    "corpus/espcn_brevitas_quant": "Quant .*'onnx.brevitas'",
    "corpus/points5_invalid_graph": "ShapeIndexPatch .*node '56'",
    "corpus/silero_vad_16k_op15": "If .*'/model/decoder/If'",
    "corpus/superres_prepost_ortext_opset16": "DecodeImage .*'com.microsoft.extensions'",
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_network_agrees_with_onnx_runtime(shared_dir: Path, name: str) -> None:
    model = onnx.load(shared_dir / "models" / f"{name}.onnx")
    feeds = random_feeds(open_session(model), images=True)
    # Half precision keeps three decimal digits, and the runtimes round in different places.
    assert_agrees(model, feeds, share=1e-2 if name.endswith("fp16") else 1e-4)


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_third_party_graph_agrees_with_onnx_runtime(shared_dir: Path, name: str) -> None:
    model = onnx.load(shared_dir / "corpus" / f"{name}.onnx")
    assert_agrees(model, random_feeds(open_session(model), images=True))


@pytest.mark.parametrize("name", REFUSED)
def test_graph_that_cannot_be_trained_through_is_refused(shared_dir: Path, name: str) -> None:
    model = onnx.load(shared_dir / f"{name}.onnx", load_external_data=False)
    with pytest.raises(ModelError, match=REFUSED[name]):
        Mirror(model)


@pytest.mark.parametrize("opset", Exporter.TORCHSCRIPT.opsets)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchscript_export_agrees(tmp_path: Path, name: str, opset: int) -> None:
    _assert_export_agrees(build(name), tmp_path, Exporter.TORCHSCRIPT, opset)


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        (name, Exporter.DYNAMO.opsets[(place + step) % len(Exporter.DYNAMO.opsets)])
        for place, name in enumerate(ARCHITECTURES)
        for step in (0, 3)
    ],
)
def test_dynamo_export_agrees(
    tmp_path: Path, name: str, opset: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    _assert_export_agrees(build(name), tmp_path, Exporter.DYNAMO, opset)


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize(("place", "name"), list(enumerate(NETWORKS)))
def test_export_of_a_paper_network_agrees(
    tmp_path: Path, place: int, name: str, exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    opset = exporter.opsets[-1 - place]
    _assert_export_agrees(build_network(name, 10, seed=0), tmp_path, exporter, opset)


def _assert_export_agrees(
    network: torch.nn.Module, folder: Path, exporter: Exporter, opset: int
) -> None:
    keep = opset % 2 == 1
    path = folder / "network.onnx"
    export_network(network, path, opset=opset, exporter=exporter, keep_batchnorm=keep)
    model = onnx.load(path)
    # A batch of another size than the exporter saw.
    assert_agrees(model, random_feeds(open_session(model), images=True, batch=3))


def parse(text: str, opset: int = 13, ir_version: int = 8) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {text}'
    )


RESIDUAL = """
graph (float[N,2,4,4] x) => (float[N,2,4,4] y) <
    float[2,2,1,1] stem_weight = {1, -2, 0.5, 1}, float[2,2,1,1] block_weight = {1, 0.5, -1, 2}
> {
    stem = Conv(x, stem_weight)
    r0 = Relu(stem)
    block = Conv(r0, block_weight)
    r1 = Relu(block)
    total = Add(r1, r0)
    y = Relu(total)
}
"""


@pytest.fixture
def residual() -> Mirror:
    return Mirror(parse(RESIDUAL))


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((3, 2, 4, 4), np.float32))


def test_suffix_inputs_name_the_changed_tensor_and_what_skips_past_it(residual: Mirror) -> None:
    assert residual.suffix_inputs("x") == ("x",)
    assert residual.suffix_inputs("r0") == ("r0",)
    assert residual.suffix_inputs("block") == ("block", "r0")
    assert residual.suffix_inputs("total") == ("total",)
    assert residual.suffix_inputs("y") == ("y",)


def test_suffix_inputs_hold_an_output_that_does_not_depend_on_the_tensor() -> None:
    mirror = Mirror(
        parse("graph (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Neg(x) }")
    )
    assert mirror.suffix_inputs("y") == ("y", "z")


def test_suffix_inputs_name_a_tensor_and_not_its_shape() -> None:
    mirror = Mirror(
        parse(
            "graph (float[N,2,3] x) => (float[N,M] y) <int64[1] rest = {-1}> "
            "{ r = Relu(x) s = Shape<start=0, end=1>(x) shape = Concat<axis=0>(s, rest) "
            "y = Reshape(r, shape) }",
            opset=15,
        )
    )
    assert mirror.suffix_inputs("r") == ("r", "x")
    kept = mirror.evaluate({"x": torch.rand(4, 2, 3)}, ["x", "r"])
    two = {name: value[1:3] for name, value in kept.items()}
    result = mirror.evaluate(two, ["y"])["y"]
    assert torch.equal(result, two["r"].reshape(2, 6))


def test_suffix_inputs_of_no_tensor(residual: Mirror) -> None:
    with pytest.raises(ModelError, match="'r9' is no tensor of the graph"):
        residual.suffix_inputs("r9")


@pytest.mark.parametrize("name", ["resnet20", "inception", "densenet"])
def test_suffix_reproduces_the_outputs_from_any_tensor(tmp_path: Path, name: str) -> None:
    network = build_network(name, 10, seed=0) if name in NETWORKS else build(name)
    export_network(network, tmp_path / "network.onnx")
    model = onnx.load(tmp_path / "network.onnx")
    mirror = Mirror(model)
    batch = torch.randn(2, 3, 32, 32)
    layers = ("Conv", "Relu", "BatchNormalization", "Concat", "MaxPool", "Add", "Gemm", "Pad")
    outputs_of_layers = [node.output[0] for node in model.graph.node if node.op_type in layers]
    values = mirror.evaluate({"input": batch}, outputs_of_layers)
    # The rest are settings that the exporter wrote as small graphs of integers.
    activations = [name for name, value in values.items() if value.is_floating_point()]
    suffixes = {tensor: mirror.suffix_inputs(tensor) for tensor in activations}
    needed = {part for suffix in suffixes.values() for part in suffix}
    every = mirror.evaluate({"input": batch}, [*sorted(needed), "logits"])
    assert len(activations) > 25
    assert max(map(len, suffixes.values())) > 1
    for tensor, suffix in suffixes.items():
        feeds = {part: every[part] for part in suffix}
        outputs = mirror.evaluate(feeds, mirror.outputs)
        assert torch.equal(outputs["logits"], every["logits"]), tensor


def test_evaluate_gives_what_onnx_runtime_computes_inside(images: Tensor) -> None:
    model = parse(RESIDUAL)
    model.graph.output.append(onnx.helper.make_tensor_value_info("block", TensorProto.FLOAT, None))
    expected = open_session(model).run(["block"], {"x": images.numpy()})[0]
    values = Mirror(parse(RESIDUAL)).evaluate({"x": images}, ["block"])
    assert values.keys() == {"block"}
    np.testing.assert_allclose(values["block"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_evaluate_runs_only_the_nodes_between(residual: Mirror, images: Tensor) -> None:
    ran = []
    for name in ("stem", "r0", "block", "r1", "total", "y"):
        residual.gates[name] = lambda value, name=name: ran.append(name) or value
    residual.evaluate({"r0": images}, ["total"])
    assert ran == ["block", "r1", "total"]


def test_evaluate_frees_values_after_their_last_use(residual: Mirror, images: Tensor) -> None:
    alive: dict[str, weakref.ref[Tensor]] = {}
    seen = {}

    def watch(name: str) -> None:
        def gate(value: Tensor) -> Tensor:
            alive[name] = weakref.ref(value)
            seen[name] = {other for other, value in alive.items() if value() is not None}
            return value

        residual.gates[name] = gate

    for name in ("stem", "r0", "block", "r1", "total"):
        watch(name)
    residual(images)
    assert seen["block"] == {"r0", "block"}
    assert seen["total"] == {"r0", "r1", "total"}
    assert all(value() is None for value in alive.values())


def test_a_target_that_is_fed_comes_back_as_it_is(residual: Mirror, images: Tensor) -> None:
    assert residual.evaluate({"r0": images}, ["r0"])["r0"] is images


def test_feeding_one_output_of_a_node_leaves_its_others() -> None:
    mirror = Mirror(
        parse("graph (float[4] x) => (float[2] y) { a, b = Split(x) y = Sub(a, b) }", opset=13)
    )
    x, a = torch.arange(4.0), torch.tensor([7.0, 7.0])
    torch.testing.assert_close(mirror.evaluate({"x": x, "a": a}, ["y"])["y"], a - x[2:])


def test_feeding_a_weight_replaces_it_and_what_follows_from_it() -> None:
    mirror = Mirror(
        parse(
            "graph (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> "
            "{ t = Transpose(w) y = MatMul(x, t) }"
        )
    )
    x, weight = torch.eye(2), torch.full((2, 2), 5.0, requires_grad=True)
    torch.testing.assert_close(mirror(x), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    result = mirror.evaluate({"x": x, "w": weight}, ["y"])["y"]
    torch.testing.assert_close(result, weight.t())
    result.sum().backward()
    assert weight.grad is not None


def test_feeding_a_constant_that_was_compiled_in_is_refused() -> None:
    mirror = Mirror(
        parse(
            "graph (float[2,3] x) => (float[] y) <int64[1] axes = {1}> { y = ReduceSum(x, axes) }"
        )
    )
    feeds = {"x": torch.ones(2, 3), "axes": torch.tensor([0])}
    with pytest.raises(ModelError, match=r"'axes' went into node 'y \(ReduceSum\)'"):
        mirror.evaluate(feeds, ["y"])


def test_gate_acts_on_every_consumer(residual: Mirror, images: Tensor) -> None:
    plain = residual.evaluate({"x": images}, ["r0"])["r0"]
    residual.gates["r0"] = lambda value: value.clamp(max=0.5)
    expected = residual.evaluate({"r0": plain.clamp(max=0.5)}, ["y"])["y"]
    assert plain.max() > 0.5
    assert torch.equal(residual(images), expected)


def test_feeding_a_tensor_bypasses_its_gate(residual: Mirror, images: Tensor) -> None:
    residual.gates["r0"] = torch.zeros_like
    values = residual.evaluate({"r0": images}, ["r0", "y"])
    assert torch.equal(values["r0"], images)
    residual.gates.clear()
    assert torch.equal(values["y"], residual.evaluate({"r0": images}, ["y"])["y"])


def test_gradient_reaches_the_gate_and_not_the_weights(residual: Mirror, images: Tensor) -> None:
    threshold = torch.tensor(0.6, requires_grad=True)
    residual.gates["r1"] = lambda value: torch.minimum(value, threshold)
    residual(images).sum().backward()
    values = residual.evaluate({"x": images}, ["block"])
    # Every clipped value passes the threshold's gradient on; the last Relu is then positive.
    assert threshold.grad is not None
    assert threshold.grad.item() == (values["block"] > 0.6).sum().item() > 0
    assert not list(residual.parameters())
    assert not residual.parameter("block_weight").requires_grad


def test_gate_of_a_tensor_that_no_node_computes(residual: Mirror, images: Tensor) -> None:
    residual.gates["x"] = torch.relu
    with pytest.raises(ModelError, match="the gate of 'x' would never act"):
        residual(images)


def test_parameters_keep_their_onnx_names() -> None:
    model = parse(RESIDUAL)
    model.graph.initializer[0].name = "0.stem/weight:0"
    model.graph.node[0].input[1] = "0.stem/weight:0"
    mirror = Mirror(model)
    assert mirror.parameter("0.stem/weight:0").flatten().tolist() == [1, -2, 0.5, 1]
    with pytest.raises(ModelError, match="'stem' is no constant of the graph"):
        mirror.parameter("stem")


def test_moving_the_mirror_moves_its_constants(residual: Mirror, images: Tensor) -> None:
    single = residual(images)
    double = residual.to(torch.float64)(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert residual.to("meta")(images.to("meta")).device.type == "meta"


def test_constants_alone_are_computed_once() -> None:
    mirror = Mirror(
        parse(
            "graph (float[N] x) => (float[N] y) <float a = {2}> "
            "{ c = Constant<value_float=3.0>() b = Mul(a, c) y = Add(x, b) }"
        )
    )
    assert mirror.parameter("b").item() == 6
    assert mirror.evaluate({}, ["b"])["b"].item() == 6
    assert mirror(torch.zeros(2)).tolist() == [6, 6]


def test_inputs_that_are_initializers_need_no_value() -> None:
    model = parse(
        "graph (float[N] x, float[1] w) => (float[N] y) <float[1] w = {2}> { y = Mul(x, w) }",
        ir_version=3,
    )
    mirror = Mirror(model)
    assert mirror.inputs == ("x",)
    assert mirror(torch.ones(2)).tolist() == [2, 2]


def test_several_inputs_and_outputs_keep_their_order() -> None:
    mirror = Mirror(
        parse(
            "graph (float[N] a, float[N] b) => (float[N] d, float[N] s, float[N] a) "
            "{ s = Add(a, b) d = Sub(a, b) }"
        )
    )
    a, b = torch.tensor([3.0]), torch.tensor([1.0])
    difference, total, same = mirror(a, b)
    assert (difference.item(), total.item(), same.item()) == (2, 4, 3)
    with pytest.raises(ModelError, match=r"2 inputs \(a, b\) but was given 1"):
        mirror(a)


def test_nodes_may_stand_in_any_order(residual: Mirror, images: Tensor) -> None:
    model = parse(RESIDUAL)
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert torch.equal(Mirror(model)(images), residual(images))


def test_functions_of_the_model_are_inlined() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13, "local": 1]>
        graph (float[N] x) => (float[N] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 13]>
        twice (a) => (b) { b = Add(a, a) }"""
    )
    mirror = Mirror(model)
    assert mirror(torch.ones(2)).tolist() == [2, 2]
    assert len(model.functions) == 1


def test_shapes_may_depend_on_the_batch() -> None:
    mirror = Mirror(
        parse(
            "graph (float[N,2,3] x) => (float[N,M] y) <int64 zero = {0}, int64[1] axes = {0}, "
            "int64[1] rest = {-1}> { s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axes) "
            "shape = Concat<axis=0>(u, rest) y = Reshape(x, shape) }"
        )
    )
    assert [tuple(mirror(torch.ones(size, 2, 3)).shape) for size in (1, 4)] == [(1, 6), (4, 6)]


def test_bfloat16_constants_keep_their_bits() -> None:
    model = parse("graph (float[1] x) => (float[1] y) { y = Add(x, w) }")
    weights = np.array([1.5, -3.0], np.float32)
    proto = onnx.helper.make_tensor("w", TensorProto.BFLOAT16, [2], weights)
    model.graph.initializer.append(proto)
    value = Mirror(model).parameter("w")
    assert value.dtype == torch.bfloat16
    assert value.tolist() == [1.5, -3.0]


def _broken_models() -> Iterator[tuple[onnx.ModelProto, str]]:
    yield (
        parse("graph (float[N] x) => (float[N] y) { y = Add(x, lost) }"),
        r"node '' \(Add\) reads tensor 'lost', which nothing computes",
    )
    model = parse("graph (float[N] x) => (float[N] y) { y = Relu(x) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array(["a"], object), "words"))
    yield model, "'words' has element type STRING"
    model = parse("graph (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto = model.graph.initializer.add(name="far", data_type=TensorProto.FLOAT)
    proto.data_location = TensorProto.EXTERNAL
    yield model, "'far' is still in an external data file"


@pytest.mark.parametrize(("model", "message"), list(_broken_models()))
def test_broken_model_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Mirror(model)


def test_operator_without_a_rule_is_refused_in_one_sentence() -> None:
    model = parse("graph (float[N] x) => (float[N] y) { y = FancyGate(x) }", opset=17)
    model.graph.node[0].name = "features.3"
    with pytest.raises(UnsupportedOperatorError) as caught:
        Mirror(model)
    assert str(caught.value) == (
        "the mirror cannot compute operator FancyGate that ONNX does not define at node "
        "'features.3' (domain 'ai.onnx', opset 17): use a training-free method such as ranger"
    )


def test_missing_feed_and_unknown_target(residual: Mirror, images: Tensor) -> None:
    with pytest.raises(ModelError, match="graph input 'x' is needed to compute y: feed it"):
        residual.evaluate({"r1": images}, ["y"])
    with pytest.raises(ModelError, match="'z' is no tensor of the graph"):
        residual.evaluate({"x": images}, ["z"])
    with pytest.raises(ModelError, match="'X' is no tensor of the graph"):
        residual.evaluate({"X": images}, ["y"])


def test_what_fails_inside_names_its_node(residual: Mirror) -> None:
    with pytest.raises(RuntimeError) as caught:
        residual(torch.ones(1, 3, 4, 4))
    assert caught.value.__notes__ == ["while the mirror computed node stem (Conv)"]
