"""Settings: the options of every command, their defaults, and ``proact.toml``."""

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from proact_onnx.data import Layout, Part, Preprocessing
from proact_onnx.errors import SettingsError

SETTINGS_FILE = "proact.toml"
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino")
EFFECTS = ("flip", "stuck-at-0", "stuck-at-1")
BURST_AXES = ("bits", "words")
TARGETS = ("onnxruntime", "openvino", "tensorrt", "opencv", "tract", "npu")
RESCALINGS = ("none", "tensor", "channel", "auto")
PROTECTIONS = ("activations", "linear")
PAPER_TRIALS = 500

# Section VI-A.
PAPER_RATES = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5)
_DEFAULT_BER = 1e-6
# With --half-width, trials go on until the interval is narrow enough, but not for ever.
_MOST_TRIALS = 100_000


def _check(value: float, name: str, low: float, high: float = float("inf")) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        span = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise SettingsError(f"{name} must be {span}, not {value:g}: choose another value")


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise SettingsError(
            f"bit error rate {rate:g} is not a probability: give a number from 0 to 1"
        )


def _check_choice(value: str, name: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingsError(f"unknown {name} {value!r}: choose among {', '.join(known)}")


@dataclass(frozen=True)
class DataSettings:
    """Where images come from.

    Attributes:
        calibration: Images to profile and train thresholds on.
        calibration_labels: Their labels, where the file above holds none.
        test: Images to measure accuracy on; hardening never learns from them.
        test_labels: Their labels, where the file above holds none.
        calibration_part: Which part of a calibration source that holds both, ``train`` or ``test``.
        test_part: Which part of a test source that holds both.
    """

    calibration: Path | None = None
    calibration_labels: Path | None = None
    test: Path | None = None
    test_labels: Path | None = None
    calibration_part: Part | None = None
    test_part: Part | None = None


@dataclass(frozen=True)
class RuntimeSettings:
    """How ONNX Runtime executes.

    Attributes:
        provider: ``auto``, ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        batch_size: Images per run, for models whose batch axis is free.
        cache_memory: MiB of memory for intermediate values of the golden run, which spare
            campaigns the computation before the first fault; 0 computes everything anew.
        operators: Shared libraries with operators that ONNX Runtime does not have itself.
    """

    provider: str = "auto"
    threads: int = 0
    batch_size: int = 128
    cache_memory: int = 512
    operators: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _check_choice(self.provider, "provider", PROVIDERS)
        _check(self.threads, "threads", 0)
        _check(self.batch_size, "batch-size", 1)
        _check(self.cache_memory, "cache-memory", 0)


class ThresholdScale(StrEnum):
    """In which unit a quantity of the training counts."""

    RELATIVE = "relative"
    ABSOLUTE = "absolute"


class OutOfRange(StrEnum):
    """What becomes of a value above its threshold."""

    ZERO = "zero"
    CLAMP = "clamp"


@dataclass(frozen=True)
class HardenSettings:
    """How a model is hardened. Defaults are the paper's where it gives one (section VI-A).

    Attributes:
        method: ``proact``, ``ranger``, ``ftclipact``, ``fitact``, ``brelu`` or
            ``clip-percentile``.
        protect: What is bounded: ``activations``, or ``linear``: also what Conv, Gemm and MatMul
            give where no activation bounds it.
        granularity: ``layer``, ``channel``, ``neuron``, ``hybrid``, or ``auto``: channel where it
            helps most within ``max_memory_overhead``, layer elsewhere; None leaves it to the
            method.
        form: How the bound is written: ``hard``, ``smooth``, ``saturate``, ``ramp`` or ``tent``;
            None leaves it to ``out_of_range``, and then to the method.
        out_of_range: Whether a value above its threshold becomes zero or the threshold; None
            leaves it to the method.
        target: Where the file will run; None for anywhere. Decides the form where a device needs
            one.
        opset: The operator set of the file; None for the model's own.
        percentile: Of the activations that thresholds start from, instead of their maximum; None
            leaves it to the method.
        rescale: What shares a power of two by which weights are stored enlarged, so that they fill
            the range of fixed-point storage: ``tensor``, ``channel``, or ``auto``: channel where it
            helps most within ``max_memory_overhead``; ``none`` stores them as they are.
        monitor: Whether the file gets one more output, which counts the values out of bounds.
        max_memory_overhead: Thresholds, scales and copies that ``auto`` may store, in per cent of
            the parameters.
        slack: Factor on profiled maxima. Another runtime's rounding must not push the largest
            legitimate value over its threshold.
        calibration_images: Images to profile and train on, at most.
        accept_images: Images that decide whether trained thresholds are kept, at most.
        max_latency: Times that method ``auto`` may make the model slower; None sets no limit.
        max_accuracy_drop: Points of accuracy that hardening may cost on the accept images.
        epochs_neuron: Epochs for neuron-wise thresholds.
        epochs: Epochs for the others.
        train_batch: Images per training step.
        learning_rate: Adam's, at the start, in the unit of ``step``.
        halve_every: Epochs after which the learning rate is halved.
        step: Whether thresholds move relative to their profiled value or absolutely. The paper
            does not say; relative makes one learning rate fit layers of any magnitude.
        train_ber: Bit error rate in a layer's parameters while its thresholds are trained; 0 trains
            without faults, as the paper does.
        temperature: T of the knowledge distillation; not in the paper. 4 is common since
            Hinton et al. (2015).
        regularisation: gamma of Eq. (8); not in the paper.
        slope: k of the smooth gate; not in the paper.
        slope_scale: Whether k counts relative to the threshold (k / lambda) or absolutely.
        patience: Epochs without a lower loss after which a layer is finished.
        distillation: Whether ``proact`` learns from the unbounded model too, or from the labels
            alone.
        progressive: Whether ``proact`` trains layer by layer, from the last to the first, or all
            layers together.
        epochs_together: Epochs where all layers are trained together.
        search_ber: Bit error rates under which ``ftclipact`` and ``auto`` measure accuracy; two at
            least.
        search_trials: Fault maps for each of them.
        search_images: Images for each fault map.
        search_rounds: Times that ``ftclipact`` narrows the interval of a threshold.
        format: How parameters are stored on the device: what rescaled weights are to fill, and
            what ``ftclipact``, ``auto`` and a training under faults inject faults into.
        seed: Decides which images go where, their order in training, and the faults of a
            search or a training.
    """

    method: str = "proact"
    protect: str = "activations"
    granularity: str | None = None
    form: str | None = None
    out_of_range: OutOfRange | None = None
    target: str | None = None
    opset: int | None = None
    percentile: float | None = None
    rescale: str = "none"
    monitor: bool = False
    max_memory_overhead: float = 0.5
    max_latency: float | None = None
    slack: float = 1.01
    calibration_images: int = 2000
    accept_images: int = 1000
    max_accuracy_drop: float = 1.0
    epochs_neuron: int = 50
    epochs: int = 20
    train_batch: int = 128
    learning_rate: float = 0.01
    halve_every: int = 10
    step: ThresholdScale = ThresholdScale.RELATIVE
    train_ber: float = 0.0
    temperature: float = 4.0
    regularisation: float = 0.1
    slope: float = 20.0
    slope_scale: ThresholdScale = ThresholdScale.RELATIVE
    patience: int = 5
    distillation: bool = True
    progressive: bool = True
    epochs_together: int = 150
    search_ber: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3)
    search_trials: int = 10
    search_images: int = 64
    search_rounds: int = 3
    format: str = "Q15.16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form is not None and self.out_of_range is not None:
            clamps = self.form == "saturate"
            if clamps != (self.out_of_range is OutOfRange.CLAMP):
                raise SettingsError(
                    f"form {self.form!r} does not {self.out_of_range} what is out of range: leave "
                    "one of the two out"
                )
        if self.percentile is not None:
            _check(self.percentile, "percentile", 90.0, 100.0)
        if len(self.search_ber) < 2 or not all(0.0 < rate <= 1.0 for rate in self.search_ber):
            raise SettingsError(
                "search-ber needs at least two bit error rates above 0 and up to 1, to measure "
                "accuracy over them"
            )
        if len(set(self.search_ber)) < len(self.search_ber):
            raise SettingsError("search-ber names a bit error rate twice: leave one out")
        _check(self.epochs_together, "epochs-together", 0)
        _check(self.search_trials, "search-trials", 1)
        _check(self.search_images, "search-images", 1)
        _check(self.search_rounds, "search-rounds", 1)
        if self.target is not None:
            _check_choice(self.target, "target", TARGETS)
        if self.opset is not None:
            # Commands must be able to print their help without loading onnx.
            from proact_onnx.model import LOWEST_OPSET

            _check(self.opset, "opset", LOWEST_OPSET)
        _check_choice(self.protect, "protect", PROTECTIONS)
        _check_choice(self.rescale, "rescale", RESCALINGS)
        _check(self.max_memory_overhead, "max-memory-overhead", 0.0)
        if self.max_latency is not None:
            _check(self.max_latency, "max-latency", 1.0)
        _check(self.slack, "slack", 1.0)
        _check(self.calibration_images, "calibration-images", 1)
        _check(self.accept_images, "accept-images", 1)
        _check(self.max_accuracy_drop, "max-accuracy-drop", 0.0, 100.0)
        _check(self.epochs_neuron, "epochs-neuron", 0)
        _check(self.epochs, "epochs", 0)
        _check(self.train_batch, "train-batch", 1)
        _check(self.learning_rate, "learning-rate", 0.0)
        _check(self.halve_every, "halve-every", 1)
        _check(self.train_ber, "train-ber", 0.0, 1.0)
        _check(self.temperature, "temperature", 1e-3)
        _check(self.regularisation, "regularisation", 0.0)
        _check(self.slope, "slope", 1e-3)
        _check(self.patience, "patience", 1)
        _check(self.seed, "seed", 0)

    def search(self, targets: Sequence[str] = ()) -> "InjectSettings":
        """What methods that search measure under fault.

        Args:
            targets: Kinds of parameter to fault; empty for all.
        """
        return InjectSettings(
            ber=self.search_ber,
            trials=self.search_trials,
            images=self.search_images,
            format=self.format,
            targets=tuple(targets),
            seed=self.seed,
        )


class Protocol(StrEnum):
    """How a campaign spends its evaluations."""

    ADAPTIVE = "adaptive"
    PAPER = "paper"


@dataclass(frozen=True)
class InjectSettings:
    """What a campaign does.

    Its fault models are all combinations of an amount (every rate, every count, single upsets),
    an effect and a burst length.

    Attributes:
        ber: Bit error rates, each from 0 to 1; 1e-6 where no amount is given.
        flips: Fixed numbers of upsets in a trial.
        single: One upset a trial, no place twice; where ``trials`` is not given, as many as
            ``margin`` asks for (Leveugle et al., 2009).
        exhaustive: One upset a trial, at every place of the fault space.
        margin: Points between the estimated and the true share of failures among single upsets.
        effect: What an upset does: ``flip``, ``stuck-at-0``, ``stuck-at-1``.
        burst: Numbers of bits that one upset hits.
        burst_along: Whether these are adjacent ``bits`` of a word, or the same bit of adjacent
            ``words``.
        trials: Fault maps per fault model; with ``half_width``, at most. The paper draws 500.
        images: Images per trial, drawn afresh for each; 0 lets a pilot choose.
        half_width: Points of half a confidence interval of the accuracy at which to stop.
        protocol: ``adaptive``, or ``paper``: 500 fault maps on all images.
        format: How parameters are stored, ``Qm.n``, ``auto``, ``float32``, ``stored``, ...
        targets: Kinds of parameter to fault: ``weight``, ``bias``, ``threshold``, ``scale``,
            ``copy``, ``quant-scale``, ``zero-point``; empty for all.
        layers: Patterns of the layers to fault; empty for all.
        bits: Positions of bits to fault, such as ``0-15,31``, 0 the least significant; empty for
            all.
        confidence: Confidence level of all intervals.
        requirement: Accuracy in per cent below which a trial counts as a failure.
        tolerance: For outputs that are not class scores: how far an element may be off, relative
            to the largest of its image.
        judged_output: Name of the output that is judged; the first where it is None.
        per_class: Whether to count by class.
        distance: Whether to measure the L2 distance of activations (Eq. 9).
        record_faults: Whether the record holds the fault sites of every trial.
        seed: Decides every fault and every choice of images.
    """

    ber: tuple[float, ...] = ()
    flips: tuple[int, ...] = ()
    single: bool = False
    exhaustive: bool = False
    margin: float = 1.0
    effect: tuple[str, ...] = ("flip",)
    burst: tuple[int, ...] = (1,)
    burst_along: str = "bits"
    trials: int | None = None
    images: int = 0
    half_width: float | None = None
    protocol: Protocol = Protocol.ADAPTIVE
    format: str = "Q15.16"
    targets: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    bits: str | None = None
    confidence: float = 0.95
    requirement: float | None = None
    tolerance: float = 0.01
    judged_output: str | None = None
    per_class: bool = False
    distance: bool = False
    record_faults: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for rate in self.ber:
            _check_rate(rate)
        for count in self.flips:
            _check(count, "flips", 1)
        _check(self.margin, "margin", 0.01, 50.0)
        if not self.effect or not self.burst:
            raise SettingsError(
                f"no {'burst length' if self.effect else 'effect'} is given: name at least one"
            )
        for effect in self.effect:
            _check_choice(effect, "effect", EFFECTS)
        for length in self.burst:
            _check(length, "burst", 1, 32)
        _check_choice(self.burst_along, "burst-along", BURST_AXES)
        if self.trials is not None:
            _check(self.trials, "trials", 1)
        _check(self.images, "images", 0)
        if self.half_width is not None:
            _check(self.half_width, "half-width", 0.001, 50.0)
        if self.protocol is Protocol.PAPER:
            for name, value in (
                ("trials", self.trials),
                ("images", self.images or None),
                ("half-width", self.half_width),
            ):
                if value is not None:
                    raise SettingsError(
                        f"the paper's protocol is {PAPER_TRIALS} trials on all images, and {name} "
                        f"is {value:g}: leave {name} out, or choose the adaptive protocol"
                    )
        if self.bits is not None:
            parse_bits(self.bits)
        _check(self.confidence, "confidence", 0.5, 0.9999)
        if self.requirement is not None:
            _check(self.requirement, "requirement", 0.0, 100.0)
        _check(self.tolerance, "tolerance", 0.0)
        _check(self.seed, "seed", 0)

    @property
    def rates(self) -> tuple[float, ...]:
        """Bit error rates to visit."""
        others = self.flips or self.single or self.exhaustive
        return self.ber if self.ber or others else (_DEFAULT_BER,)

    @property
    def most_trials(self) -> int:
        """Trials of a fault model that draws any number of them."""
        return self.trials or (PAPER_TRIALS if self.half_width is None else _MOST_TRIALS)


def parse_bits(text: str) -> frozenset[int]:
    """Read positions of bits.

    Args:
        text: Positions and spans of them with commas, such as ``0-15,31``.

    Raises:
        SettingsError: If it reads otherwise.
    """
    positions: set[int] = set()
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", item.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise SettingsError(
                f"bits {text!r} cannot be understood: write positions and spans with commas, such "
                "as 0-15,31"
            )
        positions.update(range(first, last + 1))
    return frozenset(positions)


@dataclass(frozen=True)
class SensitivitySettings:
    """How the vulnerability of layers and bits is measured.

    Format, targets, layers, bits, confidence, judged output and seed are those of ``[inject]``.

    Attributes:
        trials: Single upsets for each parameter and bit.
        images: Images in each of these trials, drawn afresh.
    """

    trials: int = 10
    images: int = 32

    def __post_init__(self) -> None:
        _check(self.trials, "trials", 1)
        _check(self.images, "images", 1)


@dataclass(frozen=True)
class CompareSettings:
    """Which methods are compared, and what else is measured. Faults are those of ``[inject]``.

    Attributes:
        methods: ``none`` for the unprotected model, or methods, with options after hyphens; the
            default is the paper's comparison.
        drop_limit: Points of accuracy; drops under fault are listed at the bit error rates where
            a method stays below (Table IV).
        distance_ber: Bit error rate in one layer at a time, for the distance of activations
            (Table V); 0 leaves it out.
        distance_trials: Fault maps for each layer.
        distance_images: Images for each of these.
    """

    methods: tuple[str, ...] = (
        "none",
        "ranger-layer",
        "ranger-neuron",
        "ftclipact",
        "fitact",
        "proact",
    )
    drop_limit: float = 5.0
    distance_ber: float = 1e-4
    distance_trials: int = 10
    distance_images: int = 32

    def __post_init__(self) -> None:
        _check(self.drop_limit, "drop-limit", 0.0, 100.0)
        _check_rate(self.distance_ber)
        _check(self.distance_trials, "distance-trials", 2)
        _check(self.distance_images, "distance-images", 1)


@dataclass(frozen=True)
class ProfileSettings:
    """How the distributions of activations are measured, without faults and with them.

    Format, targets, layers, bits, judged output and seed are those of ``[inject]``.

    Attributes:
        ber: Bit error rate, from 0 to 1; that of the paper's Fig. 3 and 6.
        trials: Fault maps.
        images: Images, the same for every fault map; 0 for all.
        activations: Patterns of the activations to watch; empty for all.
    """

    ber: float = 3e-5
    trials: int = 10
    images: int = 128
    activations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_rate(self.ber)
        _check(self.trials, "trials", 1)
        _check(self.images, "images", 0)


@dataclass(frozen=True)
class ClusterSettings:
    """Who runs trials: of campaigns, and of methods that search. Changes no number.

    Attributes:
        workers: Processes that run trials; 0: this one, or with ``ray`` as many as the cluster
            has room for.
        ray: Address of a Ray cluster, or ``auto`` on one of its machines; None starts the workers
            on this machine.
        gpus_per_worker: GPUs that a worker takes: a share of one, or a whole number.
    """

    workers: int = 0
    ray: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        _check(self.workers, "workers", 0)
        _check(self.gpus_per_worker, "gpus-per-worker", 0.0)
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise SettingsError(
                f"gpus-per-worker is {self.gpus_per_worker:g}: give a share below 1, or a whole "
                "number"
            )


@dataclass(frozen=True)
class DeploySettings:
    """In which runtimes a hardened file is tried, and how much.

    Attributes:
        runtimes: Names of runtimes and optimisers; empty for all that are installed.
        images: Images that outputs are compared on.
        rounds: Turns that original and hardened model take for their latency.
    """

    runtimes: tuple[str, ...] = ()
    images: int = 4
    rounds: int = 15

    def __post_init__(self) -> None:
        _check(self.images, "images", 1)
        _check(self.rounds, "rounds", 1)


@dataclass(frozen=True)
class OutputSettings:
    """Where results go.

    Attributes:
        hardened: The hardened model; by default ``<model>.hardened.onnx`` beside the model.
        folder: Folder of campaign records and summaries; by default that of the model.
        plot: Figure of accuracy over bit error rate; its suffix decides the format.
        heatmap: Figure of ``sensitivity``; likewise.
        distributions: Figure of ``profile``; likewise.
    """

    hardened: Path | None = None
    folder: Path | None = None
    plot: Path | None = None
    heatmap: Path | None = None
    distributions: Path | None = None


@dataclass(frozen=True)
class Settings:
    """Everything ``proact.toml`` can say, one attribute a table; paths are absolute.

    Attributes:
        model: The model to work on.
        data: Table ``[data]``.
        preprocessing: Table ``[preprocessing]``.
        runtime: Table ``[runtime]``.
        harden: Table ``[harden]``.
        inject: Table ``[inject]``.
        sensitivity: Table ``[sensitivity]``.
        compare: Table ``[compare]``.
        profile: Table ``[profile]``.
        cluster: Table ``[cluster]``.
        deploy: Table ``[deploy]``.
        output: Table ``[output]``.
    """

    model: Path | None = None
    data: DataSettings = field(default_factory=DataSettings)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    harden: HardenSettings = field(default_factory=HardenSettings)
    inject: InjectSettings = field(default_factory=InjectSettings)
    sensitivity: SensitivitySettings = field(default_factory=SensitivitySettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    deploy: DeploySettings = field(default_factory=DeploySettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def override(self, table: str, options: Mapping[str, Any]) -> Self:
        """Return these settings with the options that are not None put in one table."""
        given = {key: value for key, value in options.items() if value is not None}
        return dataclasses.replace(
            self, **{table: dataclasses.replace(getattr(self, table), **given)}
        )


def read_settings(path: Path | None = None, folder: Path = Path()) -> Settings:
    """Read ``proact.toml``.

    Args:
        path: The file; without one, ``proact.toml`` in ``folder``, which may be absent.
        folder: The working directory.

    Returns:
        The settings; relative paths are resolved against the file's folder.

    Raises:
        SettingsError: If the file cannot be read, or a table, key or value is not known.
    """
    if path is None:
        path = folder / SETTINGS_FILE
        if not path.exists():
            return Settings()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    settings: Settings = _build(Settings, content, path, "")
    return settings


def _build(cls: type[Any], table: Mapping[str, Any], path: Path, prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in values:
            raise SettingsError(f"{path}: key {prefix + key!r} is given twice: leave one out")
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise SettingsError(f"{path}: unknown key {prefix + key!r}: choose among {known}")
        where = f"{path}: key {prefix + key!r}"
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, dict):
                raise SettingsError(f"{where} must be a table: write [{key}]")
            values[name] = _build(kinds[name], value, path, f"{prefix}{key}.")
        else:
            values[name] = _convert(kinds[name], value, where, path.parent)
    try:
        return cls(**values)
    except SettingsError as error:
        where = f"{path}, table [{prefix.rstrip('.')}]" if prefix else f"{path}"
        raise SettingsError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert(arguments[0], value, where, folder)
    if origin is typing.Literal:
        if value not in arguments:
            raise SettingsError(f"{where} must be one of {', '.join(arguments)}, not {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(arguments[0], item, where, folder) for item in items)
    if kind is Path and isinstance(value, str):
        return (folder / value).resolve()
    if kind in (Layout, OutOfRange, ThresholdScale, Protocol):
        if value not in list(kind):
            raise SettingsError(f"{where} must be one of {', '.join(kind)}, not {value!r}")
        return kind(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise SettingsError(f"{where} must be true or false, not {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = str if kind is Path else kind
    if not isinstance(value, expected) or isinstance(value, bool):
        raise SettingsError(f"{where} must be {_SPELLED[expected]}, not {value!r}")
    return value


_SPELLED = {int: "a whole number", float: "a number", str: "text in quotes"}
