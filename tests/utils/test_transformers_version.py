"""Which versions of transformers training accepts, and the two lists of requirements."""

import re

import pytest

from colossal_llama.training.command_line import parse_arguments
from colossal_llama.utils import transformers_version
from colossal_llama.utils.transformers_version import PINNED, TESTED_5, untested_version


@pytest.fixture
def installed(monkeypatch):
    return lambda version: monkeypatch.setattr(transformers_version, "transformers_version", lambda: version)


@pytest.mark.parametrize("version", [PINNED, "4.51.0", TESTED_5, "5.24.1"])
def test_these_are_used_without_a_word(installed, version):
    installed(version)
    assert transformers_version.unsupported_version() is None
    assert untested_version() is None


@pytest.mark.parametrize("version", ["5.0.0", "5.25.0.dev0", "6.1.2"])
def test_a_later_one_is_used_with_a_warning(installed, version):
    installed(version)
    assert transformers_version.unsupported_version() is None
    assert version in untested_version()


@pytest.mark.parametrize("version", ["4.50.3", "4.52.0", "4.57.1", "", "strange"])
def test_others_are_refused_with_everything_else_that_is_wrong(installed, capsys, version):
    installed(version)
    with pytest.raises(SystemExit):
        parse_arguments(["--lr", "-1"])
    message = capsys.readouterr().err
    assert f"transformers {version or 'is not installed'}: training needs {PINNED}" in message
    assert "--lr" in message


def test_both_lists_name_the_same_packages(project_root):
    """But for huggingface_hub, whose next release transformers 5.24 may not accept."""
    names, lines = {}, {}
    for name in ("requirements.txt", "requirements-transformers5.txt"):
        lines[name] = set((project_root / name).read_text().splitlines())
        names[name] = {match.group() for line in lines[name] if (match := re.match(r"[\w-]+", line))}
    assert names["requirements-transformers5.txt"] - names["requirements.txt"] == {"huggingface_hub"}
    assert names["requirements.txt"] <= names["requirements-transformers5.txt"]
    assert f"transformers=={PINNED}" in lines["requirements.txt"]
    assert f"transformers=={TESTED_5}" in lines["requirements-transformers5.txt"]
