"""Fixtures every test file may use."""

import os
from pathlib import Path

import pytest

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
