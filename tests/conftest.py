"""Fixtures that every test may use: the project's root, the real data, the interpreter's environment for subprocesses."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout, from which every script is run."""
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and texts (never committed): $COLOSSAL_LLAMA_SHARED_DATA, or ../shared/data beside the checkout."""
    place = Path(os.environ.get("COLOSSAL_LLAMA_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"needs the real tokenizers and texts, and {place} is absent (set COLOSSAL_LLAMA_SHARED_DATA)")
    return place
