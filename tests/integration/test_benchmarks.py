"""Benchmarks and examples name what the package has; the examples in their docstrings hold."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama.engine.launch import prepare_engine
from tests.support.project_tree import project_files

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [file for folder in ("benchmarks", "examples") for file in project_files(PROJECT_ROOT / folder)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_imported_name_exists(script):
    """Most of these scripts run on GPUs only: a stale import would be noticed there."""
    prepare_engine()
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in (node for node in nodes if (node.module or "").startswith("colossal_llama")):
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names):
            submodule = f"{node.module}.{name}"
            assert hasattr(module, name) or importlib.util.find_spec(submodule), f"{script}:{node.lineno}: {name}"


@pytest.mark.parametrize(
    "script", ["allocated_memory", "dirty_corpus", "dirty_texts", "real_model_runs", "real_model_inputs"]
)
def test_the_arithmetic_of_figures_is_that_of_its_examples(project_root, script):
    """Peaks without what former runs left; steps of equal FLOPs, and where curves cross."""
    command = [sys.executable, "-m", "doctest", f"benchmarks/{script}.py"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
