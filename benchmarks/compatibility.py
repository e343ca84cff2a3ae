"""Harden every ONNX file of some folders, and write down what came of each.

    python benchmarks/compatibility.py FOLDER ... [--output docs/compatibility.md]

Each file is hardened with thresholds at the extremes of random inputs, or of an encoded image where
the model decodes one. The hardened file must pass
ONNX's checker and give in ONNX Runtime what the original gives on these inputs, up to rounding; or
else the file must be refused with a sentence.
"""

import argparse
import collections
import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from proact_onnx.data import Dataset, bundle
from proact_onnx.engine import Provider, load_operators
from proact_onnx.engine.session import BatchRunner, create_session, session_options
from proact_onnx.errors import ProactError
from proact_onnx.harden import harden
from proact_onnx.inspection import Inspection, inspect_model
from proact_onnx.model import ModelInput, load_model, model_inputs
from proact_onnx.settings import HardenSettings

# Extents that are tried where the model leaves them open.
_EXTENTS = (64, 224, 32, 128, 512, 10, 1)
_SAMPLES = 3
# What rounding may change, relative to the largest output.
_TOLERANCE = 1e-4
_REFUSED = "refused"
_CANNOT_RUN = ("ONNX Runtime cannot run the model", "is unknown to ONNX Runtime")
# What reads the content of an image file, in onnxruntime-extensions.
_DECODERS = ("DecodeImage", "ImageReader")
_IMAGE_SIDE = 64


@dataclass(frozen=True)
class Row:
    """What came of a file.

    Attributes:
        name: Its name.
        opset: Its opset; empty if it cannot be read.
        functions: Its activations, counted by operator.
        outcome: How many activations and linear outputs are bounded, and what the outputs do; or
            the sentence of the refusal.
        supported: Whether it has an activation that can be bounded.
        hardened: Whether it was hardened.
    """

    name: str
    opset: str
    functions: str
    outcome: str
    supported: bool
    hardened: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Work through the folders and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders with .onnx files")
    parser.add_argument("--output", type=Path, help="where to write; else to the terminal")
    given = parser.parse_args(arguments)
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    tables = {}
    for folder in (*given.folders, light):
        title = "`onnx/backend/test/data/light`" if folder == light else f"`{folder.name}`"
        tables[title] = [examine(path) for path in sorted(folder.glob("*.onnx"))]
    page = _page(tables)
    if given.output is None:
        print(page)
    else:
        given.output.write_text(page, encoding="utf-8")


def examine(path: Path) -> Row:
    """Inspect and harden a file, and compare it with its original."""
    logging.disable()
    try:
        found = inspect_model(path)
    except ProactError as error:
        return Row(path.name, "", "", f"{_REFUSED}: {_sentence(error, path)}", False, False)
    counts = collections.Counter(activation.op for activation in found.activations)
    functions = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    try:
        outcome = _harden(path, found)
        hardened = True
    except ProactError as error:
        outcome, hardened = f"{_REFUSED}: {_sentence(error, path)}", False
    return Row(path.name, str(found.opset), functions, outcome, bool(counts), hardened)


def _harden(path: Path, found: Inspection) -> str:
    model = load_model(path)
    load_operators((), model)
    session = _as_written(model)
    data = _calibration(model, session)
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for protect in ("activations", "linear"):
            if protect == "activations" and not found.activations:
                continue
            output = Path(folder) / f"{protect}.onnx"
            report = harden(
                path,
                data,
                output,
                test=data,
                settings=HardenSettings(method="ranger", protect=protect),
            )
            onnx.checker.check_model(str(output))
            change = _change(session, _as_written(load_model(output)), data)
            if change > _TOLERANCE:
                raise ProactError(f"the outputs change by {change:.1e} of the largest one")
            linear = len(report.activations) - len(found.activations)
            said.append(f"linear outputs: {linear}" if protect == "linear" else "hardened")
    return "; ".join(said)


def _as_written(model: onnx.ModelProto) -> BatchRunner:
    """A session that runs every node as it stands: optimisers alone move some outputs by 0.3 %."""
    options = session_options(1, optimise=False)
    return BatchRunner(create_session(model, Provider.CPU, options), model, _SAMPLES)


def _calibration(model: onnx.ModelProto, session: BatchRunner) -> Dataset:
    """Random inputs, from 0 to 1, of the first sizes that the model takes; all samples the same.

    Where a node decodes an image, its input is the content of a file.

    Raises:
        ModelError: If it takes none.
    """
    inputs = model_inputs(model)
    read = {node.input[0] for node in model.graph.node if node.op_type in _DECODERS}
    decoded = [each.name for each in inputs if each.name in read]
    failure: ProactError | None = None
    for whole, extent in _sizes(inputs):
        sizes = _open_sizes(model, extent)
        samples = {each.name: _sample(each, sizes[each.name], whole=whole) for each in inputs}
        if whole:
            samples |= dict.fromkeys(decoded, np.stack([_encoded_image()] * _SAMPLES))
        if len(inputs) > 1 or whole:
            images = bundle(samples, "random inputs")
        else:
            [images] = samples.values()
        try:
            session.run(images[:1])
        except ProactError as error:
            failure = failure or error
        else:
            return Dataset(images, None, "random inputs")
    assert failure is not None
    raise failure


def _sizes(inputs: Sequence[ModelInput]) -> Iterator[tuple[bool, int]]:
    fixed = {each.shape[0] for each in inputs if each.shape}
    as_batch = all(len(each.shape) > 1 for each in inputs) and len(fixed) == 1
    for whole in (False, True) if as_batch else (True,):
        for extent in _EXTENTS:
            yield whole, extent


def _open_sizes(model: onnx.ModelProto, extent: int) -> dict[str, tuple[int, ...]]:
    """By input, its shape with open extents filled in.

    What stands in front of any input is the batch, and 1 wherever it stands.
    """
    dims = {info.name: info.type.tensor_type.shape.dim for info in model.graph.input}
    batches = {shape[0].dim_param for shape in dims.values() if shape} - {""}
    return {
        name: tuple(
            dim.dim_value or (1 if not axis or dim.dim_param in batches else extent)
            for axis, dim in enumerate(shape)
        )
        for name, shape in dims.items()
    }


def _sample(wanted: ModelInput, shape: tuple[int, ...], *, whole: bool) -> npt.NDArray[np.generic]:
    values = np.random.default_rng(0).random(shape if whole else shape[1:])
    # Integers are 0 and 1, which are indices and flags of every model.
    values = values if wanted.dtype.kind == "f" else np.rint(values)
    return np.stack([values.astype(wanted.dtype)] * _SAMPLES)


def _encoded_image() -> npt.NDArray[np.uint8]:
    """The bytes of a PNG file: a ramp of colours."""
    ramp = np.linspace(0, 255, _IMAGE_SIDE).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


def _change(before: BatchRunner, after: BatchRunner, data: Dataset) -> float:
    """Largest change of any output on the calibration data, relative to the output's largest."""
    changes = [0.0]
    for old, new in zip(
        before.stream(data.images, before.outputs),
        after.stream(data.images, after.outputs),
        strict=True,
    ):
        for one, other in zip(old, new, strict=True):
            with contextlib.suppress(TypeError, ValueError):
                expected = one.astype(np.float64)
                largest = float(np.abs(expected).max(initial=0.0)) or 1.0
                changes.append(float(np.abs(other - expected).max(initial=0.0)) / largest)
    return max(changes)


def _sentence(error: ProactError, path: Path) -> str:
    text = str(error).replace(str(path), path.name).replace(f"{path.parent}/", "")
    return text if len(text) < 200 else f"{text[:200]}..."


def _page(tables: dict[str, list[Row]]) -> str:
    rows = [row for table in tables.values() for row in table]
    supported = [row for row in rows if row.supported]
    hardened = sum(row.hardened for row in supported)
    runnable = [row for row in supported if not any(text in row.outcome for text in _CANNOT_RUN)]
    linear = sum(row.hardened for row in rows if not row.supported)
    refused = sum(not row.hardened for row in rows)
    lines = [
        "# Compatibility",
        "",
        "What `harden --method ranger` makes of files from elsewhere, calibrated with random",
        "inputs, or with an encoded image where the model decodes one. Operators that ONNX Runtime",
        "lacks come from onnxruntime-extensions. *Hardened* means that the file passes ONNX's",
        "checker and gives in ONNX Runtime, unoptimised, what the original gives on these inputs,",
        f"up to {_TOLERANCE:g} of its largest output, and that with `--protect linear` it does so",
        "as well. This page is written by `make compatibility FOLDERS=...`.",
        "",
        f"- {len(rows)} files, {len(supported)} of them with an activation that can be bounded;",
        f"  {hardened} of these ({hardened / max(1, len(supported)):.0%}) are hardened, and of the",
        f"  {len(runnable)} that ONNX Runtime runs {hardened / max(1, len(runnable)):.0%}.",
        f"- {linear} without such an activation are hardened with `--protect linear` alone.",
        f"- {refused} are refused, each with the sentence in the table.",
    ]
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| file | opset | activations | outcome |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.opset} | {row.functions} | {row.outcome.replace('|', '/')} |"
            for row in table
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
