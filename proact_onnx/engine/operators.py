"""Operators that ONNX Runtime does not have itself, from shared libraries.

A library that was loaded stays in its process, and from then on all sessions made there know its
operators: those of a campaign are made at many places and times, and all for one model.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from proact_onnx.errors import SettingsError
from proact_onnx.messages import all_nodes

EXTENSIONS = "onnxruntime-extensions"
_MODULE = "onnxruntime_extensions"
# Domains of that package's operators.
_DOMAINS = ("ai.onnx.contrib", "com.microsoft.extensions")

# In the order in which sessions register them.
_loaded: list[Path] = []


def load_operators(libraries: Sequence[Path], model: onnx.ModelProto) -> str | None:
    """Let all sessions of this process know the operators of some libraries.

    Without libraries, a model that has operators of onnxruntime-extensions gets those of that
    package, where it is installed.

    Args:
        libraries: Shared libraries that export ``RegisterCustomOps``, as ONNX Runtime asks for.
        model: What is to run.

    Returns:
        A sentence on operators that nobody asked for; None without any.

    Raises:
        SettingsError: If a file is missing, or no such library.
    """
    for library in libraries:
        _load(library)
    version = extensions_version(libraries, model)
    if version is None:
        return None
    _load(_library_of_extensions())
    return f"operators that ONNX Runtime lacks come from {EXTENSIONS} {version}"


def extensions_version(libraries: Sequence[Path], model: onnx.ModelProto) -> str | None:
    """Version of onnxruntime-extensions where `load_operators` uses it; None where it does not."""
    if libraries or importlib.util.find_spec(_MODULE) is None:
        return None
    graphs = (model.graph.node, *(function.node for function in model.functions))
    domains = {node.domain for nodes in graphs for node in all_nodes(nodes)}
    return None if domains.isdisjoint(_DOMAINS) else importlib.metadata.version(EXTENSIONS)


def register_operators(options: ort.SessionOptions) -> None:
    """Let a session that is to be made know the operators that were loaded."""
    for library in _loaded:
        options.register_custom_ops_library(str(library))


def describe_unknown(operator: str, domain: str) -> str:
    """Say that ONNX Runtime lacks an operator, and what to do."""
    install = f"install {EXTENSIONS}, or " if domain in _DOMAINS else ""
    return (
        f"operator {operator} of domain {domain} is unknown to ONNX Runtime: {install}give the "
        "library that has it with --operators"
    )


def _load(library: Path) -> None:
    path = library.resolve()
    if path in _loaded:
        return
    if not path.is_file():
        raise SettingsError(f"there is no library of operators {library}: check --operators")
    try:
        ort.SessionOptions().register_custom_ops_library(str(path))
    except Exception as error:
        said = " ".join(str(error).rpartition("with error: ")[2].split())
        raise SettingsError(
            f"{library} is no library of operators for ONNX Runtime ({said}): give a shared "
            "library that exports RegisterCustomOps"
        ) from error
    _loaded.append(path)


@functools.cache
def _library_of_extensions() -> Path:
    return Path(importlib.import_module(_MODULE).get_library_path())
