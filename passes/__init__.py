"""Rewrites of ONNX graphs: a library of its own, on onnx, onnx-graphsurgeon and numpy.

How to write a pass:

1. One file, one class, one test file. The docstring states the pattern, the formula and when the
   pass refuses.
2. Derive from `Pass` and give it a ``name``.
3. ``requires(graph)`` raises `PreconditionError` where the graph cannot be worked on.
4. ``call(graph)`` edits the graphsurgeon graph in place and returns how often it changed it.
   Compare nodes and tensors with ``is``, never with ``==``, and never hash them.
5. Keep names: rewire a node's own outputs instead of renaming what others read, and never clear
   ``tensor.outputs``, which disconnects every reader.
6. ``ensures(graph)`` raises `PostconditionError` where the result breaks the pass's promise.
7. A match that is not rewritten for a reason is recorded with the reason.

Run passes with `run_passes`, which also puts back what graphsurgeon loses. They see the main graph
alone; `run_in_subgraphs` runs them inside subgraphs.
"""

from passes.base import Pass, PassError, PostconditionError, PreconditionError, run_passes
from passes.cleanup import Cleanup
from passes.cut import CutPoint, DataFlow, data_flow, part_between
from passes.expand_pools import ExpandPools
from passes.expose_extremes import EXTREMES_OPSET, Extremes, expose_extremes
from passes.expose_tensors import ExposeTensors
from passes.fold_batchnorm import FoldBatchnorm, Refusal
from passes.forms import LOWEST_OPSET, Form
from passes.insert_bounds import BoundedSite, InsertBounds
from passes.insert_hyrelu import InsertHyReLU, Site
from passes.lift_constants import LiftConstants
from passes.lift_subgraphs import lift_subgraphs
from passes.monitor import MONITOR_OPSET, AddMonitor, Bound
from passes.normalize_activations import NormalizeActivations
from passes.rescale_weights import (
    RESCALE_OPSET,
    SCALE_SUFFIX,
    Range,
    RescaleWeights,
    Sharing,
    StoredLayer,
    SurveyLayers,
)
from passes.restore_rectifiers import RestoreRectifiers
from passes.subgraphs import nested_graphs, run_in_subgraphs
from passes.take_branches import take_branches

__all__ = [
    "EXTREMES_OPSET",
    "LOWEST_OPSET",
    "MONITOR_OPSET",
    "RESCALE_OPSET",
    "SCALE_SUFFIX",
    "AddMonitor",
    "Bound",
    "BoundedSite",
    "Cleanup",
    "CutPoint",
    "DataFlow",
    "ExpandPools",
    "ExposeTensors",
    "Extremes",
    "FoldBatchnorm",
    "Form",
    "InsertBounds",
    "InsertHyReLU",
    "LiftConstants",
    "NormalizeActivations",
    "Pass",
    "PassError",
    "PostconditionError",
    "PreconditionError",
    "Range",
    "Refusal",
    "RescaleWeights",
    "RestoreRectifiers",
    "Sharing",
    "Site",
    "StoredLayer",
    "SurveyLayers",
    "data_flow",
    "expose_extremes",
    "lift_subgraphs",
    "nested_graphs",
    "part_between",
    "run_in_subgraphs",
    "run_passes",
    "take_branches",
]
