"""Fault engines: each gives what a new session with the changed parameters gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.engine import FaultEngine, Provider, Session, choose_engine, select
from proact_onnx.engine.device import DeviceEngine
from proact_onnx.engine.inplace import InPlaceEngine
from proact_onnx.engine.layout import LayoutError, find_places
from proact_onnx.engine.portable import FreshSessionEngine
from proact_onnx.errors import ModelError
from proact_onnx.faults import Kind, fault_space
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import Form, Sharing, insert, prepare, rescale
from proact_onnx.thresholds import Granularity, Thresholds, threshold_shape
from tests.numerics import parse, run

Writes = dict[str, tuple[np.ndarray, np.ndarray]]

ENGINES = [InPlaceEngine, DeviceEngine, FreshSessionEngine]
IN_PLACE = "engine: in place on the CPU"
INPUTS = "engine: weights as inputs on the CPU, because "


def open_engine(kind: type, model: onnx.ModelProto, parameters: list[str]) -> FaultEngine:
    if kind is InPlaceEngine:
        return InPlaceEngine(model, parameters, 1, 3)
    engine: FaultEngine = kind(model, parameters, Provider.CPU, 1, 3)
    return engine


def draw(rng: np.random.Generator, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(dtype)


def convolutional() -> onnx.ModelProto:
    """Blocked layouts, a depthwise convolution, a skip, a bias added by itself, a dense layer."""
    rng = np.random.default_rng(0)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, w2)
            d = Relu (c)
            e = Conv (d, w3, b3)
            f = Add (e, b)
            g = Add (f, extra)
            h = Relu (g)
            i = GlobalAveragePool (h)
            j = Flatten (i)
            y = Gemm <transB = 1> (j, w4, b4)
        }""",
        w1=draw(rng, 16, 3, 3, 3),
        b1=draw(rng, 16),
        w2=draw(rng, 16, 1, 3, 3),
        w3=draw(rng, 16, 16, 1, 1),
        b3=draw(rng, 16),
        extra=draw(rng, 16, 1, 1),
        w4=draw(rng, 5, 16),
        b4=draw(rng, 5),
    )


def dense(batch: str = "N") -> onnx.ModelProto:
    """MatMul with Add, a scale, a normalisation, and two parameters of equal values."""
    rng = np.random.default_rng(1)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[BATCH, 6] x) => (float[BATCH, 4] y) {
            a = MatMul (x, w1)
            b = Add (a, b1)
            c = BatchNormalization (b, scale, shift, mean, var)
            d = Relu (c)
            e = MatMul (d, w2)
            f = Mul (e, same)
            g = Add (f, alike)
            y = Mul (g, same)
        }""".replace("BATCH", batch),
        w1=draw(rng, 6, 8),
        b1=draw(rng, 8),
        scale=1 + draw(rng, 8),
        shift=draw(rng, 8),
        mean=draw(rng, 8),
        var=1 + np.abs(draw(rng, 8)),
        w2=draw(rng, 8, 4),
        same=np.full(4, 0.5, np.float32),
        alike=np.full(4, 0.5, np.float32),
    )


def normalised() -> onnx.ModelProto:
    """A BatchNormalization behind a convolution."""
    rng = np.random.default_rng(2)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 6, 6] x) => (float[N, 16] y) {
            a = Conv (x, w)
            b = BatchNormalization (a, scale, shift, mean, var)
            c = Relu (b)
            d = GlobalAveragePool (c)
            y = Flatten (d)
        }""",
        w=draw(rng, 16, 3, 3, 3),
        scale=1 + draw(rng, 16),
        shift=draw(rng, 16),
        mean=draw(rng, 16),
        var=1 + np.abs(draw(rng, 16)),
    )


def sharing() -> onnx.ModelProto:
    """Two normalisations with the same statistics."""
    rng = np.random.default_rng(5)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 6, 6] x) => (float[N, 16, 4, 4] y) {
            a = Conv (x, w1)
            b = BatchNormalization (a, scale1, shift1, mean, var)
            c = Relu (b)
            d = Conv (c, w2)
            y = BatchNormalization (d, scale2, shift2, mean, var)
        }""",
        w1=draw(rng, 16, 3, 3, 3),
        scale1=1 + draw(rng, 16),
        shift1=draw(rng, 16),
        w2=draw(rng, 16, 16, 1, 1),
        scale2=1 + draw(rng, 16),
        shift2=draw(rng, 16),
        mean=draw(rng, 16),
        var=1 + np.abs(draw(rng, 16)),
    )


def halves() -> onnx.ModelProto:
    """Parameters and arithmetic in float16."""
    rng = np.random.default_rng(3)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 4] y) {
            h = Cast <to = 10> (x)
            a = MatMul (h, w1)
            b = Relu (a)
            c = MatMul (b, w2)
            y = Cast <to = 1> (c)
        }""",
        w1=draw(rng, 6, 8, dtype=np.float16),
        w2=draw(rng, 8, 4, dtype=np.float16),
    )


def layered() -> onnx.ModelProto:
    """Dense layers large enough to become pointwise convolutions, in each way they are written."""
    rng = np.random.default_rng(4)
    return parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 256] x) => (float[N, 10] y, float[N, 256] d) {
            a = Gemm <transB = 1> (x, w1, b1)
            b = Relu (a)
            c = Gemm (b, w2, b2)
            d = Relu (c)
            e = MatMul (d, w3)
            f = Add (e, b3)
            y = Gemm <transB = 1> (f, w4, b4)
        }""",
        w1=draw(rng, 300, 256),
        b1=draw(rng, 300),
        w2=draw(rng, 300, 256),
        b2=draw(rng, 256),
        w3=draw(rng, 256, 272),
        b3=draw(rng, 272),
        w4=draw(rng, 10, 272),
        b4=draw(rng, 10),
    )


def unmarked() -> onnx.ModelProto:
    """Constants that are no parameters and look like the numbers that mark parameters."""
    model = dense()
    for tensor in model.graph.initializer:
        if tensor.name in ("same", "alike"):
            looks = np.array([1, np.nextafter(np.float32(1), np.float32(2)), 2, 4], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(looks, tensor.name))
    return model


def hardened(
    form: Form, granularity: Granularity, sharing: Sharing | None = None
) -> onnx.ModelProto:
    model = convolutional()
    thresholds = {
        activation.tensor: np.full(threshold_shape(activation, granularity), 0.4, np.float32)
        for activation in find_activations(model)
    }
    stored = model if sharing is None else rescale(model, sharing).model
    return insert(stored, Thresholds(thresholds), form).model


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolutional": convolutional,
    "dense": dense,
    "batch of 1": lambda: dense("1"),
    "batch of 4": lambda: dense("4"),
    "normalised": normalised,
    "sharing": sharing,
    "halves": halves,
    "layered": layered,
    **{
        f"{form} {granularity}": lambda form=form, granularity=granularity: hardened(
            form, granularity
        )
        for form in Form
        for granularity in (Granularity.HYBRID, Granularity.CHANNEL)
    },
    **{
        f"rescaled {sharing} {form}": lambda form=form, sharing=sharing: hardened(
            form, Granularity.CHANNEL, sharing
        )
        for form in (Form.HARD, Form.TENT)
        for sharing in Sharing
    },
}

# ONNX Runtime calculates with normalisations, and casts float16 where it computes.
NOT_IN_PLACE = ("sharing", "halves")


def parameters_of(model: onnx.ModelProto) -> list[str]:
    return [parameter.name for parameter in fault_space(model, 32).parameters]


def images_for(model: onnx.ModelProto, count: int = 7) -> np.ndarray:
    shape = [extent or 1 for extent in image_input(model).shape[1:]]
    return np.random.default_rng(9).standard_normal((count, *shape)).astype(np.float32)


def some_writes(model: onnx.ModelProto, seed: int) -> Writes:
    """A few elements of every parameter and what to put there."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    writes = {}
    for name in parameters_of(model):
        size = stored[name].size
        elements = np.sort(rng.choice(size, min(size, 3), replace=False))
        old = stored[name].reshape(-1)[elements]
        writes[name] = (elements, old + rng.choice([-0.3, 0.3, 0.1], len(old)).astype(old.dtype))
    return writes


def changed(model: onnx.ModelProto, writes: Writes) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in writes:
            elements, values = writes[tensor.name]
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[elements] = values
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Image by image, in a new session without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    info = image_input(model)
    fixed = info.shape[0] or 1
    return np.concatenate(
        [
            session.run(None, {info.name: np.repeat(images[i : i + 1], fixed, axis=0)})[0][:1]
            for i in range(len(images))
        ]
    )


def assert_agree(ours: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ENGINES)
def test_written_parameters_are_the_ones_that_run(name: str, kind: type) -> None:
    model = MODELS[name]()
    parameters, images = parameters_of(model), images_for(model)
    if kind is InPlaceEngine and name in NOT_IN_PLACE:
        with pytest.raises(LayoutError):
            open_engine(kind, model, parameters)
        return
    engine = open_engine(kind, model, parameters)
    tolerance = 0.01 if name == "halves" else 1e-5
    untouched = engine.run(images)
    assert_agree(untouched, outputs(model, images), tolerance)
    for seed in range(3):
        writes = some_writes(model, seed)
        for parameter, (elements, values) in writes.items():
            engine.write(parameter, elements, values)
        faulty = engine.run(images)
        assert_agree(faulty, outputs(changed(model, writes), images), tolerance)
        assert not np.array_equal(faulty, untouched)
        stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for parameter, (elements, _) in writes.items():
            engine.write(parameter, elements, stored[parameter].reshape(-1)[elements])
        np.testing.assert_array_equal(engine.run(images), untouched)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_IN_PLACE])
def test_every_single_element_lies_where_the_engine_writes_it(name: str) -> None:
    """Elements one at a time: a layout wrong in one place only would show."""
    model = MODELS[name]()
    engine = InPlaceEngine(model, parameters_of(model), 1)
    images = images_for(model, 2)
    rng = np.random.default_rng(0)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for parameter in parameters_of(model):
        flat = stored[parameter].reshape(-1)
        for element in rng.choice(flat.size, min(flat.size, 6), replace=False):
            index = np.array([element])
            engine.write(parameter, index, flat[index] + np.float32(0.5))
            writes = {parameter: (index, flat[index] + np.float32(0.5))}
            assert_agree(engine.run(images), outputs(changed(model, writes), images), 1e-5)
            engine.write(parameter, index, flat[index])


@pytest.mark.parametrize("name", MODELS)
def test_the_fastest_engine_that_works_is_chosen(name: str) -> None:
    model = MODELS[name]()
    chosen = choose_engine(model, parameters_of(model), images_for(model), Provider.CPU, 1)
    expected = {
        "sharing": f"{INPUTS}the optimiser calculates with parameters, or splits them, as with "
        "'w1'",
        "halves": f"{INPUTS}parameter 'w1' is stored as float16",
    }
    assert chosen.notice == expected.get(name, IN_PLACE)


def test_constants_that_look_like_marks_are_told_from_parameters() -> None:
    model = unmarked()
    chosen = choose_engine(model, ["w1", "b1"], images_for(model), Provider.CPU, 1)
    assert chosen.notice == IN_PLACE


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("kind", ENGINES)
def test_chosen_images_run_like_a_copy_of_them(kind: type, batch: str) -> None:
    model = dense(batch)
    engine, images = open_engine(kind, model, parameters_of(model)), images_for(model, 40)
    for chosen in ([0, 1, 2, 3, 4], [32, 33, 34], [1, 7, 8, 30], [3, 1, 1, 39, 2, 0, 5]):
        expected = engine.run(images[chosen])
        np.testing.assert_array_equal(engine.run(images, np.array(chosen)), expected)
    other = images + 1
    np.testing.assert_array_equal(engine.run(other, np.array([2, 5])), engine.run(other[[2, 5]]))


def test_images_too_many_to_stay_on_the_device_are_chosen_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = dense()
    engine, images = open_engine(DeviceEngine, model, parameters_of(model)), images_for(model, 9)
    expected = engine.run(images[[1, 5, 6]])
    monkeypatch.setattr("proact_onnx.engine.device._RESIDENT_BYTES", images.nbytes - 1)
    monkeypatch.setattr(DeviceEngine, "_keep", None)
    np.testing.assert_array_equal(engine.run(images, np.array([1, 5, 6])), expected)


@pytest.mark.parametrize("kind", ENGINES)
def test_all_outputs_stream_batch_by_batch(kind: type) -> None:
    model = layered()
    engine, images = open_engine(kind, model, parameters_of(model)), images_for(model, 8)
    parts = list(engine.stream(images))
    assert [[values.shape for values in part] for part in parts] == [
        [(size, 10), (size, 256)] for size in (3, 3, 2)
    ]
    expected = run(model, {"x": images})
    for position in (0, 1):
        ours = np.concatenate([part[position] for part in parts])
        assert_agree(ours, expected[position], 1e-5)
    np.testing.assert_array_equal(np.concatenate([y for y, _ in parts]), engine.run(images))
    [[few, _]] = engine.stream(images, np.array([7, 2]))
    assert_agree(few, expected[0][[7, 2]], 1e-5)


def test_infinities_and_nan_in_parameters_run_like_any_other() -> None:
    model = convolutional()
    for kind in ENGINES:
        engine = open_engine(kind, model, parameters_of(model))
        images = images_for(model)
        before = engine.run(images)
        engine.write("b4", np.array([1, 3]), np.array([np.inf, np.nan], np.float32))
        faulty = engine.run(images)
        assert np.isposinf(faulty[:, 1]).all()
        assert np.isnan(faulty[:, 3]).all()
        np.testing.assert_array_equal(faulty[:, [0, 2, 4]], before[:, [0, 2, 4]])


def test_the_model_given_is_left_alone() -> None:
    model = convolutional()
    before = model.SerializeToString()
    for kind in ENGINES:
        engine = open_engine(kind, model, parameters_of(model))
        engine.write("w1", np.arange(9), np.zeros(9, np.float32))
        engine.run(images_for(model, 1))
    assert model.SerializeToString() == before


def test_parameters_that_are_graph_inputs_too_are_found() -> None:
    model = dense()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    images = images_for(model)
    for kind in (DeviceEngine, FreshSessionEngine):
        engine = open_engine(kind, model, parameters_of(model))
        writes = some_writes(model, 0)
        for parameter, (elements, values) in writes.items():
            engine.write(parameter, elements, values)
        assert_agree(engine.run(images), outputs(changed(dense(), writes), images), 1e-5)
    chosen = choose_engine(model, parameters_of(model), images, Provider.CPU, 1)
    assert chosen.notice.startswith("engine: ")


class _NextElement(InPlaceEngine):
    """Writes beside the element it is told to write."""

    def write(self, parameter: str, elements: np.ndarray, values: np.ndarray) -> None:
        size = {"w1": 432, "w2": 144, "w3": 256}.get(parameter)
        super().write(parameter, elements if size is None else (elements + 1) % size, values)


class _Forgetful(InPlaceEngine):
    """Keeps the first value ever written."""

    def write(self, parameter: str, elements: np.ndarray, values: np.ndarray) -> None:
        self.seen = {*getattr(self, "seen", ()), parameter}
        if parameter != "w3" or not hasattr(self, "kept"):
            super().write(parameter, elements, values)
        if parameter == "w3":
            self.kept = True


@pytest.mark.parametrize("wrong", [_NextElement, _Forgetful])
def test_an_engine_that_is_wrong_is_found_out(wrong: type, monkeypatch: pytest.MonkeyPatch) -> None:
    model = convolutional()
    monkeypatch.setattr(select, "InPlaceEngine", wrong)
    chosen = choose_engine(model, parameters_of(model), images_for(model), Provider.CPU, 1)
    assert chosen.notice == f"{INPUTS}in place disagreed with a fresh session"
    assert isinstance(chosen.engine, DeviceEngine)


def test_a_new_session_per_trial_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise ModelError("it cannot be opened")

    monkeypatch.setattr(select, "InPlaceEngine", refuse)
    monkeypatch.setattr(select, "DeviceEngine", refuse)
    model = dense()
    chosen = choose_engine(model, parameters_of(model), images_for(model), Provider.CPU, 1)
    assert chosen.notice == (
        "engine: a session per trial on the CPU, because it cannot be opened; it cannot be opened"
    )
    writes = some_writes(model, 0)
    for parameter, (elements, values) in writes.items():
        chosen.engine.write(parameter, elements, values)
    expected = outputs(changed(model, writes), images_for(model))
    assert_agree(chosen.engine.run(images_for(model)), expected, 1e-5)


FOLLOWED = [
    "c10_lenet_dynamo_op18",
    "c10_lenet_torchscript_op11",
    "c10_resnet20_torchscript_op17",
    "c10_resnet20_dynamo_op20",
    "c10_tiny_resnet8_torchscript_op17",
    "c10_resnet32_torchscript_op13_bn",
]
NOT_FOLLOWED = ["c10_resnet32_fp16"]

# Rounding in float16.
COARSE = {"c10_resnet32_fp16": 0.03}


@pytest.mark.parametrize("name", FOLLOWED + NOT_FOLLOWED)
def test_trained_networks(shared_dir: Path, name: str) -> None:
    model = prepare(load_model(shared_dir / "models" / f"{name}.onnx"), fold_batchnorm=False).model
    images = images_for(model, 4)
    if images.shape[2:] == (1, 1):
        images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    chosen = choose_engine(model, parameters_of(model), images, Provider.CPU, 2)
    assert chosen.notice.startswith(IN_PLACE if name in FOLLOWED else INPUTS)
    tolerance = COARSE.get(name, 1e-4)
    before = chosen.engine.run(images)
    assert_agree(before, outputs(model, images), tolerance)
    writes = some_writes(model, 1)
    for parameter, (elements, values) in writes.items():
        chosen.engine.write(parameter, elements, values)
    assert_agree(chosen.engine.run(images), outputs(changed(model, writes), images), tolerance)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for parameter, (elements, _) in writes.items():
        chosen.engine.write(parameter, elements, stored[parameter].reshape(-1)[elements])
    np.testing.assert_array_equal(chosen.engine.run(images), before)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("granularity", [Granularity.HYBRID, Granularity.NEURON])
def test_a_trained_network_is_followed_when_hardened(
    shared_dir: Path, form: Form, granularity: Granularity
) -> None:
    path = shared_dir / "models" / "c10_resnet20_torchscript_op17.onnx"
    model = prepare(load_model(path)).model
    thresholds = {
        activation.tensor: np.full(threshold_shape(activation, granularity), 3, np.float32)
        for activation in find_activations(model)
    }
    bounded = insert(model, Thresholds(thresholds), form).model
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    chosen = choose_engine(bounded, parameters_of(bounded), images, Provider.CPU, 2)
    assert chosen.notice == IN_PLACE
    writes = some_writes(bounded, 2)
    for parameter, (elements, values) in writes.items():
        chosen.engine.write(parameter, elements, values)
    assert_agree(chosen.engine.run(images), outputs(changed(bounded, writes), images), 1e-4)


QUANTISED = [
    "c10_resnet20_int8_qdq",
    "c10_resnet20_int8_qdq_relu",
    "c10_tiny_resnet8_int8_qoperator",
]
INTEGER_INPUTS = {"DequantizeLinear": (0,), "QLinearConv": (3, 8), "QGemm": (3, 6)}


def integers_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights and biases of a quantised model."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        name: stored[name]
        for node in model.graph.node
        for position, name in enumerate(node.input)
        if position in INTEGER_INPUTS.get(node.op_type, ()) and name in stored
    }


def flips(stored: dict[str, np.ndarray], seed: int) -> Writes:
    """A few integers of every parameter with one bit of the lowest eight flipped."""
    rng = np.random.default_rng(seed)
    writes = {}
    for name, values in stored.items():
        elements = rng.choice(values.size, min(values.size, 3), replace=False)
        bits = (1 << rng.integers(0, 8, len(elements))).astype(np.uint8).astype(values.dtype)
        writes[name] = (elements, values.reshape(-1)[elements] ^ bits)
    return writes


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("kind", [InPlaceEngine, DeviceEngine])
def test_integers_of_quantised_networks_are_overwritten(
    shared_dir: Path, name: str, kind: type
) -> None:
    model = prepare(load_model(shared_dir / "models" / f"{name}.onnx"), fold_batchnorm=False).model
    stored = integers_of(model)
    assert {values.dtype.name for values in stored.values()} >= {"int8", "int32"}
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    engine = open_engine(kind, model, list(stored))
    before = engine.run(images)
    for seed in range(3):
        writes = flips(stored, seed)
        for parameter, (elements, values) in writes.items():
            engine.write(parameter, elements, values)
        fresh = Session(changed(model, writes), Provider.CPU, 1).run(images)
        if kind is InPlaceEngine and "qdq" in name:
            # Not fused into integer kernels, so a step of a quantiser may fall to the other side.
            assert_agree(engine.run(images), fresh, 0.06)
        else:
            # The same integers through the same operators: no rounding can differ.
            np.testing.assert_array_equal(engine.run(images), fresh)
        assert not np.array_equal(fresh, before)
        for parameter, (elements, _) in writes.items():
            engine.write(parameter, elements, stored[parameter].reshape(-1)[elements])
        np.testing.assert_array_equal(engine.run(images), before)


@pytest.mark.parametrize("name", QUANTISED)
def test_scales_of_quantised_networks_are_parameters_too(shared_dir: Path, name: str) -> None:
    """Scales, those of biases included, which fused operators derive, and zero points."""
    model = prepare(load_model(shared_dir / "models" / f"{name}.onnx"), fold_batchnorm=False).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    space = fault_space(model, 32).parameters
    scales = [p.name for p in space if p.kind is Kind.QUANT_SCALE]
    points = [p.name for p in space if p.kind is Kind.ZERO_POINT]
    assert len(scales) > 20 and len(points) > 20
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    chosen = choose_engine(model, [p.name for p in space], images, Provider.CPU, 1)
    assert chosen.notice == IN_PLACE
    for parameter in (*scales[::7], *points[::9]):
        values = stored[parameter].reshape(-1)
        elements = np.arange(values.size)
        other = values * np.float32(1.5) if parameter in scales else values ^ values.dtype.type(8)
        writes = {parameter: (elements, other)}
        chosen.engine.write(parameter, *writes[parameter])
        # A step of a quantiser may fall to the other side of a tie.
        assert_agree(chosen.engine.run(images), outputs(changed(model, writes), images), 0.06)
        chosen.engine.write(parameter, elements, values)


class _NextInteger(InPlaceEngine):
    """Writes beside the integer it is told to write."""

    def write(self, parameter: str, elements: np.ndarray, values: np.ndarray) -> None:
        super().write(parameter, elements ^ 1, values)


def test_an_engine_that_is_wrong_on_integers_is_found_out(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared_dir / "models" / "c10_tiny_resnet8_int8_qoperator.onnx"
    model = prepare(load_model(path), fold_batchnorm=False).model
    parameters = [name for name, values in integers_of(model).items() if values.size % 2 == 0]
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    monkeypatch.setattr(select, "InPlaceEngine", _NextInteger)
    chosen = choose_engine(model, parameters, images, Provider.CPU, 1)
    assert chosen.notice == f"{INPUTS}in place disagreed with a fresh session"


def test_an_optimiser_that_changes_integers_is_named() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] y) {
            w = DequantizeLinear (q, scale, zero)
            y = MatMul (x, w)
        }""",
        q=np.arange(16, dtype=np.int8).reshape(4, 4),
        scale=np.float32(0.1),
        zero=np.int8(0),
    )
    optimised = changed(model, {"q": (np.array([3]), np.array([7], np.int8))})
    with pytest.raises(LayoutError, match=r"^the optimiser changes parameter 'q'$"):
        find_places(model, optimised, ["q"], lambda given: given)
    assert find_places(model, model, ["q"], lambda given: given) == {"q": [("q", None)]}
