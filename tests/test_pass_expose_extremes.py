from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from passes import PreconditionError, expose_extremes, lift_subgraphs
from tests.numerics import Array, parse, run, run_reference


def extremes(
    text: str,
    tensors: list[str],
    feed: Mapping[str, Array],
    reference: bool = True,
    **weights: Array,
) -> dict[str, tuple[float, float]]:
    """Largest and smallest value of tensors inside subgraphs, as both runtimes say.

    ONNX's reference has no loops of no turns, and no scans along other axes than the first.
    """
    model, _ = lift_subgraphs(parse(text, **weights))
    own = [info.name for info in model.graph.output]
    exposed, found = expose_extremes(model, tensors)
    onnx.checker.check_model(exposed, full_check=True)
    names = [info.name for info in exposed.graph.output]
    assert names[: len(own)] == own
    values = dict(zip(names, run(exposed, feed), strict=True))
    for name, value in zip(own, run(model, feed), strict=True):
        np.testing.assert_array_equal(values[name], value)
    for name, value in zip(names, run_reference(exposed, feed) if reference else [], strict=False):
        np.testing.assert_allclose(values[name], value, rtol=1e-6)
    ends = {t: (values[each.highest], -values[each.lowest]) for t, each in found.items()}
    assert all(part.shape == (1,) for pair in ends.values() for part in pair)
    return {tensor: (float(high[0]), float(low[0])) for tensor, (high, low) in ends.items()}


BRANCHES = """
<ir_version: 8, opset_import: ["": {opset}]>
net (float[N, 2] x, bool c) => (float[N, 2] y)
{{
  y = If(c) <
    then_branch = yes () => (float[n, 2] a) {{ p = Neg(x)  a = Relu(p) }},
    else_branch = no () => (float[n, 2] b) {{ p = Relu(x)  b = Neg(p) }}
  >
}}
"""
X = np.array([[1, -2], [3, 4]], np.float32)
NOT_RUN = (-np.inf, np.inf)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (True, {"a": (2, 0), "b": NOT_RUN, "p": (2, -4), "p_2": NOT_RUN}),
        (False, {"a": NOT_RUN, "b": (0, -4), "p": NOT_RUN, "p_2": (4, 0)}),
    ],
)
def test_branches(opset: int, condition: bool, expected: dict[str, tuple[float, float]]) -> None:
    feed = {"x": X, "c": np.array(condition)}
    assert extremes(BRANCHES.format(opset=opset), ["a", "b", "p", "p_2"], feed) == expected


LOOP = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, int64 n) => (float[2] y)
{
  y, unread = Loop(n, go, x) <body = turn (int64 i, bool c, float[2] v) =>
      (bool d, float[2] w, float[2] s) {
    d = Identity(c)
    s = Neg(v)
    even = Equal(half, i)
    t = If(even) <
      then_branch = yes () => (float[2] a) { a = Mul(v, v) },
      else_branch = no () => (float[2] b) { b = Add(v, v) }
    >
    w = Relu(t)
  }>
}
"""


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (0, {"a": NOT_RUN, "b": NOT_RUN, "w": NOT_RUN}),
        (1, {"a": NOT_RUN, "b": (4, -2), "w": (4, 0)}),
        # 2, -1; doubled and rectified 4, 0; squared 16, 0; doubled 32, 0.
        (3, {"a": (16, 0), "b": (32, -2), "w": (32, 0)}),
    ],
)
def test_all_turns_of_a_loop_and_what_is_within_it(
    turns: int, expected: dict[str, tuple[float, float]]
) -> None:
    feed = {"x": np.float32([2, -1]), "n": np.array(turns)}
    weights = {"go": np.array(True), "half": np.int64(1)}
    found = extremes(LOOP, ["a", "b", "w"], feed, reference=turns > 0, **weights)
    assert found == expected


def test_outputs_of_a_loop_that_nothing_read_stay_unread() -> None:
    model = parse(LOOP, go=np.array(True), half=np.int64(1))
    del model.graph.node[0].output[1]
    model, _ = lift_subgraphs(model)
    exposed, found = expose_extremes(model, ["w"])
    onnx.checker.check_model(exposed, full_check=True)
    feed = {"x": np.float32([2, -1]), "n": np.array(2)}
    values = dict(zip([o.name for o in exposed.graph.output], run(exposed, feed), strict=True))
    assert values[found["w"].highest] == [16]


SCAN = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2] x, float[2, T] z) => (float[2] y, float[2, T] s)
{
  y, s = Scan(x, z) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
      scan_output_directions = [1], body = turn (float[2] v, float[2] u) =>
      (float[2] w, float[2] e) { w = Add(v, u)  r = LeakyRelu<alpha = 0.5>(w)  e = Neg(r) }>
}
"""


def test_scan() -> None:
    x, z = np.float32([1, 2]), np.float32([[1, 2, 3], [-2, -4, -6]])
    sums = x[:, None] + z.cumsum(axis=1)
    rectified = np.where(sums < 0, 0.5 * sums, sums)
    found = extremes(SCAN, ["r"], {"x": x, "z": z}, reference=False)
    assert found == {"r": (rectified.max(), rectified.min())}


def test_no_values_and_no_numbers() -> None:
    text = BRANCHES.format(opset=17)
    empty = {"x": np.zeros((0, 2), np.float32), "c": np.array(True)}
    assert extremes(text, ["a"], empty) == {"a": NOT_RUN}
    undefined = {"x": np.float32([[1, np.nan]]), "c": np.array(False)}
    assert extremes(text, ["b"], undefined) == {"b": (np.inf, -1)}


@pytest.mark.parametrize(
    ("opset", "tensor", "message"),
    [
        (17, "y", "no If, Loop or Scan has a tensor 'y' inside"),
        (17, "nope", "no If, Loop or Scan has a tensor 'nope' inside"),
        (8, "a", "need opset 9, and the graph has 8"),
    ],
)
def test_refusals(opset: int, tensor: str, message: str) -> None:
    model, _ = lift_subgraphs(parse(BRANCHES.format(opset=opset)))
    with pytest.raises(PreconditionError, match=message):
        expose_extremes(model, [tensor])


def test_names_do_not_collide() -> None:
    text = BRANCHES.format(opset=17).replace("(float[n, 2] a)", '(float[n, 2] "extremes/values")')
    text = text.replace("a = Relu(p)", '"extremes/values" = Relu(p)')
    found = extremes(text, ["extremes/values"], {"x": X, "c": np.array(True)})
    assert found == {"extremes/values": (2, 0)}
