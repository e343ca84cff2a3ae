"""The hardening pipeline: load, prepare, profile, fit, insert, check, save."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from proact_onnx.activations import Activation, find_activations
from proact_onnx.alarm_levels import (
    MonitorReport,
    calibrate_monitor,
    check_images_apart,
    measure_false_alarms,
)
from proact_onnx.build import Workpiece, build
from proact_onnx.campaign import Executor, LocalExecutor
from proact_onnx.checkpoint import FileCheckpoint
from proact_onnx.choose import AUTOMATIC, Choice, check_automatic, choose
from proact_onnx.code_ranges import Coded
from proact_onnx.coverage import Coverage, Unprotected, coverage, never_run, unprotected
from proact_onnx.data import Dataset, Preprocessing, split_disjoint
from proact_onnx.engine import (
    Provider,
    Session,
    load_operators,
    observed_shapes,
    profile_activations,
    with_output_types,
)
from proact_onnx.errors import ModelError, SettingsError
from proact_onnx.faults import parameter_count, parse_format
from proact_onnx.fidelity import Fidelity, compare, guessing, label_batch
from proact_onnx.methods import METHODS
from proact_onnx.model import (
    check_model,
    check_writable,
    is_scale,
    is_threshold,
    load_model,
    model_digest,
    opset,
    refuse_overwrite,
    save_model,
    set_provenance,
)
from proact_onnx.monitor import MONITOR_KEY
from proact_onnx.progress import LogReporter, Reporter
from proact_onnx.rewrite import LOWEST_OPSET, Form, Refusal, Rescaled, add_monitor
from proact_onnx.rewrite import prepare as prepare_model
from proact_onnx.settings import HardenSettings, RuntimeSettings
from proact_onnx.targets import aim, describe_loss
from proact_onnx.thresholds import Granularity, Thresholds
from proact_onnx.versions import convert_opset, trim_ir_version

# Images on which a converted model must agree with its original, and how far rounding may differ,
# relative to the largest output.
_CONVERTED_IMAGES = 8
_CONVERTED_TOLERANCE = 3e-2


@dataclass(frozen=True)
class HardenReport:
    """What hardening did.

    Attributes:
        output: The hardened file.
        activations: The activations hardened, in topological order.
        thresholds: Their thresholds.
        scales: Number of stored scales, and copies of biases; 0 unless weights are rescaled.
        memory_overhead: Thresholds, scales and copies in per cent of the original model's
            parameters (Eq. 6).
        fidelity: Both models compared on the test images.
        test_images: How many these are.
        labelled: Whether they have labels; otherwise the original model's classes stand in.
        raised_opset: The opset the file was converted to, if its own was too low for the form.
        opsets: The operator sets of the original and of the hardened file.
        unprotected: Activation functions that are left as they are.
        coverage: Where values are bounded.
        refusals: BatchNormalization nodes that could not be folded, and layers whose weights
            could not be rescaled.
        monitor: The monitor, and its false alarms on the test images; None without one.
        evaluations: Images classified under fault to find the thresholds.
        seconds: Wall time.
        choice: What method ``auto`` tried, and why it chose what it did.
    """

    output: Path
    activations: tuple[Activation, ...]
    thresholds: Thresholds
    scales: int
    memory_overhead: float
    fidelity: Fidelity
    test_images: int
    labelled: bool
    raised_opset: int | None
    opsets: tuple[int, int]
    unprotected: tuple[Unprotected, ...]
    coverage: Coverage
    refusals: tuple[Refusal, ...]
    monitor: MonitorReport | None
    evaluations: int
    seconds: float
    choice: Choice | None = None


def harden(
    model: Path,
    calibration: Dataset,
    output: Path | None = None,
    *,
    test: Dataset | None = None,
    settings: HardenSettings | None = None,
    preprocessing: Preprocessing | None = None,
    runtime: RuntimeSettings | None = None,
    reporter: Reporter | None = None,
    executor: Executor | None = None,
    force: bool = False,
    resume: bool = False,
) -> HardenReport:
    """Harden a model file.

    Args:
        model: The model; it is only read.
        calibration: Images to profile, train and accept on. Without ``test``, part of them is
            kept apart to report accuracy.
        output: Where to write; by default ``<model>.hardened.onnx`` beside the model.
        test: Images that hardening never learns from.
        settings: Method and its options.
        preprocessing: How images become the model's input.
        runtime: How ONNX Runtime executes.
        reporter: Receives progress.
        executor: Where trials under fault run, if the method has any; by default in this process.
            Changes no number.
        force: Whether an output that exists is replaced.
        resume: Whether to go on from an interrupted run.

    Returns:
        What was done, with clean accuracy before and after.

    Raises:
        ModelError: If the model cannot be read or hardened.
        DataError: If images or labels do not fit.
        SettingsError: If a setting is unknown.
        OutputError: If the output exists or cannot be written.
    """
    started = time.monotonic()
    settings = settings or HardenSettings()
    preprocessing = preprocessing or Preprocessing()
    runtime = runtime or RuntimeSettings()
    reporter = reporter or LogReporter()
    output = output or hardened_path(model)
    _choose("method", settings.method, [*METHODS, AUTOMATIC])
    settings = aim(settings)
    if settings.method == AUTOMATIC:
        check_automatic(settings)
        _check_opset(settings.opset, list(Form))
    else:
        settings = METHODS[settings.method].resolve(settings)
        _choose("granularity", str(settings.granularity), list(Granularity))
        _choose("form", str(settings.form), list(Form))
        _check_opset(settings.opset, [Form(str(settings.form))])
    parse_format(settings.format)
    provider = (Provider(runtime.provider), runtime.threads, runtime.batch_size)

    loaded = load_model(model)
    check_writable(output, (model,))
    refuse_overwrite(output, force)
    digest = model_digest(loaded)
    notice = load_operators(runtime.operators, loaded)
    if notice is not None:
        reporter.notice(notice)
    prepared = prepare_model(with_output_types(loaded), restore_rectifiers=True)
    if settings.opset is not None:
        # What the converter leaves as constants becomes initializers, too.
        converted = prepare_model(convert_opset(prepared.model, settings.opset))
        prepared = replace(prepared, model=converted.model)
    for refusal in prepared.refusals:
        reporter.notice(f"BatchNormalization {refusal.node!r} is not folded: {refusal.reason}")
    linear = settings.protect == "linear" or settings.method == AUTOMATIC
    activations = find_activations(prepared.model, linear=linear)
    stored = [tensor.name for tensor in prepared.model.graph.initializer]
    if any(is_threshold(name) or is_scale(name) for name in stored):
        raise ModelError(f"{model} is hardened already: give the model it was made from")
    if not activations:
        also = (
            " and no floating-point Conv, Gemm or MatMul that reaches an output unbounded"
            if settings.protect == "linear"
            else ""
        )
        hint = "" if also else ", and --protect linear also bounds what Conv, Gemm and MatMul give"
        raise ModelError(
            f"{model} has no activation that can be hardened{also}: 'proact-onnx inspect {model}' "
            f"lists what it has{hint}"
        )
    parameters = parameter_count(prepared.model)
    if not parameters:
        raise ModelError(f"{model} stores no parameters, so there is nothing to protect")
    fit_set, accept_set, test_set = split_roles(calibration, test, settings)
    digests = {"model": digest, "data": calibration.digest, "test": test_set.digest}
    identity = _identity(digests, settings, preprocessing)
    checkpoint = FileCheckpoint(checkpoint_path(output), identity, resume)

    original = Session(loaded, *provider)
    loaded_opset = opset(loaded)
    del loaded
    calibrate, accept, report = (
        label_batch(part, original, preprocessing) for part in (fit_set, accept_set, test_set)
    )
    trains = settings.method in METHODS and METHODS[settings.method].trains
    bundled = calibrate.images.dtype.names is not None
    if bundled and trains:
        raise ModelError(
            f"method {settings.method} trains on batches of one input, and {model} "
            f"{_given(original)}: use --method ranger, clip-percentile, ftclipact or auto"
        )
    if bundled and settings.monitor:
        raise ModelError(
            f"a monitor counts for each image of a batch, and {model} {_given(original)}: leave "
            "--monitor out"
        )
    _check_subgraphs(activations, settings, model)
    warning = guessing(original, report) if test_set.labels is not None else None
    if warning is not None:
        reporter.warn(warning)
    if settings.opset is not None:
        _check_converted(original, Session(prepared.model, *provider), calibrate.images, settings)

    reporter.begin("profiling", len(calibrate.images))
    seen = 0

    def advance(total: int) -> None:
        nonlocal seen
        reporter.advance(total - seen)
        seen = total

    profile = profile_activations(
        prepared.model,
        activations,
        calibrate.images,
        provider=provider[0],
        threads=runtime.threads,
        batch_size=min(runtime.batch_size, 64),
        progress=advance,
    )
    not_run = [a for a in activations if a.tensor not in profile.maxima]
    activations = observed_shapes(activations, profile)
    _tell_inner(activations, not_run, settings, reporter)
    if not activations:
        raise ModelError(
            f"no calibration sample runs the subgraphs of {model} in which all its activations "
            "lie: calibrate with samples that do"
        )
    workpiece = Workpiece(
        prepared.model,
        parameters,
        activations,
        profile,
        calibrate,
        accept,
        runtime,
        executor or LocalExecutor(),
    )
    choice = None
    if settings.method == AUTOMATIC:
        choice = choose(workpiece, settings, reporter)
        settings = choice.settings
    if settings.target is not None:
        reporter.notice(describe_loss(settings.target, Form(str(settings.form))))
    built = build(workpiece, settings, checkpoint, reporter)
    if built.rescaled is not None:
        _tell_refusals(built.rescaled, reporter)
    _tell_codes(built.coded, model, reporter)
    hardened, thresholds = built.model, built.thresholds
    record = _provenance(digests, settings, thresholds)
    if choice is not None:
        record |= {"chosen_by": AUTOMATIC, "choice": choice.to_json()}
    set_provenance(hardened, record)
    monitor = None
    if settings.monitor:
        check_images_apart(hardened, built.bounds, calibrate.images)
        hardened = add_monitor(hardened, built.bounds)
    trim_ir_version(hardened)
    check_model(hardened, "the hardened model")
    bounded = Session(hardened, *provider)
    if settings.monitor:
        watched = [bound.tensor for bound in built.bounds]
        found = calibrate_monitor(bounded, watched, [calibrate.images, accept.images])
        set_provenance(hardened, {MONITOR_KEY: found.spell()})
        monitor = measure_false_alarms(bounded, found, report.images)
    fidelity = compare(original, bounded, report)
    save_model(hardened, output, inputs=(model,))
    checkpoint.remove()
    return HardenReport(
        output=output,
        activations=built.activations,
        thresholds=thresholds,
        scales=built.numbers - thresholds.count,
        memory_overhead=built.overhead,
        fidelity=fidelity,
        test_images=len(report.images),
        labelled=test_set.labels is not None,
        raised_opset=opset(hardened) if opset(hardened) != opset(prepared.model) else None,
        opsets=(loaded_opset, opset(hardened)),
        unprotected=(*unprotected(prepared.model), *map(never_run, not_run)),
        coverage=coverage(prepared.model, built.activations),
        refusals=(*prepared.refusals, *built.refusals),
        monitor=monitor,
        evaluations=built.evaluations,
        choice=choice,
        seconds=time.monotonic() - started,
    )


def runs_trials(method: str) -> bool:
    """Tell whether a method runs trials under fault, which workers can do."""
    return method == AUTOMATIC or (method in METHODS and METHODS[method].runs_trials)


def _given(model: Session) -> str:
    """Say what tells a model from one that takes batches of images."""
    count = len(model.inputs)
    return f"has {count} inputs" if count > 1 else "is given whole calls"


def _check_subgraphs(
    activations: Sequence[Activation], settings: HardenSettings, model: Path
) -> None:
    """Refuse what is done in the main graph alone where all activations lie in subgraphs."""
    if not all(activation.is_inner for activation in activations):
        return
    method = METHODS.get(settings.method)
    if method is not None and (method.trains or method.runs_trials):
        raise ModelError(
            f"all activations of {model} lie in subgraphs, and method {settings.method} looks at "
            "the main graph alone: use --method ranger or clip-percentile"
        )
    if settings.monitor:
        raise ModelError(
            f"all activations of {model} lie in subgraphs, and the monitor watches the main graph "
            "alone: leave --monitor out"
        )


def _tell_inner(
    bounded: Sequence[Activation],
    not_run: Sequence[Activation],
    settings: HardenSettings,
    reporter: Reporter,
) -> None:
    """Say what holds for activations inside subgraphs."""
    inner = sum(activation.is_inner for activation in bounded)
    if inner:
        unwatched = ", and the monitor does not watch them" if settings.monitor else ""
        reporter.notice(
            f"{inner} activations lie in subgraphs: each is bounded by its profiled extremes, "
            f"whatever the method and granularity{unwatched}"
        )
    if not_run:
        reporter.warn(
            f"no calibration sample runs the subgraphs in which {len(not_run)} activations lie, "
            f"such as {not_run[0].name!r}: they are left without a bound"
        )


def _check_opset(asked: int | None, forms: Sequence[Form]) -> None:
    form = max(forms, key=LOWEST_OPSET.__getitem__)
    newest, lowest = onnx.defs.onnx_opset_version(), LOWEST_OPSET[form]
    if asked is not None and asked < lowest:
        raise SettingsError(
            f"form {str(form)!r} needs opset {lowest} or newer, and {asked} is asked for: choose "
            "another of the two"
        )
    if asked is not None and asked > newest:
        raise SettingsError(
            f"opset {asked} is asked for, and the installed onnx knows {newest}: choose that or an "
            "older one"
        )


def _check_converted(
    original: Session, converted: Session, images: npt.NDArray[Any], settings: HardenSettings
) -> None:
    """Compare the outputs of a model before and after its operator set was converted."""
    some = images[:_CONVERTED_IMAGES]
    difference = largest = 0.0
    for [ours], [theirs] in zip(
        converted.stream(some, converted.outputs[:1]),
        original.stream(some, original.outputs[:1]),
        strict=True,
    ):
        expected = theirs.astype(np.float64)
        same_shape = ours.shape == expected.shape
        error = float(np.abs(ours - expected).max()) if same_shape else np.inf
        # The largest of a number and NaN depends on their order.
        difference = error if np.isnan(error) else max(difference, error)
        largest = max(largest, float(np.abs(expected).max()))
    if not difference <= _CONVERTED_TOLERANCE * largest:
        raise ModelError(
            f"the model computes something else when it is converted to opset {settings.opset}: "
            f"export it again at opset {settings.opset}"
        )


def hardened_path(model: Path) -> Path:
    """Where a hardened model goes when the user does not say: beside the original."""
    return model.with_name(f"{model.stem}.hardened.onnx")


def checkpoint_path(output: Path) -> Path:
    """Where the finished layers of an interrupted run are kept."""
    return output.with_name(f"{output.name}.checkpoint")


def split_roles(
    calibration: Dataset, test: Dataset | None, settings: HardenSettings
) -> tuple[Dataset, Dataset, Dataset]:
    """Divide the data into three disjoint sets: to fit, to accept, and to report.

    A calibration source that is too small for the sizes asked for is divided in their proportion.
    Without test images, as many images as decide about acceptance are kept apart to report.
    """
    sizes = [settings.calibration_images, settings.accept_images]
    if test is None:
        sizes.append(settings.accept_images)
    share = min(1.0, len(calibration) / sum(sizes))
    sizes = [max(1, int(size * share)) for size in sizes]
    # What was rounded up to one image is taken from the images to fit.
    sizes[0] = max(1, min(sizes[0], len(calibration) - sum(sizes[1:])))
    fit_set, accept_set, *rest = split_disjoint(calibration, sizes, settings.seed)
    return fit_set, accept_set, test if test is not None else rest[0]


def _tell_refusals(rescaled: Rescaled, reporter: Reporter) -> None:
    if rescaled.layers:
        for refusal in rescaled.refusals:
            reporter.notice(f"{refusal.node} is not rescaled: {refusal.reason}")
        for refusal in rescaled.biases:
            reporter.notice(f"{refusal.node} keeps its bias as stored: {refusal.reason}")
    elif rescaled.refusals:
        first = rescaled.refusals[0]
        reporter.warn(f"no layer is rescaled; of {first.node}, {first.reason}")
    else:
        reporter.warn("no layer is rescaled: the model stores no floating-point weights")


def _tell_codes(coded: Coded, model: Path, reporter: Reporter) -> None:
    """Say what became of thresholds that no code of a quantiser exceeds."""
    if coded.lowered:
        reporter.notice(
            f"{coded.lowered:,} of {coded.thresholds.count:,} thresholds lie above what the codes "
            "in front of them can say: they are set half a step below the top code, so that "
            "saturated codes become zero"
        )
    if coded.bounded and not coded.thresholds.values:
        raise ModelError(
            f"the quantisers of {model} bound every activation already, at or below its threshold: "
            "use --granularity channel, or --form hard with a larger --max-accuracy-drop"
        )
    if coded.bounded:
        reporter.notice(
            f"{len(coded.bounded)} activations are left to their quantisers, which bound them no "
            "higher than their thresholds"
        )


def _choose(what: str, name: str, known: Mapping[str, Any] | list[Any]) -> str:
    if name not in known:
        raise SettingsError(f"unknown {what} {name!r}: choose among {', '.join(known)}")
    return name


def _identity(
    digests: Mapping[str, str], settings: HardenSettings, preprocessing: Preprocessing
) -> dict[str, Any]:
    # Through JSON, so that an identity read from a file compares equal to one just made.
    content = {**digests, "settings": asdict(settings), "preprocessing": asdict(preprocessing)}
    identity: dict[str, Any] = json.loads(json.dumps(content))
    return identity


def _provenance(
    digests: Mapping[str, str], settings: HardenSettings, thresholds: Thresholds
) -> dict[str, str]:
    return {
        "version": importlib.metadata.version("proact-onnx"),
        "method": settings.method,
        "settings": json.dumps(asdict(settings), sort_keys=True),
        "original_sha256": digests["model"],
        "calibration_sha256": digests["data"],
        "thresholds_sha256": _digest(thresholds),
    }


def _digest(thresholds: Thresholds) -> str:
    digest = hashlib.sha256()
    for values in (thresholds.values, thresholds.lower):
        for tensor in sorted(values):
            digest.update(tensor.encode())
            digest.update(np.ascontiguousarray(values[tensor], np.float32).tobytes())
    return digest.hexdigest()
