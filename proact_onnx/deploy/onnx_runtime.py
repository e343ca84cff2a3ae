"""ONNX Runtime, on each of its providers that works here."""

from dataclasses import dataclass

import numpy as np
import onnx

from proact_onnx.deploy.base import Array, Feeds, Program, Shapes
from proact_onnx.engine import (
    BatchRunner,
    Provider,
    create_session,
    provider_works,
    runtime_version,
    session_options,
)


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime; its default optimisation is what a deployed file gets.

    Attributes:
        name: As the user types it.
        provider: Where it runs.
        tolerance: Largest error of its outputs, relative to the largest output.
        timed: Whether its latency means anything.
        optimise: Whether it rewrites the graph.
    """

    name: str
    provider: Provider
    tolerance: float
    timed: bool = True
    optimise: bool = True

    def available(self) -> bool:
        """Tell whether sessions really run on the provider."""
        return provider_works(self.provider)

    def version(self) -> str:
        """Version of the installed package."""
        return runtime_version()

    def load(self, model: onnx.ModelProto, shapes: Shapes) -> Program:
        """Load a model as it is, open batch axis included; see `Runtime.load`."""
        options = session_options(optimise=self.optimise)
        created = create_session(model, self.provider, options)
        session = BatchRunner(created, model, batch_size=1)

        def run(feeds: Feeds) -> list[Array]:
            return [np.asarray(value) for value in session.call(feeds, session.outputs)]

        return run
