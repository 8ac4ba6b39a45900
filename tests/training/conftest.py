"""Fixtures of several tests of training."""

from pathlib import Path

import pytest


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """The arguments that train.py requires."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "part").mkdir()
    return ["--pretrained", str(tmp_path / "model"), "--dataset", str(tmp_path / "part")]
