"""Constants that follow the parameters they are computed from."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from proact_onnx.engine.derived import derived_to_initializers
from tests.numerics import Array, operators, parse, random_feed, run, run_reference

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
GENERATOR = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def model(body: str, **weights: Array) -> onnx.ModelProto:
    return parse(f"{HEAD} net (float[N, 4] x) => (float[N, 4] y) {{ {body} }}", **weights)


def stored(network: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in network.graph.initializer}


CHAIN = "a = Neg(w)  b = Mul(a, v)  c = Abs(u)  d = Add(x, b)  y = Mul(d, c)"


def chain() -> onnx.ModelProto:
    return model(CHAIN, w=normal(4), v=normal(4), u=normal(4))


def test_constants_become_initializers() -> None:
    network = chain()
    rewritten, derivations = derived_to_initializers(network, ["w", "v", "u"])
    onnx.checker.check_model(rewritten, full_check=True)
    assert operators(rewritten) == ["Add", "Mul"]
    assert {(d.sources, d.results) for d in derivations} == {
        (("v", "w"), ("b",)),
        (("u",), ("c",)),
    }
    held = stored(rewritten)
    np.testing.assert_array_equal(held["b"], -held["w"] * held["v"])
    np.testing.assert_array_equal(held["c"], np.abs(held["u"]))
    feed = random_feed(network)
    np.testing.assert_array_equal(run(rewritten, feed)[0], run_reference(network, feed)[0])


def test_they_follow_their_parameters() -> None:
    network = chain()
    _, derivations = derived_to_initializers(network, ["w", "v", "u"])
    changed = {name: value + 1 for name, value in stored(network).items()}
    values = {name: value for d in derivations for name, value in d.derive(changed).items()}
    np.testing.assert_array_equal(values["b"], -changed["w"] * changed["v"])
    np.testing.assert_array_equal(values["c"], np.abs(changed["u"]))


def test_a_parameter_that_is_read_directly_too_stays_in_use() -> None:
    network = model("a = Neg(w)  b = Add(x, a)  y = Mul(b, w)", w=normal(4))
    rewritten, _ = derived_to_initializers(network, ["w"])
    assert operators(rewritten) == ["Add", "Mul"]
    feed = random_feed(network)
    np.testing.assert_array_equal(run(rewritten, feed)[0], run(network, feed)[0])


@pytest.mark.parametrize(
    ("body", "weights", "parameters"),
    [
        ("y = Add(x, w)", {"w": normal(4)}, ["w"]),
        ("a = Neg(w)  y = Add(x, a)", {"w": normal(4)}, []),
        ("a = Neg(w)  y = MatMul(x, a)", {"w": normal(4, 1 << 15)}, ["w"]),
        (
            "a = DequantizeLinear(w, s)  y = Add(x, a)",
            {"w": np.arange(4, dtype=np.int8), "s": np.float32(0.5)},
            ["w"],
        ),
        ("a = RandomUniformLike(w)  y = Add(x, a)", {"w": normal(4)}, ["w"]),
    ],
    ids=["nothing", "no parameter", "large", "quantised", "random"],
)
def test_what_stays_as_it_is(body: str, weights: dict[str, Array], parameters: list[str]) -> None:
    network = model(body, **{name: np.asarray(value) for name, value in weights.items()})
    rewritten, derivations = derived_to_initializers(network, parameters)
    assert rewritten is network
    assert derivations == []
