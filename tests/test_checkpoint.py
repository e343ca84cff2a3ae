"""Interrupted hardening goes on with the very same numbers, or refuses and says why."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from proact_onnx.checkpoint import FileCheckpoint
from proact_onnx.data import Dataset, Preprocessing, load_dataset
from proact_onnx.errors import OutputError, SettingsError
from proact_onnx.harden import HardenReport, harden
from proact_onnx.progress import LogReporter
from proact_onnx.settings import HardenSettings

IDENTITY = {"model": "ab", "settings": {"seed": 0, "slack": 1.01}}
LAYERS = {
    "scalar": np.float32(0.1),
    "neurons": np.random.default_rng(0).random((1, 3, 2)).astype(np.float32),
    "tiny": np.array([[1e-45, 0.0, 3.4e38]], np.float32),
    'ö/ " \n': np.asarray(2.0, np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx.checkpoint"


@pytest.fixture
def filled(path: Path) -> Path:
    checkpoint = FileCheckpoint(path, IDENTITY, resume=False)
    for tensor, values in LAYERS.items():
        checkpoint.store(tensor, values)
    return path


def test_layers_come_back_bit_for_bit(filled: Path) -> None:
    found = FileCheckpoint(filled, IDENTITY, resume=True).finished()
    assert list(found) == list(LAYERS)
    for tensor, values in LAYERS.items():
        assert found[tensor].dtype == np.float32
        assert found[tensor].shape == values.shape
        assert found[tensor].tobytes() == values.tobytes()
        assert found[tensor].flags.writeable


def test_every_stored_layer_is_on_disk(path: Path) -> None:
    checkpoint = FileCheckpoint(path, IDENTITY, resume=False)
    assert checkpoint.finished() == {}
    assert not path.exists()
    for count, (tensor, values) in enumerate(LAYERS.items(), start=1):
        checkpoint.store(tensor, values)
        assert len(FileCheckpoint(path, IDENTITY, resume=True).finished()) == count
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_resume_it_starts_over(filled: Path) -> None:
    checkpoint = FileCheckpoint(filled, IDENTITY, resume=False)
    assert checkpoint.finished() == {}
    checkpoint.store("other", np.float32(1))
    assert list(FileCheckpoint(filled, IDENTITY, resume=True).finished()) == ["other"]


def test_remove(filled: Path) -> None:
    checkpoint = FileCheckpoint(filled, IDENTITY, resume=True)
    checkpoint.remove()
    checkpoint.remove()
    assert list(filled.parent.iterdir()) == []


def test_nothing_to_resume(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing to resume at .*checkpoint: leave --resume"):
        FileCheckpoint(path, IDENTITY, resume=True)


@pytest.mark.parametrize(
    ("identity", "field"),
    [
        ({**IDENTITY, "model": "cd"}, "model"),
        ({**IDENTITY, "settings": {"seed": 1, "slack": 1.01}}, "settings.seed"),
        ({**IDENTITY, "settings": {"seed": 0}}, "settings.slack"),
        ({**IDENTITY, "data": "ef"}, "data"),
    ],
)
def test_another_run_is_refused(filled: Path, identity: dict[str, object], field: str) -> None:
    with pytest.raises(SettingsError, match=rf"belongs to a run with another {re.escape(field)}:"):
        FileCheckpoint(filled, identity, resume=True)


DAMAGE = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "not JSON": lambda text: "hello\n",
    "another JSON": lambda text: "[1, 2]\n",
    "an identity that is none": lambda text: '{"identity": 5}\n',
    "no identity": lambda text: "{}\n",
    "a layer without values": lambda text: text + '{"tensor": "a", "shape": []}\n',
    "values that are no numbers": lambda text: text.replace('"values": "', '"values": "xy'),
    "a shape that does not fit": lambda text: text.replace("[1, 3, 2]", "[1, 3, 3]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(filled: Path, damage: str) -> None:
    text = filled.read_text(encoding="utf-8")
    filled.write_text(DAMAGE[damage](text), encoding="utf-8")
    assert filled.read_text(encoding="utf-8") != text
    with pytest.raises(SettingsError, match=r"net\.onnx\.checkpoint is not a readable checkpoint"):
        FileCheckpoint(filled, IDENTITY, resume=True)


def test_bytes_that_are_no_text_are_refused(filled: Path) -> None:
    filled.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="delete it and start over"):
        FileCheckpoint(filled, IDENTITY, resume=True)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "gone" / "file", IDENTITY, resume=False)
    with pytest.raises(OutputError, match=r"cannot write .*file: No such file or directory"):
        checkpoint.store("a", np.float32(1))


QUICK = HardenSettings(
    calibration_images=96, accept_images=64, epochs=2, epochs_neuron=2, train_batch=32
)


class Interrupt(LogReporter):
    """Stops a run as Ctrl-C does, after some epochs."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs
        self._training = False

    def begin(self, task: str, total: int) -> None:
        self._training = task.startswith("training")

    def advance(self, steps: int = 1) -> None:
        self._left -= self._training
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def digits(digits_dir: Path) -> tuple[Path, Dataset]:
    return digits_dir / "digits.onnx", load_dataset(digits_dir / "calibration.npz")


def run(digits: tuple[Path, Dataset], output: Path, **options: object) -> HardenReport:
    model, data = digits
    preprocessing = Preprocessing(scale=1 / 16)
    return harden(
        model, data, output, **{"settings": QUICK, "preprocessing": preprocessing, **options}
    )


@pytest.fixture(scope="module")
def uninterrupted(
    digits: tuple[Path, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> HardenReport:
    return run(digits, tmp_path_factory.mktemp("whole") / "out.onnx")


def assert_equal_runs(one: HardenReport, other: HardenReport) -> None:
    for tensor, values in one.thresholds.values.items():
        np.testing.assert_array_equal(other.thresholds.values[tensor], values, err_msg=tensor)
    assert one.output.read_bytes() == other.output.read_bytes()


# An epoch that is reported ends at the layer's last: two calls a layer, and one for what is left.
@pytest.mark.parametrize("epochs", [4, 8, 19])
def test_an_interrupted_run_goes_on(
    digits: tuple[Path, Dataset], uninterrupted: HardenReport, tmp_path: Path, epochs: int
) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(KeyboardInterrupt):
        run(digits, output, reporter=Interrupt(epochs))
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx.checkpoint"]
    stored = (tmp_path / "out.onnx.checkpoint").read_text().count('"tensor"')
    assert 0 < stored < len(uninterrupted.activations)
    resumed = run(digits, output, resume=True)
    assert_equal_runs(uninterrupted, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_a_killed_run_goes_on(
    digits: tuple[Path, Dataset], uninterrupted: HardenReport, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the third layer leaves no chance to tidy up."""
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from proact_onnx.data import Preprocessing, load_dataset
from proact_onnx.harden import harden
from proact_onnx.progress import LogReporter
from proact_onnx.settings import HardenSettings

class Killer(LogReporter):
    left = 7
    training = False
    def begin(self, task, total):
        self.training = task.startswith("training")
    def advance(self, steps=1):
        self.left -= self.training
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

harden(Path({str(digits[0])!r}), load_dataset(Path({str(digits[0].parent)!r}) / "calibration.npz"),
       Path({str(tmp_path / "out.onnx")!r}), settings=HardenSettings(
       calibration_images=96, accept_images=64, epochs=2, epochs_neuron=2, train_batch=32),
       preprocessing=Preprocessing(scale=1/16), reporter=Killer())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx.checkpoint"]
    assert_equal_runs(uninterrupted, run(digits, tmp_path / "out.onnx", resume=True))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"settings": HardenSettings(calibration_images=96)}, r"settings\.accept_images"),
        ({"preprocessing": Preprocessing()}, r"preprocessing\.scale"),
    ],
)
def test_a_run_with_other_options_does_not_go_on(
    digits: tuple[Path, Dataset], tmp_path: Path, options: dict[str, object], field: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "out.onnx", reporter=Interrupt(4))
    before = (tmp_path / "out.onnx.checkpoint").read_bytes()
    with pytest.raises(SettingsError, match=f"belongs to a run with another {field}: use the same"):
        run(digits, tmp_path / "out.onnx", resume=True, **options)
    assert (tmp_path / "out.onnx.checkpoint").read_bytes() == before


def test_another_model_or_other_data_do_not_go_on(
    digits: tuple[Path, Dataset], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "out.onnx", reporter=Interrupt(4))
    model, data = digits
    fewer = data.take(range(1000))
    with pytest.raises(SettingsError, match="run with another data"):
        run((model, fewer), tmp_path / "out.onnx", resume=True)
    changed = onnx.load(model)
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(SettingsError, match="run with another model"):
        run((tmp_path / "changed.onnx", data), tmp_path / "out.onnx", resume=True)


def test_the_file_is_lines_of_json(filled: Path) -> None:
    header, *layers = map(json.loads, filled.read_text(encoding="utf-8").splitlines())
    assert header == {"identity": IDENTITY}
    assert [layer["tensor"] for layer in layers] == list(LAYERS)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_training_under_faults_goes_on(
    digits: tuple[Path, Dataset], tmp_path: Path, progressive: bool
) -> None:
    settings = replace(QUICK, train_ber=1e-4, progressive=progressive, epochs_together=4)
    whole = run(digits, tmp_path / "whole.onnx", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "out.onnx", settings=settings, reporter=Interrupt(3))
    resumed = run(digits, tmp_path / "out.onnx", settings=settings, resume=True)
    assert_equal_runs(whole, resumed)
