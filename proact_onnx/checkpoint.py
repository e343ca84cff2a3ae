"""Interrupted hardening: the finished layers, kept on disk until the model is written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from proact_onnx.errors import SettingsError
from proact_onnx.files import write_text
from proact_onnx.thresholds import FloatArray


class NoCheckpoint:
    """Keeps nothing."""

    def finished(self) -> Mapping[str, FloatArray]:
        """Nothing is."""
        return {}

    def store(self, tensor: str, values: FloatArray) -> None:
        """Do nothing."""

    def store_all(self, values: Mapping[str, FloatArray]) -> None:
        """Do nothing."""


class FileCheckpoint:
    """Finished thresholds as JSON lines: a header that says which run, then one layer a line.

    Where all layers are trained together, the state of the training stands in for them. An array
    is stored as hexadecimal float32, so that going on gives the very same numbers.

    Args:
        path: The file. It is created with the first finished layer.
        identity: What the run depends on.
        resume: Whether to go on from the file; without, a file that exists is started over.

    Raises:
        SettingsError: If there is nothing to go on from, or it belongs to another run; the
            message names the first difference.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self._identity = identity
        self._layers: dict[str, FloatArray] = {}
        if resume:
            self._read()

    def finished(self) -> Mapping[str, FloatArray]:
        """Return the thresholds of finished layers, by activation tensor."""
        return dict(self._layers)

    def store(self, tensor: str, values: FloatArray) -> None:
        """Keep a finished layer on disk.

        Raises:
            OutputError: If the file cannot be written.
        """
        self.store_all({tensor: values})

    def store_all(self, values: Mapping[str, FloatArray]) -> None:
        """Keep several arrays on disk, in place of those of the same names.

        Raises:
            OutputError: If the file cannot be written.
        """
        self._layers.update(values)
        lines = [json.dumps({"identity": self._identity})]
        for name, layer in self._layers.items():
            record = {
                "tensor": name,
                "shape": list(layer.shape),
                "values": np.asarray(layer, "<f4").tobytes().hex(),
            }
            lines.append(json.dumps(record))
        write_text(self.path, "\n".join(lines) + "\n")

    def remove(self) -> None:
        """Forget the run: its result is written."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            header, *records = self.path.read_text(encoding="utf-8").splitlines()
            found = dict(json.loads(header)["identity"])
            for record in map(json.loads, records):
                values = np.frombuffer(bytes.fromhex(record["values"]), "<f4")
                self._layers[record["tensor"]] = values.reshape(record["shape"]).copy()
        except FileNotFoundError as error:
            raise SettingsError(
                f"there is nothing to resume at {self.path}: leave --resume out"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.path} is not a readable checkpoint: delete it and start over"
            ) from error
        if found != self._identity:
            field = next(
                f"{outer}.{inner}" if inner else outer
                for outer, inner in _differences(found, self._identity)
            )
            raise SettingsError(
                f"{self.path} belongs to a run with another {field}: use the same options, or "
                "leave --resume out to start over"
            )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += [(key, inner) for inner, _ in _differences(before, after)]
        elif before != after:
            found.append((key, ""))
    return found
