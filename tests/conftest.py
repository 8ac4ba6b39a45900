"""Fixtures and markers of all tests.

Fixtures: the project's root, tokenizers and texts, a tiny model, a way to run train.py. Markers
(pyproject.toml) are applied here where a fixture or a directory implies them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.model_fixtures"]

PROJECT_ROOT = Path(__file__).resolve().parents[1]
LONGEST_ROOMS = ("integration", "engine")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose fixtures or directory imply a marker; the longest files come first."""
    for item in items:
        for name in _implied_markers(item):
            item.add_marker(name)
    items.sort(key=lambda item: item.path.parent.name not in LONGEST_ROOMS)


def _implied_markers(item: pytest.Item) -> set[str]:
    room, fixtures = item.path.parent.name, set(getattr(item, "fixturenames", ()))
    markers = {"gpu"} if room == "gpu" else set()
    if "runner" in fixtures:
        markers.add("distributed")
    if "shared_data" in fixtures:
        markers.add("needs_data")
    if room == "engine" or "runner" in fixtures or item.get_closest_marker("distributed"):
        markers.add("engine")
    return markers


SCRIPT_VARIABLES = {name: os.environ.get(name) for name in ("USE_TORCH", "TRANSFORMERS_NO_ADVISORY_WARNINGS")}
"""What the scripts that need no torch set for themselves, as it was before any test."""


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """Takes back variables that a test or a fixture has set by calling a script's function."""
    _restore_script_variables()
    yield
    _restore_script_variables()


def _restore_script_variables() -> None:
    for name, value in SCRIPT_VARIABLES.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout, from which every script is run."""
    return PROJECT_ROOT


REAL_DATA = Path(os.environ.get("COLOSSAL_LLAMA_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
"""Real tokenizers and texts, never committed."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real tokenizers and texts, for tests of what is true of them alone (marked `needs_data`);
    skips without them.
    """
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the real tokenizers and texts, and {REAL_DATA} is absent (set COLOSSAL_LLAMA_SHARED_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers and texts made on the spot, laid out as the real ones: for tests to which any
    would do.
    """
    from tests.support.made_data import make_data

    return make_data(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def made_llama2(made_data: Path) -> Path:
    """The made tokenizer of LLaMA-2's kind."""
    return made_data / "tokenizers" / "llama2"


@pytest.fixture(scope="session")
def any_data(request: pytest.FixtureRequest) -> Path:
    """The real tokenizers and texts where they are, else the made ones: for tests of what is true
    of both.
    """
    return REAL_DATA if REAL_DATA.is_dir() else request.getfixturevalue("made_data")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model and prepared parts (`training_runs.Toy`)."""
    from tests.support.training_runs import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def dropout_model(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with attention dropout: every step depends on the generators, and a random
    number drawn more shows.
    """
    from tests.support.training_runs import copy_with_config

    return copy_with_config(toy.model, tmp_path_factory.mktemp("dropout") / "model", attention_dropout=0.1)


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest, project_root: Path, toy, tmp_path_factory: pytest.TempPathFactory):
    """Runs train.py many times in one launch (`training_runs.Runner`), with a workspace for one
    test module.
    """
    from tests.support.training_runs import Runner

    on_gpu = "gpu" in {mark.name for mark in request.node.iter_markers()}
    return Runner(project_root, toy, tmp_path_factory.mktemp("runs"), on_gpu)
