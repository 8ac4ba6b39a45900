"""Fixtures that every test may use: the project's root, the real data, the interpreter's environment for subprocesses."""

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and texts (never committed): $COLOSSAL_LLAMA_SHARED_DATA, or ../shared/data beside the checkout."""
    place = Path(os.environ.get("COLOSSAL_LLAMA_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"needs the real tokenizers and texts, and {place} is absent (set COLOSSAL_LLAMA_SHARED_DATA)")
    return place


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
