"""Which parameters a fault can hit."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.activations import find_activations
from proact_onnx.errors import SettingsError
from proact_onnx.faults import (
    FaultSpace,
    Kind,
    Parameter,
    fault_space,
    parameter_count,
    spell_storage,
)
from proact_onnx.model import load_model
from proact_onnx.rewrite import Form, insert, prepare, threshold_name
from proact_onnx.thresholds import Granularity, Thresholds, threshold_shape
from tests.numerics import parse


def ones(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def network() -> onnx.ModelProto:
    """Convolution, normalisation, dense layers written as Gemm and as MatMul with Add."""
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            [first] c = Conv (x, w1, b1)
            [norm] n = BatchNormalization (c, scale, shift, mean, var)
            r = Relu (n)
            [shape] f = Reshape (r, sizes)
            [dense] g = Gemm (f, w2, b2)
            [linear] h = MatMul (g, w3)
            [offset] o = Add (h, b3)
            [half] y = Mul (o, factor)
        }""",
        w1=ones(4, 3, 1, 1),
        b1=ones(4),
        scale=ones(4),
        shift=ones(4),
        mean=ones(4),
        var=ones(4),
        sizes=np.array([0, -1]),
        w2=ones(256, 6),
        b2=ones(6),
        w3=ones(6, 5),
        b3=ones(5),
        factor=np.float32(0.5),
    )


def parameter(name: str, kind: Kind, shape: tuple[int, ...], layer: str) -> Parameter:
    return Parameter(name, kind, shape, layer, 32, tuple(range(32)))


def names(space: FaultSpace) -> list[str]:
    return [parameter.name for parameter in space.parameters]


def test_parameters_with_kind_shape_and_layer_in_graph_order() -> None:
    weight, bias = Kind.WEIGHT, Kind.BIAS
    assert fault_space(network(), 32).parameters == (
        parameter("w1", weight, (4, 3, 1, 1), "first"),
        parameter("b1", bias, (4,), "first"),
        parameter("scale", weight, (4,), "norm"),
        parameter("shift", bias, (4,), "norm"),
        parameter("mean", bias, (4,), "norm"),
        parameter("var", weight, (4,), "norm"),
        parameter("w2", weight, (256, 6), "dense"),
        parameter("b2", bias, (6,), "dense"),
        parameter("w3", weight, (6, 5), "linear"),
        parameter("b3", bias, (5,), "offset"),
    )


def test_size_in_words_and_bits() -> None:
    elements = 12 + 5 * 4 + 256 * 6 + 6 + 30 + 5
    assert fault_space(network(), 32).elements == elements
    assert fault_space(network(), 32).bits == 32 * elements
    assert fault_space(network(), 9).bits == 9 * elements


def test_only_floating_point_parameters_are_stored() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x, double[4] d, float16[4] h) => (float[N, 4] y, double[4] e, float16[4] i)
        {
            g = Gather <axis = 1> (x, order)
            y = Mul (g, single)
            e = Mul (d, double)
            i = Mul (h, half)
        }""",
        order=np.array([3, 2, 1, 0]),
        single=ones(4),
        double=ones(4, dtype=np.float64),
        half=ones(4, dtype=np.float16),
    )
    assert names(fault_space(model, 32)) == ["single", "double", "half"]


def test_constants_count_as_parameters_however_they_are_written() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 3] y) {
            tensor = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
            list = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            number = Constant <value_float = 2.0> ()
            index = Constant <value = int64[1] {3}> ()
            filled = ConstantOfShape <value = float[1] {1.5}> (extent)
            zeros = ConstantOfShape (index)
            counts = ConstantOfShape <value = int64[1] {1}> (extent)
            a = Add (x, tensor)
            b = Mul (a, list)
            c = Mul (b, number)
            d = Mul (c, filled)
            e = Add (d, zeros)
            f = Cast <to = 1> (counts)
            y = Mul (e, f)
        }""",
        extent=np.array([3]),
    )
    space = fault_space(model, 32)
    assert [(p.name, p.shape, p.layer) for p in space.parameters] == [
        ("tensor", (3,), "a"),
        ("list", (3,), "b"),
        ("filled", (3,), "d"),
        ("zeros", (3,), "e"),
    ]
    assert fault_space(prepare(model, fold_batchnorm=False).model, 32) == space


def test_a_constant_of_a_shape_computed_at_run_time_is_not_stored() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 3] y) {
            s = Shape (x)
            z = ConstantOfShape (s)
            y = Add (x, z)
        }"""
    )
    assert fault_space(model, 32).parameters == ()


def test_what_describes_the_computation_is_left_out() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[1, 1, 4, 4] x) => (float[1, 1, 10, 10] y) {
            a = Clip (x, low, high)
            b = Resize (a, roi, scales)
            c = Pad (b, pads, fill)
            y = Mul (c, weight)
        }""",
        low=np.float32(0),
        high=np.float32(6),
        roi=ones(8),
        scales=np.array([1, 1, 2, 2], np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        fill=np.float32(0),
        weight=ones(10, 10),
    )
    assert names(fault_space(model, 32)) == ["weight"]


def test_a_parameter_that_also_describes_is_kept_for_its_arithmetic_use() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y, float[1, 1, 2, 4] z) {
            [grow] y = Resize (x, , both)
            [scale] h = Mul (x, thing)
            z = Concat <axis = 3> (h, h)
        }""",
        both=np.array([1, 1, 2, 2], np.float32),
        thing=ones(2),
    )
    model.graph.node[1].input[1] = "both"
    model.graph.node[1].op_type = "MatMul"
    assert [(p.name, p.layer) for p in fault_space(model, 32).parameters] == [("both", "scale")]


def test_shared_and_unread_parameters_count_once_and_never() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 3] y) {
            [one] a = Mul (x, shared)
            [two] y = Mul (a, shared)
        }""",
        shared=ones(3),
        unread=ones(7),
        empty=ones(0),
    )
    assert [(p.name, p.layer) for p in fault_space(model, 32).parameters] == [("shared", "one")]


def test_parameters_read_inside_a_branch_count() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x, bool go) => (float[N, 3] y) {
            y = If (go) <
                then_branch = one () => (float[N, 3] p) { p = Mul (x, inner) },
                else_branch = two () => (float[N, 3] q) { q = Identity (x) }
            >
        }""",
        inner=ones(3),
    )
    assert names(fault_space(model, 32)) == ["inner"]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("granularity", [Granularity.LAYER, Granularity.NEURON])
def test_thresholds_of_every_form_can_be_hit(form: Form, granularity: Granularity) -> None:
    model = prepare(network()).model
    [activation] = find_activations(model)
    shape = threshold_shape(activation, granularity)
    values = Thresholds({activation.tensor: np.full(shape, 2, np.float32)})
    hardened = insert(model, values, form).model
    added = [
        parameter
        for parameter in fault_space(hardened, 32).parameters
        if parameter.name not in names(fault_space(model, 32))
    ]
    assert [(p.name, p.kind, p.shape) for p in added] == [
        (threshold_name(activation.tensor), Kind.THRESHOLD, shape)
    ]
    if form is Form.SATURATE and granularity is Granularity.LAYER:
        assert "Clip" in [node.op_type for node in hardened.graph.node]


def test_restricting_to_kinds_and_to_layers() -> None:
    space = fault_space(network(), 32)
    assert space.restrict() == space
    assert names(space.restrict(["bias"])) == ["b1", "shift", "mean", "b2", "b3"]
    assert names(space.restrict(layers=["first", "w?"])) == ["w1", "b1", "w2", "w3"]
    assert names(space.restrict(["weight", "bias"], ["norm", "offset"])) == [
        "scale",
        "shift",
        "mean",
        "var",
        "b3",
    ]


def test_an_unnamed_node_is_the_layer_of_its_output() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 3] y) { y = Mul (x, w) }""",
        w=ones(3),
    )
    assert fault_space(model, 32).parameters[0].layer == "y"


@pytest.mark.parametrize(
    ("kinds", "layers", "message"),
    [
        (
            ["weights"],
            [],
            "unknown fault target 'weights': choose among weight, bias, threshold, scale, copy, "
            "quant-scale, zero-point",
        ),
        (
            ["threshold"],
            ["first"],
            "the model stores no parameter of kind threshold (it has weight, bias): choose other "
            "--targets, or another model",
        ),
        (
            ["bias"],
            ["first", "linear"],
            "no parameter to fault matches layer pattern 'linear': 'proact-onnx inspect --layers' "
            "lists them",
        ),
    ],
)
def test_a_restriction_that_leaves_nothing_says_why(
    kinds: list[str], layers: list[str], message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        fault_space(network(), 32).restrict(kinds, layers)
    assert str(caught.value) == message


def test_a_model_without_parameters_has_nothing_to_fault() -> None:
    with pytest.raises(SettingsError) as caught:
        FaultSpace(()).restrict()
    assert str(caught.value) == (
        "the model stores no parameter of kind weight or bias or threshold or scale or copy or "
        "quant-scale or zero-point (it has none at all): choose other --targets, or another model"
    )


def test_quantised_weights_count_as_parameters(shared_dir: Path) -> None:
    """Quantised or not, the network has the same weights, beside the scales and zero points."""
    plain = load_model(shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx")
    quantised = load_model(shared_dir / "models" / "c10_resnet20_int8_qdq.onnx")
    assert parameter_count(plain) == 269_034
    assert parameter_count(quantised) == parameter_count(plain)
    weights = [p for p in fault_space(quantised, 32).parameters if p.kind is Kind.WEIGHT]
    assert {p.stored_as for p in weights} == {"int8"}


def test_bits_can_be_chosen() -> None:
    space = fault_space(network(), 32)
    upper = space.restrict(bits=range(24, 40))
    assert names(upper) == names(space)
    assert all(p.bits == tuple(range(24, 32)) for p in upper.parameters)
    assert upper.bits == 8 * upper.elements
    with pytest.raises(SettingsError) as caught:
        space.restrict(bits=[32])
    assert str(caught.value) == (
        "no stored word has the bits asked for: they are numbered 0 to 31, 0 the least significant"
    )


def test_integers_of_a_quantised_network_are_stored_as_they_are() -> None:
    """Weights, biases, scales and zero points, in the order in which they are read."""
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y) {
            [weights] w = DequantizeLinear <axis = 0> (w8, ws, wz)
            [bias] b = DequantizeLinear <axis = 0> (b32, bs)
            [quantise] q = QuantizeLinear (x, xs, xz)
            [restore] d = DequantizeLinear (q, xs, xz)
            [conv] y = Conv (d, w, b)
        }""",
        w8=ones(3, 2, 1, 1, dtype=np.int8),
        ws=ones(3),
        wz=np.zeros(3, np.int8),
        b32=ones(3, dtype=np.int32),
        bs=ones(3),
        xs=np.float32(0.1),
        xz=np.uint8(3),
    )
    space = fault_space(model, 16)
    found = {p.name: (p.kind, p.shape, p.width, len(p.bits), p.stored_as) for p in space.parameters}
    assert found == {
        "w8": (Kind.WEIGHT, (3, 2, 1, 1), 8, 8, "int8"),
        "ws": (Kind.QUANT_SCALE, (3,), 32, 32, "float32"),
        "wz": (Kind.ZERO_POINT, (3,), 8, 8, "int8"),
        "b32": (Kind.BIAS, (3,), 32, 32, "int32"),
        "bs": (Kind.QUANT_SCALE, (3,), 32, 32, "float32"),
        "xs": (Kind.QUANT_SCALE, (), 32, 32, "float32"),
        "xz": (Kind.ZERO_POINT, (), 8, 8, "uint8"),
    }
    assert space.bits == 6 * 8 + 3 * 32 + 3 * 8 + 3 * 32 + 3 * 32 + 32 + 8
    assert parameter_count(model) == 6 + 3
    only = space.restrict(bits=[20])
    assert names(only) == ["ws", "b32", "bs", "xs"]
    assert spell_storage(space) == (
        "0 of 20 numbers; stored as in the file are 9 int8, 7 float32, 3 int32, 1 uint8"
    )
