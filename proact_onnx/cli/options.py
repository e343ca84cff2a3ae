"""Options that several commands share, and how an option names its key of ``proact.toml``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from proact_onnx.data import Layout
from proact_onnx.settings import Settings

DATA = "Images and labels"
PREPROCESSING = "From stored images to the model's input"
RUNTIME = "ONNX Runtime"
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
    shown = key if owner in (None, ()) else f"{key}={spell_default(owner)}"
    return typer.Option(
        help=f"{text} {escape(f'[{shown}]')}", rich_help_panel=panel, metavar=metavar
    )


def spell_default(value: Any) -> str:
    """Spell the default of a setting as a user would type it."""
    if isinstance(value, tuple):
        return ",".join(map(spell_default, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


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
    setting("runtime.provider", "Where the model runs.", RUNTIME, "auto|cpu|cuda"),
]
Threads = Annotated[
    int | None,
    setting("runtime.threads", "Threads within an operator; 0: as it chooses.", RUNTIME),
]
BatchSize = Annotated[
    int | None,
    setting("runtime.batch_size", "Images per run, where the model leaves it open.", RUNTIME),
]
