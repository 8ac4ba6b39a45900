"""Environments of other programs for tests, which skip where none can be made."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.clients.environment import client_environment


def environment_or_skip(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of a program's environment; skips the test without a package index."""
    try:
        return client_environment(name, requirements)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the environment {name} cannot be made here: {error}")
