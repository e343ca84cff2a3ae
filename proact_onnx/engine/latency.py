"""How long models take beside each other."""

import time
from collections.abc import Sequence

import numpy as np
import onnx

from proact_onnx.engine.session import Array, Provider, Session

# A sample takes at least this long, so that the clock and a single interruption count little.
_SAMPLE_SECONDS = 0.02


def latency_ratios(
    models: Sequence[onnx.ModelProto],
    images: Array,
    provider: Provider = Provider.AUTO,
    threads: int = 0,
    rounds: int = 15,
) -> list[float]:
    """Measure how much longer models take than the first of them.

    In every round each model has its turn, so that all see the same machine; a ratio is the median
    of the ratios within a round.

    Args:
        models: Models with the same input.
        images: One batch, preprocessed, ``[batch, ...]``.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        rounds: How often each model has its turn.

    Returns:
        A ratio for each model; 1 for the first.

    Raises:
        ModelError: If ONNX Runtime refuses a model.
    """
    sessions = [Session(model, provider, threads, len(images)) for model in models]
    started = time.perf_counter()
    for session in sessions:
        session.run(images)
    once = (time.perf_counter() - started) / len(sessions)
    repeats = max(1, round(_SAMPLE_SECONDS / once))
    taken = np.empty((rounds, len(sessions)))
    for turn in range(rounds):
        for number, session in enumerate(sessions):
            started = time.perf_counter()
            for _ in range(repeats):
                session.run(images)
            taken[turn, number] = time.perf_counter() - started
    ratios: list[float] = np.median(taken / taken[:, :1], axis=0).tolist()
    return ratios
