"""Options of a command put over ``proact.toml``."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from proact_onnx.data import Dataset, Part, load_dataset
from proact_onnx.errors import DataError, SettingsError
from proact_onnx.settings import Protocol, Settings, read_settings

Role = Literal["calibration", "test"]


def gather(options: Mapping[str, Any], *tables: str) -> Settings:
    """Read the settings file and put the options that were given over it.

    Args:
        options: By name, what the command received; an option that was not given is None.
        *tables: Tables of ``proact.toml`` whose keys are options of the command by name; where
            two have a key of one name, the first.

    Raises:
        SettingsError: If the file or an option cannot be understood.
    """
    settings = _without_rivals(read_settings(options["config"]), options)
    taken: set[str] = set()
    for table in tables:
        keys = {field.name for field in dataclasses.fields(getattr(settings, table))} - taken
        taken |= keys
        given = {
            name: _parse(name, value)
            for name, value in options.items()
            if name in keys and value is not None
        }
        settings = settings.override(table, given)
    return settings


def _without_rivals(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """Drop from the file what an option replaces although its name is another."""
    inject = settings.inject
    if any(options.get(name) for name in ("ber", "flips", "single", "exhaustive")):
        inject = dataclasses.replace(inject, ber=(), flips=(), single=False, exhaustive=False)
    if options.get("protocol") is Protocol.PAPER:
        inject = dataclasses.replace(inject, trials=None, images=0, half_width=None)
    elif any(options.get(name) for name in ("trials", "images", "half_width")):
        inject = dataclasses.replace(inject, protocol=Protocol.ADAPTIVE)
    return dataclasses.replace(settings, inject=inject)


def with_source(
    settings: Settings, role: Role, images: Path | None, labels: Path | None, part: str | None
) -> Settings:
    """Put a source of images over that of the settings file.

    Labels and part in the file belong to its own images, so they do not outlive these.

    Raises:
        SettingsError: If there is no such part.
    """
    if images is not None:
        source: dict[str, Any] = {role: images, f"{role}_labels": None, f"{role}_part": None}
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, **source))
    return settings.override("data", {f"{role}_labels": labels, f"{role}_part": _part(part)})


def load_source(settings: Settings, role: Role) -> Dataset | None:
    """Read the images of a role; None where none are named.

    Raises:
        DataError: If they cannot be read.
    """
    data = settings.data
    images: Path | None = getattr(data, role)
    if images is None:
        return None
    labels, part = getattr(data, f"{role}_labels"), getattr(data, f"{role}_part")
    return load_dataset(images, labels, part=part, size=settings.preprocessing.resize)


def need_source(settings: Settings, role: Role) -> Dataset:
    """Read the images of a role, which must be named.

    Raises:
        DataError: If none are named, or they cannot be read.
    """
    dataset = load_source(settings, role)
    if dataset is None:
        raise DataError(f"no images are given: name them with --data, or as data.{role} in a file")
    return dataset


def need_model(model: Path | None, settings: Settings) -> Path:
    """Return the model to work on.

    Raises:
        SettingsError: If neither the command line nor the file names one.
    """
    path = model or settings.model
    if path is None:
        raise SettingsError("no model is given: name one, or set 'model' in proact.toml")
    return path


def with_hardened(model: Path, settings: Settings) -> list[Path]:
    """Return a model and, where there is one, its hardened file."""
    from proact_onnx.harden import hardened_path

    hardened = settings.output.hardened or hardened_path(model)
    return [model, hardened] if hardened.exists() else [model]


def _part(text: str | None) -> Part | None:
    for part in get_args(Part):
        if text == part:
            chosen: Part = part
            return chosen
    if text is not None:
        raise SettingsError(f"there is no part {text!r}: choose train or test")
    return None


def _numbers(name: str, given: str | list[str]) -> tuple[float, ...]:
    text = given if isinstance(given, str) else ",".join(given)
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError as error:
        raise SettingsError(
            f"--{name} {text!r} is not a list of numbers: separate them with commas"
        ) from error


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise SettingsError(
            f"--{name} {text!r} is not a list of whole numbers: separate them with commas"
        ) from error


def _words(name: str, text: str) -> tuple[str, ...]:
    words = tuple(item.strip() for item in text.split(","))
    if not all(words):
        raise SettingsError(f"--{name} {text!r} has an empty entry: separate names with commas")
    return words


def _paths(name: str, text: str) -> tuple[Path, ...]:
    return tuple(map(Path, _words(name, text)))


def _size(name: str, text: str) -> tuple[int, int]:
    try:
        height, width = (int(item) for item in text.lower().split("x"))
    except ValueError as error:
        raise SettingsError(
            f"--{name} {text!r} is not a size: write HEIGHTxWIDTH, such as 32x32"
        ) from error
    return height, width


def _parse(name: str, given: Any) -> Any:
    """Divide the text of an option that takes several values; what is no text is one already."""
    spelled = name in _PARSERS and isinstance(given, str | list)
    return _PARSERS[name](name, given) if spelled else given


_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "activations": _words,
    "ber": _numbers,
    "burst": _integers,
    "effect": _words,
    "flips": _integers,
    "layers": _words,
    "mean": _numbers,
    "methods": _words,
    "operators": _paths,
    "resize": _size,
    "runtimes": _words,
    "search_ber": _numbers,
    "std": _numbers,
    "targets": _words,
}
