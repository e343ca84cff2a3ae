"""Options that several commands share, and how an option names its key of ``proact.toml``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from proact_onnx.data import Layout
from proact_onnx.settings import PROVIDERS, Settings

DATA = "Images and labels"
PREPROCESSING = "From stored images to the model's input"
RUNTIME = "ONNX Runtime"
CLUSTER = "Workers"
FAULTS = "Faults"
STATISTICS = "Trials"
FILES = "Settings and results"


def setting(key: str, text: str, panel: str, metavar: str | None = None) -> Any:
    """An option that goes before a key of ``proact.toml``.

    Args:
        key: The key, ``table.name``; the help ends with it and its default in brackets.
        text: One sentence on what the option means, with its unit.
        panel: Heading the option stands under.
        metavar: How to spell what the option takes, where its type says too little.
    """
    owner: Any = Settings()
    for name in key.split("."):
        owner = getattr(owner, name)
    shown = key if owner is None or owner == () else f"{key}={spell_default(owner)}"
    return typer.Option(
        help=f"{text} {escape(f'[{shown}]')}", rich_help_panel=panel, metavar=metavar
    )


def spell_default(value: Any) -> str:
    """Spell the default of a setting as a user would type it."""
    if isinstance(value, tuple):
        return ",".join(map(spell_default, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


LearningData = Annotated[
    Path | None,
    setting("data.calibration", "Images to learn from: a file or a folder.", DATA),
]
LearningLabels = Annotated[
    Path | None, setting("data.calibration_labels", "Labels, where these hold none.", DATA)
]
LearningPart = Annotated[
    str | None,
    setting("data.calibration_part", "Which part, where these hold both.", DATA, "train|test"),
]
Trials = Annotated[
    int | None,
    setting(
        "inject.trials",
        "Fault maps for each fault model; by default 500, or as many as --half-width or "
        "--margin needs.",
        STATISTICS,
    ),
]
TrialImages = Annotated[
    int | None,
    setting(
        "inject.images",
        "Images, drawn afresh for each trial; 0: a pilot of 30 trials chooses.",
        STATISTICS,
    ),
]
HalfWidth = Annotated[
    float | None,
    setting(
        "inject.half_width",
        "Stop when half the interval of the accuracy is this narrow, in points.",
        STATISTICS,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings file; by default proact.toml in the working folder, if there is one.",
        rich_help_panel=FILES,
    ),
]
TestData = Annotated[
    Path | None, setting("data.test", "Images to evaluate: a file or a folder.", DATA)
]
TestLabels = Annotated[
    Path | None, setting("data.test_labels", "Labels, where the images hold none.", DATA)
]
TestPart = Annotated[
    str | None,
    setting("data.test_part", "Which part, where the images hold both.", DATA, "train|test"),
]
LayoutOption = Annotated[
    Layout | None, setting("preprocessing.layout", "Order of the stored axes.", PREPROCESSING)
]
Scale = Annotated[
    float | None,
    setting(
        "preprocessing.scale",
        "Multiplied with stored values; by default 1/255 for uint8 images, 1 for floats.",
        PREPROCESSING,
    ),
]
Mean = Annotated[
    str | None,
    setting(
        "preprocessing.mean",
        "Subtracted after scaling: one number, or one for each channel.",
        PREPROCESSING,
        "NUMBER,...",
    ),
]
Std = Annotated[
    str | None,
    setting(
        "preprocessing.std",
        "Divided by after that: one number, or one for each channel.",
        PREPROCESSING,
        "NUMBER,...",
    ),
]
Resize = Annotated[
    str | None,
    setting(
        "preprocessing.resize",
        "Bring images to this size in pixels, such as 32x32.",
        PREPROCESSING,
        "HEIGHTxWIDTH",
    ),
]
ProviderOption = Annotated[
    str | None,
    setting("runtime.provider", "Where the model runs.", RUNTIME, "|".join(PROVIDERS)),
]
Threads = Annotated[
    int | None,
    setting("runtime.threads", "Threads within an operator; 0: as it chooses.", RUNTIME),
]
BatchSize = Annotated[
    int | None,
    setting("runtime.batch_size", "Images per run, where the model leaves it open.", RUNTIME),
]
Operators = Annotated[
    str | None,
    setting(
        "runtime.operators",
        "Shared libraries with operators that ONNX Runtime does not have itself; those of "
        "onnxruntime-extensions are found where it is installed.",
        RUNTIME,
        "LIBRARY,...",
    ),
]
CacheMemory = Annotated[
    int | None,
    setting(
        "runtime.cache_memory",
        "MiB for values of the fault-free run, so that trials start at their first fault; 0: none.",
        RUNTIME,
    ),
]
Workers = Annotated[
    int | None,
    setting("cluster.workers", "Processes that run trials; 0: this one alone.", CLUSTER),
]
RayAddress = Annotated[
    str | None,
    setting(
        "cluster.ray",
        "Run trials on this Ray cluster; auto: the one that this machine belongs to.",
        CLUSTER,
        "ADDRESS",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    setting("cluster.gpus_per_worker", "GPUs for each worker; a share, or whole ones.", CLUSTER),
]
Format = Annotated[
    str | None,
    setting(
        "inject.format",
        "How parameters are stored.",
        FAULTS,
        "Qm.n|auto|auto16|auto8|float32|float16|bfloat16|stored",
    ),
]
Targets = Annotated[
    str | None,
    setting(
        "inject.targets",
        "Kinds of parameters to fault; by default all of weight, bias, threshold, scale, copy, "
        "quant-scale, zero-point.",
        FAULTS,
        "KIND,...",
    ),
]
LayerPatterns = Annotated[
    str | None,
    setting(
        "inject.layers",
        "Names of layers or parameters to fault, * for any letters; by default all.",
        FAULTS,
        "PATTERN,...",
    ),
]
Bits = Annotated[
    str | None,
    setting(
        "inject.bits",
        "Positions of the bits to fault, 0 the least significant, such as 0-15,31; by default all.",
        FAULTS,
        "SPAN,...",
    ),
]
Tolerance = Annotated[
    float | None,
    setting(
        "inject.tolerance",
        "Outputs that are not class scores: how far an element may be off, relative to the "
        "largest of its image.",
        STATISTICS,
    ),
]
JudgedOutput = Annotated[
    str | None,
    setting(
        "inject.judged_output",
        "Name of the output that is judged; by default the first.",
        STATISTICS,
        "NAME",
    ),
]
Confidence = Annotated[
    float | None, setting("inject.confidence", "Level of the intervals, below 1.", STATISTICS)
]
Seed = Annotated[
    int | None,
    setting("inject.seed", "Decides every fault and every choice of images.", STATISTICS),
]
RecordFaults = Annotated[
    bool | None,
    setting("inject.record_faults", "Write the fault sites of every trial, too.", FILES),
]
OutputFolder = Annotated[
    Path | None,
    setting(
        "output.folder",
        "Folder of the record and the summary; by default the model's own.",
        FILES,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Start a record over instead of going on.", rich_help_panel=FILES),
]
