"""Where an expansion's new rows begin: read from its reports, and carried on by saved models."""

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.model.expansion.new_rows import (
    NEW_ROWS_FILE,
    first_new_row,
    new_rows_trained,
    record_of_new_rows,
)
from colossal_llama.utils.errors import UserError

INIT, EXPANSION = "init_report.json", "expansion_report.json"


@pytest.mark.parametrize(
    ("files", "first"),
    [
        ({}, None),
        ({INIT: {"rows": {"kept": 32_000, "new": 17_953}}}, 32_000),
        ({INIT: {"rows": {"kept": 32_000, "new": 0}}}, None),
        ({EXPANSION: {"source_vocab_size": 128_256, "vocab_size": 128_300}}, 128_256),
        ({EXPANSION: {"source_vocab_size": 128_256, "vocab_size": 128_256}}, None),
        ({EXPANSION: {"padded_vocab_size": 128_256}}, None),
        ({EXPANSION: {"padded_vocab_size": 9}, INIT: {"rows": {"kept": 5, "new": 2}}}, 5),
        # What a run carried on counts first, then what the model says, then its tokenizer.
        ({EXPANSION: {"source_vocab_size": 7, "vocab_size": 9}, INIT: {"rows": {"kept": 5, "new": 2}}}, 5),
        ({NEW_ROWS_FILE: {"first_new_row": 3}, INIT: {"rows": {"kept": 5, "new": 2}}}, 3),
        ({INIT: {"rows": ["of", "another", "program"]}}, None),
    ],
)
def test_the_first_new_row_is_read_from_the_records(tmp_path: Path, files: dict[str, Any], first: int | None):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert first_new_row(tmp_path) == first


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"rows": {"kept": "many", "new": 2}}',
        '{"rows": {"kept": 5}}',
        '{"rows": {"kept": true, "new": 1}}',
        '{"rows": {"kept": -1, "new": 1}}',
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str):
    (tmp_path / INIT).write_text(content)
    with pytest.raises(UserError, match=rf"{INIT}.*remove it"):
        first_new_row(tmp_path)


def test_what_is_carried_on_is_read_again(tmp_path: Path):
    assert record_of_new_rows(None) == {}
    for name, content in record_of_new_rows(49_152).items():
        (tmp_path / name).write_bytes(content)
    assert first_new_row(tmp_path) == 49_152


@pytest.mark.parametrize(
    ("files", "trained"),
    [
        ({}, None),
        ({INIT: {"rows": {"kept": 5, "new": 2}}}, False),
        ({INIT: {"rows": {"kept": 5, "new": 2}, "init_method": "distilled"}}, True),
        ({INIT: {"rows": {"kept": 5, "new": 0}}}, None),
        ({EXPANSION: {"source_vocab_size": 7, "vocab_size": 9}}, None),
        ({NEW_ROWS_FILE: {"first_new_row": 3}, INIT: {"rows": {"kept": 5, "new": 2}}}, None),
        ({NEW_ROWS_FILE: {"first_new_row": 3, "trained": True}, INIT: {"rows": {"kept": 5, "new": 2}}}, True),
        ({NEW_ROWS_FILE: {"first_new_row": 3, "trained": False}}, False),
    ],
)
def test_it_is_recorded_whether_new_rows_were_trained(tmp_path: Path, files: dict[str, Any], trained: bool | None):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert new_rows_trained(tmp_path) is trained


@pytest.mark.parametrize("trained", [True, False, None])
def test_what_is_carried_on_says_whether_they_were_trained(tmp_path: Path, trained: bool | None):
    for name, content in record_of_new_rows(7, trained).items():
        (tmp_path / name).write_bytes(content)
    assert new_rows_trained(tmp_path) is trained


def test_a_damaged_record_of_training_is_named(tmp_path: Path):
    (tmp_path / NEW_ROWS_FILE).write_text('{"first_new_row": 3, "trained": "yes"}')
    with pytest.raises(UserError, match="trained is 'yes'"):
        new_rows_trained(tmp_path)
