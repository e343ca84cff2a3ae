"""Fixtures every test file may use."""

import os
import shutil
from pathlib import Path

import pytest

from tests.command_line import Command, commands_in

# Small networks gain nothing from threads, which wait long for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("PROACT_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Trained networks, real images and third-party graphs, in a folder beside the checkout."""
    if not (SHARED / "models").is_dir():
        pytest.skip(
            f"no trained models at {SHARED}: set PROACT_SHARED to the folder that holds "
            "models/, corpus/ and data/"
        )
    return SHARED


@pytest.fixture(scope="session")
def digits_dir() -> Path:
    """The committed example: ``digits.onnx``, ``calibration.npz`` and ``test.npz``."""
    return Path(__file__).parents[1] / "models" / "digits"


@pytest.fixture
def project(tmp_path: Path, digits_dir: Path) -> Path:
    """A working folder as a user has it: the example, its images and ``proact.toml``."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("digits.onnx", "calibration.npz", "test.npz", "proact.toml"):
        shutil.copy(digits_dir / name, folder / name)
    return folder


@pytest.fixture
def command(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``proact-onnx`` in that folder."""
    return commands_in(project, monkeypatch, capsys)
