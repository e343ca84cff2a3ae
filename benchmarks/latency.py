"""Latency of models in ONNX Runtime on the CPU: medians, and ratios to the first model.

    python benchmarks/latency.py model.onnx [hardened.onnx ...] --batch 1,64 --threads 2

Sessions have ONNX Runtime's default optimisation, which is what a deployed file gets. In every
round each model has its turn, so that all see the same machine; ratios are medians of the ratios
within a round. The last column counts what the optimiser leaves: nodes, and among them those that
only change the memory layout, between its blocks of channels and the layout of ONNX.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from proact_onnx.model import image_input, load_model

# A sample takes at least this long, so that the clock and a single interruption count little.
_SAMPLE_SECONDS = 0.05
_REORDERS = ("ReorderInput", "ReorderOutput")


def main() -> None:
    """Measure all models at every batch size and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--batch", default="1,64", help="images per run; several with commas")
    parser.add_argument("--threads", type=int, default=2, help="within an operator")
    parser.add_argument("--rounds", type=int, default=31, help="turns of every model")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch.split(",")]
    sessions, graphs = [], []
    for path in arguments.models:
        session, graph = _open(path, arguments.threads)
        sessions.append(session)
        graphs.append(graph)
    extents = image_input(load_model(arguments.models[0])).shape[1:]
    table = Table("model", *(f"{size} (ms)\nratio" for size in sizes), "nodes\nreorders")
    columns = []
    for size in sizes:
        shape = (size, *(extent or 1 for extent in extents))
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
        columns.append(_measure(sessions, images, arguments.rounds))
    for number, path in enumerate(arguments.models):
        table.add_row(path.stem, *(column[number] for column in columns), graphs[number])
    Console().print(table)


def _open(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, str]:
    """Load a model, and count the nodes of its optimised graph and the reorders among them."""
    with TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.optimized_model_filepath = str(optimised)
        # The warning that the written graph fits this machine only.
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(optimised).graph.node
    reorders = sum(node.op_type in _REORDERS for node in nodes)
    return session, f"{len(nodes)}\n{reorders}"


def _measure(
    sessions: Sequence[onnxruntime.InferenceSession],
    images: npt.NDArray[np.float32],
    rounds: int,
) -> list[str]:
    """Median milliseconds of a run, and below it the median ratio to the first model."""
    _seconds(sessions[0], images, 1)
    repetitions = max(1, round(_SAMPLE_SECONDS / _seconds(sessions[0], images, 1)))
    samples = np.array(
        [[_seconds(session, images, repetitions) for session in sessions] for _ in range(rounds)]
    )
    ratios = samples / samples[:, :1]
    return [
        f"{1000 * statistics.median(samples[:, number]):.2f}\n"
        f"{statistics.median(ratios[:, number]):.2f}"
        for number in range(len(sessions))
    ]


def _seconds(
    session: onnxruntime.InferenceSession, images: npt.NDArray[np.float32], repetitions: int
) -> float:
    feed = {session.get_inputs()[0].name: images}
    started = time.perf_counter()
    for _ in range(repetitions):
        session.run(None, feed)
    return (time.perf_counter() - started) / repetitions


if __name__ == "__main__":
    main()
