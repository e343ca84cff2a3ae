"""A result that is started over is lost only when the new one has begun."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
