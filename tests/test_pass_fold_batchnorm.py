import numpy as np
import onnx
import pytest

from passes import FoldBatchnorm, Refusal, run_passes
from tests.numerics import Array, assert_same_outputs, operators, parse

ROUNDING = 1e-5


def weights(channels: int = 4, seed: int = 0, **more: Array) -> dict[str, Array]:
    """Statistics of a BatchNormalization that is far from the identity, and more initializers."""
    generator = np.random.default_rng(seed)
    return {
        "scale": generator.uniform(0.5, 2, channels).astype(np.float32),
        "shift": generator.normal(size=channels).astype(np.float32),
        "mean": generator.normal(size=channels).astype(np.float32),
        "var": generator.uniform(0.1, 3, channels).astype(np.float32),
        **more,
    }


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def net(body: str, shape: str = "N, 3, 5, 5", out: str = "N, C, H, W", opset: int = 17) -> str:
    return f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    net (float[{shape}] x) => (float[{out}] y) {{ {body} }}
    """


BN = "y = BatchNormalization(h, scale, shift, mean, var)"


@pytest.mark.parametrize(
    ("body", "layout", "more"),
    [
        ("h = Conv(x, w)", {}, {"w": normal(4, 3, 3, 3)}),
        ("h = Conv<pads = [1, 1, 1, 1]>(x, w, b)", {}, {"w": normal(4, 3, 3, 3), "b": normal(4)}),
        (
            "h = Conv<group = 2>(x, w, b)",
            {"shape": "N, 6, 5, 5"},
            {"w": normal(4, 3, 3, 3), "b": normal(4)},
        ),
        ("h = Conv(x, w)", {"shape": "N, 3, 9", "out": "N, C, L"}, {"w": normal(4, 3, 2)}),
        ("h = ConvTranspose(x, w, b)", {}, {"w": normal(3, 4, 2, 2), "b": normal(4)}),
        (
            "h = ConvTranspose<group = 2, strides = [2, 2]>(x, w)",
            {"shape": "N, 6, 5, 5"},
            {"w": normal(6, 2, 3, 3)},
        ),
        ("h = Gemm(x, w)", {"shape": "N, 3", "out": "N, C"}, {"w": normal(3, 4)}),
        (
            "h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)",
            {"shape": "N, 3", "out": "N, C"},
            {"w": normal(4, 3), "b": normal(4)},
        ),
        (
            "h = Gemm<beta = 0.25>(x, w, b)",
            {"shape": "N, 3", "out": "N, C"},
            {"w": normal(3, 4), "b": normal(1, 1)},
        ),
    ],
)
def test_folds(body: str, layout: dict[str, str], more: dict[str, Array]) -> None:
    model = parse(net(f"{body} {BN}", **layout), **weights(**more))
    step = FoldBatchnorm()
    result, changes = run_passes(model, [step])
    assert changes == {"fold-batchnorm": 1}
    assert step.refusals == []
    [node] = result.graph.node
    assert list(node.output) == ["y"]
    names = {"w", "b"} if "b" in more else {"w", "w.bias"}
    assert {tensor.name for tensor in result.graph.initializer} == names
    assert_same_outputs(model, result, ROUNDING)


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 22])
def test_folds_at_every_version_of_the_operator(opset: int) -> None:
    model = parse(net(f"h = Conv(x, w) {BN}", opset=opset), **weights(w=normal(4, 3, 3, 3)))
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", 0.01))
    result, changes = run_passes(model, [FoldBatchnorm()])
    assert changes == {"fold-batchnorm": 1}
    assert_same_outputs(model, result, ROUNDING)


def test_weights_before_ir_version_4_are_inputs_in_name_only() -> None:
    model = parse(net(f"h = Conv(x, w) {BN}", opset=8), **weights(w=normal(4, 3, 3, 3)))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    result, changes = run_passes(model, [FoldBatchnorm()])
    assert changes == {"fold-batchnorm": 1}
    assert [info.name for info in result.graph.input] == ["x", "w", "w.bias"]
    assert_same_outputs(model, result, ROUNDING)


def test_a_new_bias_takes_a_free_name() -> None:
    model = parse(
        net(f"h = Conv(z, w) {BN} z = Mul(x, w.bias)".replace("w.bias", "taken")),
        **weights(w=normal(4, 3, 3, 3), taken=np.float32(2)),
    )
    order = [model.graph.node[i] for i in (2, 0, 1)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for holder in (model.graph.initializer[-1], model.graph.node[0]):
        if isinstance(holder, onnx.TensorProto):
            holder.name = "w.bias"
        else:
            holder.input[1] = "w.bias"
    result, _ = run_passes(model, [FoldBatchnorm()])
    assert {t.name for t in result.graph.initializer} == {"w", "w.bias", "w.bias_2"}
    assert_same_outputs(model, result, ROUNDING)


def test_float16_weights_stay_float16() -> None:
    half = {name: value.astype(np.float16) for name, value in weights(w=normal(4, 3, 1, 1)).items()}
    model = parse(net(f"h = Conv(x, w) {BN}").replace("float[", "float16["), **half)
    result, changes = run_passes(model, [FoldBatchnorm()])
    assert changes == {"fold-batchnorm": 1}
    assert {t.data_type for t in result.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert_same_outputs(model, result, 5e-3)


CONV = {"w": normal(4, 3, 3, 3)}


@pytest.mark.parametrize(
    ("body", "more", "reason"),
    [
        ("h = Relu(x)", {}, "its input 'h' is not the output of a Conv, ConvTranspose or Gemm"),
        ("w = Relu(u) h = Conv(x, w)", {"u": CONV["w"]}, "its weight 'w' is not a constant"),
        (
            "b = Relu(u) h = Conv(x, w, b)",
            {**CONV, "u": normal(4)},
            "its bias 'b' is not a constant",
        ),
        (
            "h = Conv(x, w) other = Conv(x, w)",
            CONV,
            "its weight 'w' is shared with another node",
        ),
        (
            "h = Conv(x, w, b) other = Relu(b)",
            {**CONV, "b": normal(4)},
            "its bias 'b' is shared with another node",
        ),
        ("h = Conv(x, w) other = Relu(h)", CONV, "the output 'h' of Conv that writes 'h' has "),
        (
            "h = Gemm<beta = 0.0>(x, w)",
            {"w": normal(3, 4)},
            "Gemm that writes 'h' has beta 0, so a bias would have no effect",
        ),
    ],
)
def test_refuses_with_a_reason(body: str, more: dict[str, Array], reason: str) -> None:
    flat = "Gemm" in body
    other = ", float[A, B, C, D] other" if "other" in body else ""
    text = net(f"{body} {BN}", *(["N, 3", "N, C"] if flat else []))
    if "other = Relu(b)" in body:
        other = ", float[A] other"
    text = text.replace("] y)", f"] y{other})")
    model = parse(text, **weights(3 if "Relu(x)" in body else 4, **more))
    step = FoldBatchnorm()
    result, changes = run_passes(model, [step])
    assert changes == {"fold-batchnorm": 0}
    [refusal] = step.refusals
    assert refusal.node == "BatchNormalization that writes 'y'"
    assert refusal.reason.startswith(reason)
    assert operators(result) == operators(model)
    assert_same_outputs(model, result)


def refusals(model: onnx.ModelProto) -> list[Refusal]:
    step = FoldBatchnorm()
    result, changes = run_passes(model, [step])
    assert changes == {"fold-batchnorm": 0}
    assert result == model
    return step.refusals


def test_refuses_what_a_caller_may_override() -> None:
    model = parse(net(f"h = Conv(x, w) {BN}"), **weights(**CONV))
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3])
    )
    [refusal] = refusals(model)
    assert refusal.reason == "its weight 'w' is a graph input, which may be overridden"


def test_refuses_a_convolution_whose_output_is_a_graph_output() -> None:
    model = parse(net(f"h = Conv(x, w) {BN}"), **weights(**CONV))
    model.graph.output.add(name="h").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    [refusal] = refusals(model)
    assert refusal.reason == "the output 'h' of Conv that writes 'h' is a graph output"


def test_refuses_a_weight_that_is_a_graph_output() -> None:
    model = parse(net(f"h = Conv(x, w) {BN}"), **weights(**CONV))
    model.graph.output.add(name="w").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    [refusal] = refusals(model)
    assert refusal.reason == "its weight 'w' is a graph output"


@pytest.mark.parametrize(
    ("opset", "attribute", "reason"),
    [
        (15, "training_mode = 1", "it runs in training mode"),
        (8, "spatial = 0", "it normalises every element by itself (spatial=0)"),
    ],
)
def test_refuses_other_modes(opset: int, attribute: str, reason: str) -> None:
    body = BN.replace("(", f"<{attribute}>(", 1)
    model = parse(net(f"h = Conv(x, w) {body}", opset=opset), **weights(**CONV))
    [refusal] = refusals(model)
    assert refusal.reason == reason


def test_refuses_training_outputs() -> None:
    body = BN.replace("y =", "y, m, v, sm, sv =")
    model = parse(net(f"h = Conv(x, w) {body}", opset=9), **weights(**CONV))
    assert refusals(model)[0].reason == "it runs in training mode"


def test_refuses_numbers_that_would_not_be_finite() -> None:
    values = weights(**CONV)
    values["var"] = np.array([1, 1, -5, 1], np.float32)
    [refusal] = refusals(parse(net(f"h = Conv(x, w) {BN}"), **values))
    assert refusal.reason == "the folded weight 'w' would not be finite"


def test_a_subgraph_that_reads_the_convolution_counts_as_a_reader() -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 5, 5] x, bool c) => (float[N, C, H, W] y, float[N, C, H, W] z)
        {
          h = Conv(x, w)
          y = BatchNormalization(h, scale, shift, mean, var)
          z = If(c) <
            then_branch = a () => (float[N, C, H, W] p) { p = Relu(h) },
            else_branch = b () => (float[N, C, H, W] q) { q = Neg(h) }
          >
        }
        """,
        **weights(**CONV),
    )
    [refusal] = refusals(model)
    assert refusal.reason == "the output 'h' of Conv that writes 'h' has other readers"
