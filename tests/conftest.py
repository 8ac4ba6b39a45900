"""Fixtures that every test may use: the project's root, tokenizers and texts, a tiny model, a way to run train.py."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.model_fixtures"]

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout, from which every script is run."""
    return PROJECT_ROOT


REAL_DATA = Path(os.environ.get("COLOSSAL_LLAMA_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
"""Real tokenizers and texts, never committed."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real tokenizers and texts, for tests of what is true of them alone (marked `needs_data`); skips without them."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the real tokenizers and texts, and {REAL_DATA} is absent (set COLOSSAL_LLAMA_SHARED_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers and texts made on the spot, laid out as the real ones: for tests to which any would do."""
    from tests.support.made_data import make_data

    return make_data(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def made_llama2(made_data: Path) -> Path:
    """The made tokenizer of LLaMA-2's kind."""
    return made_data / "tokenizers" / "llama2"


@pytest.fixture(scope="session")
def any_data(request: pytest.FixtureRequest) -> Path:
    """The real tokenizers and texts where they are, else the made ones: for tests of what is true of both."""
    return REAL_DATA if REAL_DATA.is_dir() else request.getfixturevalue("made_data")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model and prepared parts (`runs.Toy`)."""
    from tests.support.training_runs import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def dropout_model(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with attention dropout: every step depends on the generators, and a random number drawn more shows."""
    path = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(toy.model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    return path


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest, project_root: Path, toy, tmp_path_factory: pytest.TempPathFactory):
    """Runs train.py many times in one launch (`runs.Runner`), with a workspace for one test module."""
    from tests.support.training_runs import Runner

    on_gpu = "gpu" in {mark.name for mark in request.node.iter_markers()}
    return Runner(project_root, toy, tmp_path_factory.mktemp("runs"), on_gpu)
