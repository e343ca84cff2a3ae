"""The slowest engine, which needs nothing but documented behaviour of ONNX Runtime."""

from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from proact_onnx.engine.session import Array, Indices, Provider, Session
from proact_onnx.messages import with_values


class FreshSessionEngine:
    """Creates a new session after every change: the reference the other engines answer to.

    Args:
        model: The model, every parameter an initializer; it must not change.
        parameters: Names of the parameters that will be written to.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
    """

    name = "a session per trial"

    def __init__(
        self,
        model: onnx.ModelProto,
        parameters: list[str],
        provider: Provider = Provider.AUTO,
        threads: int = 0,
        batch_size: int = 128,
    ) -> None:
        self._model = model
        wanted = set(parameters)
        self._stored = {t.name: t for t in model.graph.initializer if t.name in wanted}
        self._changed: dict[str, Array] = {}
        self._arguments = (provider, threads, batch_size)
        self._session: Session | None = Session(model, *self._arguments)
        self.provider = self._session.provider

    def run(self, images: Array, chosen: Indices | None = None) -> Array:
        """Return the model's first output for images with the parameters as they are now.

        Args:
            images: ``[N, ...]``.
            chosen: Indices of the images to run; all when absent.
        """
        return self._current().run(images, chosen)

    def stream(self, images: Array, chosen: Indices | None = None) -> Iterator[list[Array]]:
        """Yield all outputs of the model batch by batch, each ``[batch, ...]``; see `run`."""
        session = self._current()
        return session.stream(images, session.outputs, chosen)

    def write(self, parameter: str, elements: Indices, values: Array) -> None:
        """Overwrite elements of a parameter, by flat index."""
        stored = numpy_helper.to_array(self._stored[parameter])
        changed = self._changed.pop(parameter, None)
        if changed is None:
            changed = stored.copy()
        changed.reshape(-1)[elements] = values
        if changed.tobytes() != stored.tobytes():
            self._changed[parameter] = changed
        self._session = None

    def _current(self) -> Session:
        if self._session is None:
            self._session = Session(with_values(self._model, self._changed), *self._arguments)
        return self._session
