"""What hardening costs: wall time and peak memory of `proact-onnx harden`, beside plain inference.

Run from anywhere; everything after the script's name goes to `proact-onnx harden`:

    python benchmarks/harden.py model.onnx --data train.npz --test-data test.npz --force

The unit that makes machines comparable is one pass of the calibration images through the model in
ONNX Runtime, the median of several.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from proact_onnx.engine import Session
from proact_onnx.model import load_model
from proact_onnx.settings import HardenSettings

_REPETITIONS = 5
_KIB_PER_GIB = 1 << 20


def main() -> None:
    """Harden in a process of its own, then time plain inference in this one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    known, options = parser.parse_known_args()
    command = [sys.executable, "-m", "proact_onnx.cli", "harden", str(known.model), *options]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / _KIB_PER_GIB
    inference = _inference_seconds(known.model)
    images = HardenSettings().calibration_images
    print(f"wall time: {seconds:.1f} s, peak memory: {peak:.2f} GiB")
    print(
        f"that is {seconds / inference:.0f} passes of {images:,} images through the model in ONNX "
        f"Runtime ({inference:.2f} s each)"
    )


def _inference_seconds(model: Path) -> float:
    session = Session(load_model(model))
    shape = [extent or 1 for extent in session.inputs[0].shape[1:]]
    noise = np.random.default_rng(0).standard_normal(
        (HardenSettings().calibration_images, *shape), np.float32
    )
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        session.run(noise)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
