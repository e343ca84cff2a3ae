"""ONNX's own reference implementation: slow, and what all others are compared with."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from proact_onnx.deploy.base import TOLERANCE, Array, Feeds, Program, Shapes


@dataclass(frozen=True)
class Reference:
    """``onnx.reference``, in numpy."""

    name: str = "reference"
    tolerance: float = TOLERANCE
    timed: bool = False

    def available(self) -> bool:
        """Always."""
        return True

    def version(self) -> str:
        """Version of the package onnx."""
        return str(onnx.__version__)

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model; see `Runtime.load`."""
        evaluator = ReferenceEvaluator(model)

        def run(feeds: Feeds) -> list[Array]:
            # Faulty models overflow, and numpy would say so for every operator.
            with np.errstate(all="ignore"):
                return [np.asarray(value) for value in evaluator.run(None, dict(feeds))]

        return run
