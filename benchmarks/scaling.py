"""How campaigns scale with workers, and what the campaign's own process does for each trial.

    python benchmarks/scaling.py model.onnx images.npz --mean 0.485,0.456,0.406 \
        --std 0.229,0.224,0.225

First the same campaign in this process and with 1, 2, ... workers of one thread each, in turns. The
rate is that of trials after the first, so the start is told apart. Processor time is told as well:
on a busy machine it says more than the clock. Then workers that answer at once with results made
beforehand, in blocks of several sizes: what remains is the driver. Last, how many bytes the
messages have. Workers beyond the processors of the machine say nothing of scaling.
"""

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from rich.console import Console
from rich.table import Table

from proact_onnx.campaign import Campaign, Executor, LocalExecutor, TrialResult
from proact_onnx.campaign.executor import Answer, Block, Crew, Job, Reuse
from proact_onnx.campaign.series import Dispatch, Series
from proact_onnx.campaign.store import CampaignFile, CampaignHeader
from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.distribute.executor import RayExecutor
from proact_onnx.distribute.remote import RemoteWorker
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.settings import InjectSettings, RuntimeSettings

_BLOCK_SIZES = (1, 10, 100)
_BLOCKS = 500


@dataclass(frozen=True)
class Run:
    """What one campaign took.

    Attributes:
        start: Seconds to the first result.
        rate: Trials a second from there on.
        driver: Processor seconds of this process for each trial.
    """

    start: float
    rate: float
    driver: float


class Clock(LogReporter):
    """Notes when trials finish."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor: list[float] = []

    def advance(self, steps: int = 1) -> None:
        """Note one."""
        self.times.append(time.perf_counter())
        self.processor.append(time.process_time())


class IdleWorker(RemoteWorker):
    """Answers as if a block had been run."""

    _result: TrialResult | None = None

    def run(self, block: Block) -> Answer:
        """Give the first trial's result for all of them."""
        if self._result is None:
            self._result = super().run(replace(block, trials=block.trials[:1])).results[0]
        results = tuple(replace(self._result, trial=trial) for trial in block.trials)
        return Answer(block, results, 0.0, Reuse())


class Kept:
    """Opens another executor, and keeps the job."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.job: Job | None = None

    @contextmanager
    def open(self, job: Job, reporter: Reporter) -> Iterator[Crew]:
        """Get ready for a job."""
        self.job = job
        with self._executor.open(job, reporter) as crew:
            yield crew


class BlocksOfOneSize:
    """A crew all of whose blocks have one size, the last ones too."""

    places = 1

    def __init__(self, crew: Crew, size: int) -> None:
        self._crew, self.block_size = crew, size
        self.facts, self.reuse = crew.facts, crew.reuse
        self.submit, self.collect = crew.submit, crew.collect

    @property
    def free(self) -> int:
        """Blocks that can be submitted now."""
        return self._crew.free


def measure(campaign: Campaign, executor: Executor, folder: Path) -> Run:
    """Run a campaign from its beginning."""
    clock, record = Clock(), folder / "run.jsonl"
    record.unlink(missing_ok=True)
    started = time.perf_counter()
    campaign.run(record, clock, executor)
    first, last = clock.times[0], clock.times[-1]
    after = len(clock.times) - 1
    driver = (clock.processor[-1] - clock.processor[0]) / after
    return Run(first - started, after / (last - first), driver)


def drive(job: Job, workers: int, size: int, folder: Path) -> tuple[float, float, TrialResult]:
    """Blocks a second, the driver's processor seconds for each, and one of the results."""
    fault = next(iter(job.sources))
    executor = RayExecutor(workers, worker=IdleWorker)
    header = CampaignHeader({}, {}, {})
    with (
        executor.open(job, LogReporter()) as crew,
        CampaignFile(folder / f"idle-{size}.jsonl", header) as file,
    ):
        series = Series(fault, size * _BLOCKS, job.images)
        results = Dispatch([series], BlocksOfOneSize(crew, size), {}).results(series)
        # The first trial of every worker is a real one.
        for _ in range(4 * workers * size):
            file.append(next(results))
        started, processor, blocks = time.perf_counter(), time.process_time(), 0
        for result in results:
            file.append(result)
            blocks += 1
        seconds, used = time.perf_counter() - started, time.process_time() - processor
        blocks //= size
        return blocks / seconds, used / blocks, result


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas."""
    return tuple(float(item) for item in text.split(","))


def size_of(message: object) -> int:
    """Bytes of a message."""
    return len(pickle.dumps(message, protocol=5))


def scaling_table(found: dict[str, list[Run]]) -> Table:
    """Show the rates, as medians."""
    table = Table("trials run in", "s to the first", "trials/s", "times one worker", box=None)
    table.add_column("driver, ms a trial")
    rates = {name: statistics.median(run.rate for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        start = statistics.median(run.start for run in runs)
        driver = statistics.median(run.driver for run in runs)
        ratio = rates[name] / rates["workers: 1"]
        table.add_row(
            name, f"{start:.1f}", f"{rates[name]:.1f}", f"{ratio:.2f}", f"{1e3 * driver:.2f}"
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--mean", type=numbers, default=(0.0,))
    parser.add_argument("--std", type=numbers, default=(1.0,))
    parser.add_argument("--ber", type=float, default=1e-5)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--trial-images", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="the largest number")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    campaign = Campaign(
        options.model,
        load_dataset(options.images),
        InjectSettings(ber=(options.ber,), trials=options.trials, images=options.trial_images),
        Preprocessing(mean=options.mean, std=options.std),
        RuntimeSettings(provider="cpu", threads=1),
    )
    kept = Kept(LocalExecutor())
    executors: dict[str, Executor] = {"this process": kept}
    executors |= {f"workers: {n}": RayExecutor(n) for n in range(1, options.workers + 1)}
    ray.init(
        address="local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, list[Run]] = {name: [] for name in executors}
        for _ in range(options.repeats):
            for name, executor in executors.items():
                found[name].append(measure(campaign, executor, folder))
        console.print(scaling_table(found))
        job = kept.job
        assert job is not None, "the campaign in this process opened it"
        driver = Table("trials a block", "blocks/s", "trials/s", "driver, ms a block", box=None)
        sizes = Table("message", "bytes", box=None)
        fault = next(iter(job.sources))
        for size in _BLOCK_SIZES:
            blocks, seconds, result = drive(job, options.workers, size, folder)
            cells = (f"{blocks:,.0f}", f"{blocks * size:,.0f}", f"{1e3 * seconds:.2f}")
            driver.add_row(str(size), *cells)
            trials = tuple(range(size))
            results = tuple(replace(result, trial=trial) for trial in trials)
            block = Block(fault, trials, job.images)
            answer = Answer(block, results, 1.0, Reuse())
            sizes.add_row(f"block of {size}", f"{size_of(block):,}")
            sizes.add_row(f"answer of {size}", f"{size_of(answer):,}")
        sizes.add_row("job, once a machine", f"{size_of(job):,}")
        console.print(driver)
        console.print(sizes)
    ray.shutdown()


if __name__ == "__main__":
    main()
