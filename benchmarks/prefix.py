"""What prefix reuse saves: trials with and without it, alternating, medians in one run.

    python benchmarks/prefix.py model.onnx [model.onnx ...] --images 256

First layer by layer, one bit flipped in every layer with parameters; then at a bit error rate,
where a trial without a flip costs nothing with reuse and a run of the network without. Scores are
compared bit for bit. Opening stages is not part of a trial and is reported beside.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from proact_onnx.campaign.encoded import EncodedModel, Injection, encode_model
from proact_onnx.engine import PrefixCache, Stage, Workload, choose_engine
from proact_onnx.faults import FaultModel, FaultSpace, fault_space, parse_fault_model, parse_format
from proact_onnx.model import image_input, load_model
from proact_onnx.rewrite import prepare

_REPETITIONS = 3
_BER = 1e-7
_TRIALS = 30
# Trials of the campaign that stages are planned for.
_PLANNED = 2000


@dataclass(frozen=True)
class _Network:
    space: FaultSpace
    encoded: EncodedModel
    stages: PrefixCache
    every: np.ndarray


def main() -> None:
    """Measure every model and print one table a comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--cache-memory", type=int, default=4096, help="MiB")
    arguments = parser.parse_args()
    columns = [
        "model",
        "trials",
        "stages",
        "opening (s)",
        "whole (s)",
        "reuse (s)",
        "ratio",
        "same",
    ]
    layers = Table(*columns, title=f"one trial a layer, {arguments.images} images")
    rate = Table(*columns, title=f"trials at BER {_BER:g}, {arguments.images} images")
    for path in arguments.models:
        layers.add_row(path.stem, *_layer_by_layer(path, arguments))
        rate.add_row(path.stem, *_at_rate(path, arguments))
    Console().print(layers, rate)


def _layer_by_layer(path: Path, arguments: argparse.Namespace) -> list[str]:
    network = _open(path, arguments, ())
    model = parse_fault_model("single")
    layers = dict.fromkeys(parameter.layer for parameter in network.space.parameters)
    faults = [
        _draw(network, network.space.restrict(layers=[layer]), model, number)
        for number, layer in enumerate(layers)
    ]
    return _compare(network, faults)


def _at_rate(path: Path, arguments: argparse.Namespace) -> list[str]:
    network = _open(path, arguments, (_BER,))
    model = parse_fault_model(f"ber={_BER!r}")
    faults = [_draw(network, network.space, model, number) for number in range(_TRIALS)]
    return _compare(network, faults)


def _open(path: Path, arguments: argparse.Namespace, rates: tuple[float, ...]) -> _Network:
    model = prepare(load_model(path), fold_batchnorm=False).model
    memory_format = parse_format("Q15.16")
    space = fault_space(model, memory_format.width)
    encoded = encode_model(model, space, memory_format)
    shape = (arguments.images, *(extent or 1 for extent in image_input(model).shape[1:]))
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    engine = choose_engine(encoded.model, list(encoded.parameters), noise).engine
    # Layer by layer, every parameter is as likely as any other.
    bits = {p.name: p.size * len(p.bits) if rates else 1 for p in space.parameters}
    workload = Workload(bits, _PLANNED, 0, rates)
    budget = arguments.cache_memory << 20
    stages = PrefixCache(encoded.model, engine, noise, engine.run(noise), workload, budget)
    return _Network(space, encoded, stages, np.arange(arguments.images))


def _draw(network: _Network, space: FaultSpace, model: FaultModel, number: int) -> Injection:
    return network.encoded.inject(model.draw(space, 0, number))


def _compare(network: _Network, trials: Sequence[Injection]) -> list[str]:
    stages = network.stages
    started = time.perf_counter()
    served = [stages.for_faults(trial.words) for trial in trials]
    opening = time.perf_counter() - started
    golden = stages.whole.run(network.every)
    whole: list[float] = []
    reuse: list[float] = []
    same = True
    for trial, stage in zip(trials, served, strict=True):
        pairs = [_pair(network, trial, stage, golden) for _ in range(_REPETITIONS)]
        whole.append(statistics.median(pair[0] for pair in pairs))
        reuse.append(statistics.median(pair[1] for pair in pairs))
        same = same and all(pair[2] for pair in pairs)
    return [
        str(len(trials)),
        f"{stages.made} of {len(stages.planned)}",
        f"{opening:.1f}",
        f"{sum(whole):.2f}",
        f"{sum(reuse):.2f}",
        f"{sum(whole) / sum(reuse):.2f}",
        "yes" if same else "no",
    ]


def _pair(
    network: _Network, trial: Injection, stage: Stage, golden: np.ndarray
) -> tuple[float, float, bool]:
    """Seconds of a trial without and with reuse, and whether the scores are the same."""
    started = time.perf_counter()
    expected = _scores(network, trial, network.stages.whole)
    between = time.perf_counter()
    scores = _scores(network, trial, stage) if trial.words else golden
    finished = time.perf_counter()
    return between - started, finished - between, scores.tobytes() == expected.tobytes()


def _scores(network: _Network, trial: Injection, stage: Stage) -> np.ndarray:
    try:
        trial.put(stage.engine)
        return stage.run(network.every)
    finally:
        trial.undo(stage.engine)


if __name__ == "__main__":
    main()
