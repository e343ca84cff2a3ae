"""What a trial costs beside the inference it does: ratios of medians, measured in one run.

    python benchmarks/trials.py model.onnx [model.onnx ...] --images 256,32

Fault-free inference is the fastest session ONNX Runtime gives, with all its optimisers. Trials and
inference alternate, so that both see the same machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from proact_onnx.campaign.encoded import encode_model
from proact_onnx.engine import Session, choose_engine
from proact_onnx.faults import FaultModel, FixedPoint, Rate, fault_space
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import prepare

_RATES = (1e-7, 1e-6, 1e-5, 3e-5)
_REPETITIONS = 15


def main() -> None:
    """Measure every model at every rate and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", default="256,32", help="of a trial; several with commas")
    arguments = parser.parse_args()
    columns = ["model", "engine", "images", "BER", "flips", "faults only (ms)"]
    table = Table(*columns, "inference (ms)", "trial / inference")
    for path in arguments.models:
        for images in map(int, arguments.images.split(",")):
            for row in _measure(path, images):
                table.add_row(path.stem, *row)
    Console().print(table)


def _measure(path: Path, images: int) -> list[list[str]]:
    model = prepare(load_model(path), fold_batchnorm=False).model
    number_format = FixedPoint(15, 16)
    space = fault_space(model, number_format.width)
    encoded = encode_model(model, space, number_format)
    declared = image_input(model)
    shape = (images, *(extent or 1 for extent in declared.shape[1:]))
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    batch = declared.shape[0] or images
    chosen = choose_engine(encoded.model, list(encoded.parameters), noise, batch_size=batch)
    fastest = Session(model, batch_size=batch)
    engine = chosen.engine
    rows = []
    for ber in _RATES:
        flips, alone, trials, plain = [], [], [], []
        for number in range(_REPETITIONS):
            started = time.perf_counter()
            faults = FaultModel(Rate(ber)).draw(space, 0, number)
            injection = encoded.inject(faults)
            injection.put(engine)
            flipped = time.perf_counter()
            engine.run(noise)
            finished = time.perf_counter()
            injection.undo(engine)
            restored = time.perf_counter()
            flips.append(injection.flips)
            alone.append(restored - finished + flipped - started)
            trials.append(restored - started)
            plain.append(_seconds(lambda: fastest.run(noise)))
        ratio = statistics.median(trials) / statistics.median(plain)
        milliseconds = 1000 * statistics.median(alone)
        rows.append(
            [
                engine.name,
                f"{images:,}",
                f"{ber:g}",
                f"{statistics.median(flips):,.0f}",
                f"{milliseconds:.2f}",
                f"{1000 * statistics.median(plain):.1f}",
                f"{ratio:.3f}",
            ]
        )
    return rows


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
