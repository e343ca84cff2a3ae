"""Where results go, and how one that is started over is lost only when the new one has begun."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from proact_onnx.errors import SettingsError


def result_files(models: Sequence[Path], folder: Path | None, ending: str) -> list[Path]:
    """Name the file of each model's results.

    Args:
        models: The model files.
        folder: Where results go; by default beside each model.
        ending: What follows the model's name without its suffix.

    Raises:
        SettingsError: If two models would share a file.
    """
    owners: dict[Path, Path] = {}
    for model in models:
        file = (folder or model.parent) / f"{model.stem}{ending}"
        if file.resolve() in owners:
            raise SettingsError(
                f"{owners[file.resolve()]} and {model} would share the file {file}: give "
                "them different file names, or measure them in different folders"
            )
        owners[file.resolve()] = model
    return list(owners)


@contextmanager
def set_aside(path: Path, derived: Path) -> Iterator[None]:
    """Move a file out of the way, and back again unless another takes its place.

    Args:
        path: The file, which need not exist.
        derived: A file made from it, which is deleted once the file is replaced.
    """
    if not path.exists():
        yield
        return
    aside = path.with_name(f"{path.name}.replaced")
    path.replace(aside)
    try:
        yield
    finally:
        if path.exists():
            aside.unlink()
            derived.unlink(missing_ok=True)
        else:
            aside.replace(path)
