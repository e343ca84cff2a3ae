"""Files written whole or not at all."""

from pathlib import Path

from proact_onnx.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary one beside it, which then takes its name.

    Raises:
        OutputError: If the file cannot be written; one that existed is as it was.
    """
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
