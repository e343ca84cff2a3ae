"""A bound behind values that may be negative, from above or from both sides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from passes.base import Pass, PreconditionError
from passes.edits import input_at, position, tensor_names
from passes.forms import (
    GATE_END,
    LESS_OR_EQUAL,
    Form,
    ensure_thresholds,
    require_opset,
    require_thresholds,
)
from passes.monitor import Bound
from passes.steps import Steps

# The first opset whose Clip takes its limits as inputs.
_CLIP_INPUTS = 11


@dataclass(frozen=True)
class BoundedSite:
    """A tensor to bound.

    Attributes:
        tensor: Its name; the bounded value takes it over.
        upper: Finite thresholds, not below zero, in the tensor's own floating-point type, of a
            shape that broadcasts against it.
        upper_name: Name of the initializer that stores them.
        lower: Thresholds from below, not above zero; None where the values end there by nature.
        lower_name: Name of the initializer that stores those.
    """

    tensor: str
    upper: npt.NDArray[np.floating]
    upper_name: str
    lower: npt.NDArray[np.floating] | None = None
    lower_name: str = ""

    def ends(self) -> list[tuple[npt.NDArray[np.floating], str]]:
        """How far the values reach on each bounded side of zero, and what stores it."""
        upper = [(self.upper, self.upper_name)]
        return upper if self.lower is None else [*upper, (-self.lower, self.lower_name)]


@dataclass
class InsertBounds(Pass):
    """Put a bound behind values ``v`` that may be negative.

    With lambda+ the upper and lambda- the lower threshold:

    1. hard, ``v`` where ``lambda- <= v <= lambda+``, else 0: ``Where(And(LessOrEqual(lambda-, v),
       LessOrEqual(v, lambda+)), v, 0)``; before opset 12, ``Less`` with the next number outside.
    2. saturate, the nearest of the two thresholds: ``Clip`` for single ones from opset 11 on, or
       else ``Min(Max(v, lambda-), lambda+)``. A Clip of the graph with constant limits gets
       thresholds in their place instead of a second Clip. NaN passes on some runtimes.
    3. smooth, each side as in `InsertHyReLU`: ``v * sigmoid(z)`` where ``z > -16``, else 0, with
       ``z = k (limit - |v|)``, or ``k (limit - |v|) / |limit|``, and limit ``-lambda-`` for
       negative v, ``lambda+`` for others.
    4. ramp, the identity up to a threshold, and back to 0 at twice the threshold:
       ``Max(Min(v, 2 lambda+ - v), 2 lambda- - v)`` where ``2 lambda- < v < 2 lambda+``, else 0.
       It stands for the tent, too.

    Without lower thresholds what concerns them is left out. Infinity and NaN give 0 in all but
    saturate, for no comparison with NaN holds.

    The node that wrote the tensor writes ``<tensor>/hyrelu/value``, and the bound writes the
    original name, so that every reader and every graph output follows.

    Attributes:
        sites: The tensors to bound.
        form: Which form.
        slope: k of the smooth form.
        relative_slope: Whether k counts in units of 1 / limit.
        bounds: The bounds that were written, in the order of the sites.
    """

    sites: Sequence[BoundedSite]
    form: Form = Form.HARD
    slope: float = 20.0
    relative_slope: bool = True
    name: str = "insert-bounds"
    bounds: list[Bound] = field(default_factory=list, init=False)
    _constants: dict[str, gs.Constant] = field(default_factory=dict, init=False)

    def requires(self, graph: gs.Graph) -> None:
        """Check form, opset, tensors and thresholds.

        Raises:
            PreconditionError: If the form is not defined for values that may be negative, the
                opset is too old for it, a tensor is not written by a node, a threshold is not
                finite or lies on the wrong side of zero, or its name is taken.
        """
        if not self.sites:
            return
        if self.form not in _FORMS:
            raise PreconditionError(
                f"form {self.form.value!r} is for values that are never negative, and those of "
                f"{self.sites[0].tensor!r} may be: choose among {', '.join(_FORMS)}"
            )
        require_opset(graph, self.form)
        ends = [(site.tensor, end, name) for site in self.sites for end, name in site.ends()]
        require_thresholds(graph, ends)
        for tensor, values, _ in ends:
            if (values < 0).any():
                raise PreconditionError(f"a threshold of {tensor!r} lies on the wrong side of zero")

    def call(self, graph: gs.Graph) -> int:
        """Bound every site."""
        self._constants.clear()
        self.bounds.clear()
        taken = tensor_names(graph)
        taken.update(node.name for node in graph.nodes)
        producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        for site in self.sites:
            node = producers[site.tensor]
            if self.form is Form.SATURATE and _limits_are_single(node, site, graph.opset):
                _tighten(node, site)
                compared = node.inputs[0].name
            else:
                compared = self._insert(graph, node, site, taken)
            lower = None if site.lower is None else site.lower_name
            self.bounds.append(Bound(site.tensor, compared, site.upper_name, lower))
        return len(self.sites)

    def ensures(self, graph: gs.Graph) -> None:
        """Every threshold must stand in the graph.

        Raises:
            PostconditionError: If one does not.
        """
        ensure_thresholds(
            graph, [(site.tensor, name) for site in self.sites for _, name in site.ends()]
        )

    def _insert(self, graph: gs.Graph, node: gs.Node, site: BoundedSite, taken: set[str]) -> str:
        bounded = next(tensor for tensor in node.outputs if tensor.name == site.tensor)
        steps = Steps(f"{site.tensor}/hyrelu/", site.upper.dtype, taken, self._constants)
        value = steps.take_over(node, bounded, "value")
        upper, lower = site.upper, site.lower
        if self.form is Form.HARD and graph.opset < LESS_OR_EQUAL:
            upper = np.nextafter(upper, np.asarray(np.inf, upper.dtype))
            lower = None if lower is None else np.nextafter(lower, np.asarray(-np.inf, lower.dtype))
        bound = _Bound(
            steps,
            graph.opset,
            value,
            gs.Constant(site.upper_name, np.asarray(upper)),
            None if lower is None else gs.Constant(site.lower_name, np.asarray(lower)),
            bounded,
            self.slope,
            self.relative_slope,
        )
        _FORMS[self.form](bound)
        after = position(graph, node) + 1
        graph.nodes[after:after] = steps.nodes
        return str(value.name)


@dataclass(frozen=True)
class _Bound:
    """What a form is written between."""

    steps: Steps
    opset: int
    value: gs.Tensor
    upper: gs.Constant
    lower: gs.Constant | None
    bounded: gs.Tensor
    slope: float
    relative_slope: bool

    def inside(self, compare: str, upper: gs.Tensor, lower: gs.Tensor | None) -> gs.Tensor:
        """Compare the value with both ends."""
        below = self.steps.add(compare, [self.value, upper], "below")
        if lower is None:
            return below
        above = self.steps.add(compare, [lower, self.value], "above")
        return self.steps.add("And", [above, below], "inside")

    def finish(self, condition: gs.Tensor, value: gs.Tensor) -> None:
        """Let a value pass under a condition."""
        zero = self.steps.constant("zero", 0.0)
        self.steps.finish("Where", [condition, value, zero], self.bounded)


def _hard(bound: _Bound) -> None:
    compare = "Less" if bound.opset < LESS_OR_EQUAL else "LessOrEqual"
    bound.finish(bound.inside(compare, bound.upper, bound.lower), bound.value)


def _saturate(bound: _Bound) -> None:
    steps, value, upper, lower = bound.steps, bound.value, bound.upper, bound.lower
    if lower is None:
        steps.finish("Min", [value, upper], bound.bounded)
    elif bound.opset >= _CLIP_INPUTS and not upper.shape and not lower.shape:
        steps.finish("Clip", [value, lower, upper], bound.bounded)
    else:
        raised = steps.add("Max", [value, lower], "raised")
        steps.finish("Min", [raised, upper], bound.bounded)


def _smooth(bound: _Bound) -> None:
    steps, value = bound.steps, bound.value
    reach, limit = value, bound.upper
    if bound.lower is not None:
        negative = steps.add("Less", [value, steps.constant("zero", 0.0)], "negative")
        other = steps.add("Neg", [bound.lower], "other_limit")
        limit = steps.add("Where", [negative, other, limit], "limit")
        reach = steps.add("Abs", [value], "magnitude")
    below = steps.add("Sub", [limit, reach], "below")
    steepness: gs.Tensor = steps.constant("slope", bound.slope)
    if bound.relative_slope:
        # The sign matters only when a fault has moved a threshold across zero: with it everything
        # would pass.
        unit = steps.add("Abs", [limit], "unit")
        steepness = steps.add("Div", [steepness, unit], "slope")
    scaled = steps.add("Mul", [steepness, below], "scaled")
    gated = steps.add("Mul", [value, steps.add("Sigmoid", [scaled], "gate")], "gated")
    end = steps.constant("gate_end", GATE_END)
    bound.finish(steps.add("Less", [end, scaled], "inside"), gated)


def _ramp(bound: _Bound) -> None:
    steps, value = bound.steps, bound.value
    # Runtimes compute the sums of constants once, when they load the model.
    end = steps.add("Add", [bound.upper, bound.upper], "end")
    folded = steps.add("Min", [value, steps.add("Sub", [end, value], "falling")], "folded")
    start = None
    if bound.lower is not None:
        start = steps.add("Add", [bound.lower, bound.lower], "start")
        folded = steps.add("Max", [folded, steps.add("Sub", [start, value], "rising")], "folded")
    bound.finish(bound.inside("Less", end, start), folded)


_FORMS: dict[Form, Callable[[_Bound], None]] = {
    Form.HARD: _hard,
    Form.SATURATE: _saturate,
    Form.RAMP: _ramp,
    Form.SMOOTH: _smooth,
    Form.TENT: _ramp,
}


def _limits_are_single(node: gs.Node, site: BoundedSite, opset: int) -> bool:
    """Tell whether a site is a Clip whose constant limits the thresholds can replace."""
    ends = [input_at(node, place) for place in (1, 2)] if node.op == "Clip" else []
    constant = bool(ends) and all(end is None or isinstance(end, gs.Constant) for end in ends)
    single = not site.upper.shape and (site.lower is None or not site.lower.shape)
    return constant and single and opset >= _CLIP_INPUTS


def _tighten(node: gs.Node, site: BoundedSite) -> None:
    lower, upper = input_at(node, 1), input_at(node, 2)
    highest = site.upper if upper is None else np.minimum(site.upper, upper.values.reshape(()))
    ends = [node.inputs[1], gs.Constant(site.upper_name, np.asarray(highest))]
    if site.lower is not None:
        lowest = site.lower if lower is None else np.maximum(site.lower, lower.values.reshape(()))
        ends[0] = gs.Constant(site.lower_name, np.asarray(lowest))
    node.inputs = [node.inputs[0], *ends]
