import numpy as np
import onnx
import onnxruntime
import pytest

from passes import Range, RescaleWeights, Sharing, run_passes
from passes.base import PassError
from proact_onnx.faults import fault_space, parse_format
from proact_onnx.model import SCALE_SUFFIX
from tests.numerics import Array, operators, parse, random_feed, run, run_reference

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>'
GENERATOR = np.random.default_rng(0)


def normal(*shape: int, scale: float = 0.1, dtype: type = np.float32) -> Array:
    return (GENERATOR.standard_normal(shape) * scale).astype(dtype)


def convolution(
    attributes: str = "", weight: Array | None = None, bias: Array | None = None, dtype="float"
) -> onnx.ModelProto:
    weight = normal(6, 4, 3, 3) if weight is None else weight
    inputs = "x, w" if bias is None else "x, w, b"
    stored = {"w": weight} if bias is None else {"w": weight, "b": bias}
    head = HEAD.format(opset=17)
    return parse(
        f"{head} net ({dtype}[N, 4, 8, 8] x) => ({dtype}[N, c, h, k] y) "
        f"{{ z = Conv{attributes}({inputs})  y = Relu(z) }}",
        **stored,
    )


def transposed(groups: int) -> onnx.ModelProto:
    text = f"""{HEAD.format(opset=17)} net (float[N, 4, 5, 5] x) => (float[N, c, h, k] y)
    {{ y = ConvTranspose<group: int = {groups}, strides: ints = [2, 2]>(x, w, b) }}"""
    return parse(text, w=normal(4, 6 // groups, 3, 3), b=normal(6, scale=1))


def gemm(attributes: str = "", weight: Array | None = None, bias: Array | None = None, opset=17):
    weight = normal(5, 16) if weight is None else weight
    bias = normal(5) if bias is None else bias
    text = f"""{HEAD.format(opset=opset)} net (float[N, 16] x) => (float[N, m] y)
    {{ y = Gemm<transB: int = 1{attributes}>(x, w, b) }}"""
    return parse(text, w=weight, b=bias)


def matmul(bias: Array, tail: str = "y = Add(b, z)") -> onnx.ModelProto:
    text = f"""{HEAD.format(opset=17)} net (float[N, 3, 16] x) => (float[N, a, m] y)
    {{ z = MatMul(x, w)  {tail} }}"""
    return parse(text, w=normal(16, 5), b=bias)


def rescaled(
    model: onnx.ModelProto, sharing: Sharing = Sharing.CHANNEL
) -> tuple[onnx.ModelProto, RescaleWeights]:
    step = RescaleWeights(sharing)
    result, changes = run_passes(model, [step])
    assert changes == {"rescale-weights": len(step.scales)}
    onnx.checker.check_model(result, full_check=True)
    return result, step


def stored(model: onnx.ModelProto, name: str) -> Array:
    return next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def assert_unchanged(model: onnx.ModelProto, sharing: Sharing = Sharing.CHANNEL) -> None:
    """Same bits in ONNX's reference; in ONNX Runtime up to where a Gemm's bias is added."""
    result, step = rescaled(model, sharing)
    assert step.scales
    assert step.refusals == []
    feed = random_feed(model)
    for before, after in zip(reference(model, feed), reference(result, feed), strict=True):
        np.testing.assert_array_equal(after, before)
    for optimise in (False, True):
        pairs = zip(run(model, feed, optimise), run(result, feed, optimise), strict=True)
        for before, after in pairs:
            np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * np.abs(before).max())


def reference(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    """ONNX's reference, but for transposed convolutions in groups, which it cannot compute."""
    grouped = any(
        node.op_type == "ConvTranspose"
        and any(a.name == "group" and a.i > 1 for a in node.attribute)
        for node in model.graph.node
    )
    return run(model, feed) if grouped else run_reference(model, feed)


BOTH = pytest.mark.parametrize("sharing", list(Sharing))


@BOTH
@pytest.mark.parametrize(
    "model",
    [
        convolution(),
        convolution(bias=normal(6, scale=1)),
        convolution("<group: int = 2>", normal(6, 2, 3, 3), normal(6)),
        convolution("<group: int = 4>", normal(4, 1, 3, 3), normal(4)),
        transposed(1),
        transposed(2),
        gemm(),
        gemm(", alpha: float = 0.5, beta: float = 2.0"),
        gemm(bias=normal(1, 5)),
        gemm(opset=9),
        gemm(", beta: float = 4.0", opset=9),
        matmul(normal(5)),
        matmul(normal(1, 3, 5)),
        matmul(normal(5), "y = Sub(z, b)"),
        parse(
            HEAD.format(opset=17) + "net (double[N, 4] x) => (double[N, m] y) { y = MatMul(x, w) }",
            w=normal(4, 5, dtype=np.float64),
        ),
    ],
)
def test_changes_no_output(model: onnx.ModelProto, sharing: Sharing) -> None:
    assert_unchanged(model, sharing)


@pytest.mark.parametrize("model", [convolution(bias=normal(6, scale=1)), gemm()])
def test_layers_have_the_same_bits_in_onnx_runtime(model: onnx.ModelProto) -> None:
    result, _ = rescaled(model)
    feed = random_feed(model)
    np.testing.assert_array_equal(run(result, feed)[0], run(model, feed)[0])


def enlargement(largest: Array) -> Array:
    """The largest powers of two that keep numbers of these magnitudes below 2^15."""
    return 2.0 ** np.floor(np.log2((2**15 - 2**-8) / largest))


def test_weights_and_biases_fill_the_range() -> None:
    weight, bias = normal(6, 4, 3, 3), normal(6, scale=3)
    result, step = rescaled(convolution(weight=weight, bias=bias))
    assert operators(result).count("Conv") == 2
    assert step.scales == ["z/rescale/scale"]
    scale = stored(result, "z/rescale/scale")
    assert scale.shape == (6, 1, 1, 1)
    factor = enlargement(np.abs(weight).max(axis=(1, 2, 3)))
    np.testing.assert_array_equal(64 * scale.reshape(6), factor)
    np.testing.assert_array_equal(stored(result, "w"), weight * factor.reshape(6, 1, 1, 1))
    # What is stored twice fills half of the range.
    common = enlargement(2 * np.abs(bias).max())
    assert 64 * stored(result, "b/rescale/scale") == common
    np.testing.assert_array_equal(stored(result, "b"), bias * np.float32(common))
    paper = parse_format("Q15.16")
    for tensor in result.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        assert not paper.fit(values).saturated(values)


@pytest.mark.parametrize("role", ["b", "b/rescale/copy"])
def test_flips_of_a_sign_and_its_repetitions_change_no_output(role: str) -> None:
    """In two's complement the leading places repeat the sign; one of two copies is hit."""
    model = convolution(weight=normal(6, 4, 3, 3), bias=normal(6, scale=3))
    result, _ = rescaled(model)
    feed = random_feed(model)
    expected = run(result, feed)[0]
    paper = parse_format("Q15.16")
    words = paper.encode(stored(result, role).reshape(-1))
    signs = np.where(words >> 31, np.uint32(0xFFFFFFFF), np.uint32(0))
    repeated = [place for place in range(31, 16, -1) if not ((words ^ signs) >> place & 1).any()]
    assert repeated[:2] == [31, 30]
    for place in repeated:
        faulty = paper.decode(words ^ np.uint32(1 << place)).reshape(stored(result, role).shape)
        outputs = run(with_stored(result, **{role: faulty}), feed)[0]
        np.testing.assert_array_equal(outputs, expected)


def test_one_scale_for_a_tensor() -> None:
    weight = normal(6, 4, 3, 3)
    result, _ = rescaled(convolution(weight=weight), Sharing.TENSOR)
    scale = stored(result, "z/rescale/scale")
    assert scale.shape == ()
    assert 2**14 <= np.abs(weight).max() * 64 * scale < 2**15
    np.testing.assert_array_equal(stored(result, "w"), weight * 64 * scale)


def with_stored(model: onnx.ModelProto, **values: object) -> onnx.ModelProto:
    """Put other values into initializers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            before = onnx.numpy_helper.to_array(tensor)
            after = np.broadcast_to(np.asarray(values[tensor.name], before.dtype), before.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(after.copy(), tensor.name))
    return changed


@pytest.mark.parametrize("copy", ["", "/second", "/third"])
@pytest.mark.parametrize("fault", [0.0, -1.0, 1e30, -1e30, np.inf])
def test_a_scale_of_a_tensor_outvotes_a_faulty_copy(copy: str, fault: float) -> None:
    model = convolution(bias=normal(6, scale=1))
    result, _ = rescaled(model, Sharing.TENSOR)
    feed = random_feed(model)
    for owner in ("z", "b"):
        faulty = with_stored(result, **{f"{owner}{copy}/rescale/scale": fault})
        np.testing.assert_array_equal(run(faulty, feed)[0], run(model, feed)[0])


@pytest.mark.parametrize("fault", [0.0, -1e-3, -1e30, np.inf, -np.inf])
def test_a_faulty_scale_of_a_channel_leaves_outputs_finite(fault: float) -> None:
    model = convolution(bias=normal(6, scale=1))
    result, _ = rescaled(model)
    feed = random_feed(model)
    scale = stored(result, "z/rescale/scale").copy()
    scale[2] = fault
    [before], [after] = (
        run(model, feed),
        run(with_stored(result, **{"z/rescale/scale": scale}), feed),
    )
    assert np.isfinite(after).all()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(after[:, others], before[:, others])


@pytest.mark.parametrize("fault", [0.0, -1e30, np.inf])
@pytest.mark.parametrize("bits", [15, 0])
def test_a_faulty_scale_of_a_neuron_leaves_outputs_finite(bits: int, fault: float) -> None:
    """A scale counts as 1 at least and as 2^20 at most, in floating point, too."""
    model = gemm()
    limits = Range(bits)
    result, _ = run_passes(model, [RescaleWeights(range=limits)])
    feed = random_feed(model)
    scale = stored(result, "y/rescale/scale").copy()
    own = scale[2] / limits.unit
    scale[2] = fault
    [before], [after] = (
        run(model, feed),
        run(with_stored(result, **{"y/rescale/scale": scale}), feed),
    )
    np.testing.assert_allclose(np.delete(after, 2, 1), np.delete(before, 2, 1), atol=1e-6)
    bias = stored(model, "b")[2]
    counted = 2.0**20 if fault else 1.0
    wanted = bias + (before[:, 2] - bias) * own / counted
    np.testing.assert_allclose(after[:, 2], wanted, rtol=1e-4, atol=1e-6)


def test_the_sign_of_a_scale_does_not_matter() -> None:
    model = convolution()
    result, _ = rescaled(model)
    feed = random_feed(model)
    turned = with_stored(result, **{"z/rescale/scale": -stored(result, "z/rescale/scale")})
    np.testing.assert_array_equal(run(turned, feed)[0], run(model, feed)[0])


@pytest.mark.parametrize("largest", [0.25, 0.5, 1.0, np.nextafter(np.float32(0.5), 0)])
def test_the_range_is_not_left_at_its_edge(largest: float) -> None:
    weight = np.full((2, 4, 1, 1), largest, np.float32)
    result, _ = rescaled(convolution(weight=weight))
    assert 2**14 <= stored(result, "w").max() < 2**15


def test_channels_that_are_dead_tiny_or_too_large() -> None:
    weight = normal(4, 4, 1, 1)
    weight[0], weight[1], weight[2] = 0, 1e-30, 1e6
    result, _ = rescaled(convolution(weight=weight))
    factor = 64 * stored(result, "z/rescale/scale").reshape(-1)
    assert factor[:3].tolist() == [2**20, 2**20, 1]
    assert_unchanged(convolution(weight=weight))


def test_nothing_to_gain() -> None:
    model = convolution(weight=np.full((2, 4, 1, 1), 20000, np.float32))
    result, step = rescaled(model)
    assert step.scales == step.refusals == []
    assert result == model


def test_a_flipped_high_bit_changes_little() -> None:
    """None of a stored weight's bits changes it by more than twice its channel's largest."""
    weight = normal(6, 4, 3, 3)
    result, _ = rescaled(convolution(weight=weight))
    scale = 64 * stored(result, "z/rescale/scale").reshape(6, 1, 1, 1)
    paper = parse_format("Q15.16").fit(weight)
    words = paper.encode(stored(result, "w"))
    worst = max(
        np.abs(paper.decode(words ^ np.uint32(1 << bit)) / scale - weight).max()
        for bit in range(32)
    )
    assert worst <= 2 * np.abs(weight).max()
    plain = paper.decode(paper.encode(weight) ^ np.uint32(1 << 31))
    assert np.abs(plain - weight).max() > 30000


def test_survives_the_optimiser_of_onnx_runtime(tmp_path) -> None:
    model = convolution(weight=normal(16, 4, 3, 3), bias=normal(16))
    result, _ = rescaled(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        result.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert operators(optimised).count("Conv") == 2
    largest = max(np.abs(onnx.numpy_helper.to_array(t)).max() for t in optimised.graph.initializer)
    assert largest > 2**14


def test_layers_that_share_an_output_with_a_skip_connection() -> None:
    text = f"""{HEAD.format(opset=17)}
    net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z)
    {{ a = Conv(x, v)  z = Conv(a, w)  s = Add(z, a)  y = Relu(s) }}"""
    assert_unchanged(parse(text, v=normal(4, 4, 1, 1), w=normal(4, 4, 1, 1)))


REFUSED = {
    "its weight 'w' is shared with another node": (
        "y = Conv(x, w)  z = Conv(y, w)",
        {"w": normal(4, 4, 1, 1)},
    ),
    "its weight 'w' is not finite": (
        "y = Conv(x, w)  z = Relu(y)",
        {"w": np.full((4, 4, 1, 1), np.inf, np.float32)},
    ),
    "its weight 'w' is a vector": (
        "a = MatMul(x, w)  y = Unsqueeze(a, axis)  z = Relu(y)",
        {"w": normal(8), "axis": np.array([3])},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str) -> None:
    body, weights = REFUSED[reason]
    text = f"""{HEAD.format(opset=17)}
    net (float[N, 4, 8, 8] x) => (float[N, c, h, k] z) {{ {body} }}"""
    model = parse(text, **weights)
    result, step = rescaled(model)
    assert result == model
    assert {refusal.reason for refusal in step.refusals} == {reason}


def test_float16_is_refused() -> None:
    model = convolution(weight=normal(6, 4, 1, 1, dtype=np.float16), dtype="float16")
    result, step = rescaled(model)
    assert result == model
    assert [refusal.reason for refusal in step.refusals] == ["its weight 'w' has type float16"]


def test_a_weight_that_callers_may_override_is_refused() -> None:
    model = convolution()
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [6, 4, 3, 3])
    )
    result, step = rescaled(model)
    assert result == model
    assert "may be overridden" in step.refusals[0].reason


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_a_bias_of_fewer_numbers(shape: tuple[int, ...]) -> None:
    model = gemm(bias=np.asarray(normal(*shape)))
    assert_unchanged(model)
    assert_unchanged(model, Sharing.TENSOR)


KEPT = {
    "its bias 'b' is shared with another node": (
        "a = Conv(x, w, b)  y = Conv(a, v, b)  z = Relu(y)",
        {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "b": normal(4)},
    ),
    "its bias 'b' is not a constant": (
        "b = ReduceMean<axes: ints = [0, 2, 3], keepdims: int = 0>(x) "
        "y = Conv(x, w, b)  z = Relu(y)",
        {"w": normal(4, 4, 1, 1)},
    ),
}


@pytest.mark.parametrize("reason", KEPT)
def test_a_bias_that_cannot_be_enlarged_stays_as_it_is(reason: str) -> None:
    body, weights = KEPT[reason]
    text = f"""{HEAD.format(opset=17)}
    net (float[N, 4, 8, 8] x) => (float[N, c, h, k] z) {{ {body} }}"""
    model = parse(text, **weights)
    assert_unchanged(model)
    result, step = rescaled(model)
    assert {kept.reason for kept in step.biases} == {reason}
    if "b" in weights:
        np.testing.assert_array_equal(stored(result, "b"), weights["b"])


def test_a_bias_of_two_dense_layers_is_enlarged_as_they_add_it() -> None:
    text = f"""{HEAD.format(opset=17)} net (float[N, 4] x) => (float[N, 4] y)
    {{ a = Gemm(x, w, b)  y = Gemm(a, v, b) }}"""
    model = parse(text, w=normal(4, 4), v=normal(4, 4), b=normal(4))
    assert_unchanged(model)
    result, step = rescaled(model)
    assert {kept.reason for kept in step.biases} == {"its bias 'b' is shared with another node"}
    before, after = (
        next(p for p in fault_space(each, 32).parameters if p.name == "b")
        for each in (model, result)
    )
    assert (after.kind, after.layer) == (before.kind, before.layer)


@pytest.mark.parametrize("shape", [(3, 1), (1, 1)])
def test_any_constant_added_behind_is_enlarged(shape: tuple[int, ...]) -> None:
    model = matmul(normal(*shape))
    assert_unchanged(model)
    assert 2**13 <= np.abs(stored(rescaled(model)[0], "b")).max() < 2**14
    [single, _] = rescaled(model, Sharing.TENSOR)
    assert 2**14 <= np.abs(stored(single, "b")).max() < 2**15


def test_not_twice() -> None:
    result, _ = rescaled(convolution())
    with pytest.raises(PassError, match="'z/rescale/scale': it is rescaled already"):
        rescaled(result)


def test_products_of_activations_are_left_alone() -> None:
    text = (
        f"""{HEAD.format(opset=17)} net (float[4, 4] x) => (float[4, 4] y) {{ y = MatMul(x, x) }}"""
    )
    result, step = rescaled(parse(text))
    assert step.scales == step.refusals == []
    assert operators(result) == ["MatMul"]


def test_scales_are_known_by_their_names() -> None:
    _, step = rescaled(convolution())
    assert all(name.endswith(SCALE_SUFFIX) for name in step.scales)


@pytest.mark.parametrize("name", ["Q7.8", "Q3.12", "Q15.16", "Q1.30"])
def test_other_fixed_point_formats_are_filled(name: str) -> None:
    stored_as = parse_format(name)
    limits = Range(stored_as.integer_bits, stored_as.width - 1)
    model = convolution(weight=normal(6, 4, 3, 3, scale=1e-4), bias=normal(6))
    result, _ = run_passes(model, [RescaleWeights(range=limits)])
    for tensor in ("w", "b", "z/rescale/scale", "b/rescale/scale"):
        values = stored(result, tensor)
        assert not stored_as.fit(values).saturated(values)
        if tensor.endswith("scale"):
            kept = stored_as.decode(stored_as.encode(values))
            np.testing.assert_array_equal(kept, values)
    assert 0.25 <= np.abs(stored(result, "b")).max() / 2.0**stored_as.integer_bits < 0.5
    feed = random_feed(model)
    np.testing.assert_array_equal(run(result, feed)[0], run(model, feed)[0])


def test_floating_point_weights_end_below_one() -> None:
    model = convolution(bias=normal(6))
    result, _ = run_passes(model, [RescaleWeights(range=Range(bits=0))])
    largest = np.abs(stored(result, "w")).max(axis=(1, 2, 3))
    assert ((largest >= 0.5) & (largest < 1)).all()
    feed = random_feed(model)
    np.testing.assert_array_equal(run(result, feed)[0], run(model, feed)[0])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_what_the_file_states_of_a_bias_follows_its_shape(ir_version: int) -> None:
    model = convolution(bias=normal(6))
    model.ir_version = ir_version
    # Old files list initializers as inputs; recent exporters state their types.
    place = model.graph.input if ir_version < 4 else model.graph.value_info
    place.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    result, _ = rescaled(model)
    stated = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in (*result.graph.input, *result.graph.value_info)
    }
    assert stated["b"] == stored(result, "b").shape == (6,)
    assert stated["w"] == stored(result, "w").shape
