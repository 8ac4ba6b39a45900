"""Prepared parts: what is wrong with one is named; the length of a full row comes from the data."""

import json
import shutil

import pytest

from colossal_llama.dataset.part import full_row_tokens
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.utils.errors import UserError


@pytest.fixture
def part(toy, tmp_path):
    return shutil.copytree(toy.parts[0], tmp_path / "part-00000")


@pytest.mark.parametrize("facts", ["{}", '{"kind": "sft", "fingerprint": "f", "tokens": "many", "max_length": 9}'])
def test_a_part_json_that_lacks_something_is_named(part, facts):
    (part / "part.json").write_text(facts)
    with pytest.raises(UserError, match=r"--dataset: .*part-00000/part\.json lacks .*tokens"):
        open_parts([part], max_length=96)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "chat"}, "the kind 'chat' is none of pretrain, sft"),
        ({"tokens": True}, "lacks tokens"),
        ({"rows": 9}, "the Arrow file holds 10 rows, and part.json says 9"),
        ({"tokens": 9}, r"the Arrow file holds \d+ tokens, and part.json says 9"),
        ({"categories": ["a", "c"]}, "names other categories"),
        ({"jsonl_sha256": "0", "categories": ["a", "b"]}, "its fingerprint is not that of its kind"),
    ],
)
def test_a_part_json_that_contradicts_the_rows_is_refused(part, values, said):
    facts = json.loads((part / "part.json").read_text())
    (part / "part.json").write_text(json.dumps({**facts, **values}))
    with pytest.raises(UserError, match=f"--dataset: .*{said}"):
        open_parts([part], max_length=96)


@pytest.mark.parametrize("name", ["part.json", "state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["[]", "null", '{"a', "\ufeff{}"])
def test_json_files_of_another_kind_are_named(part, name, content):
    (part / name).write_text(content)
    with pytest.raises(UserError, match=r"--dataset: .*part-00000"):
        open_parts([part], max_length=96)


def test_a_full_row_is_as_long_as_the_data_has_them(toy):
    """What attention is charged for: `--max_length` may be far above."""
    parts = open_parts(toy.parts, 4096)
    longest = max(len(row["input_ids"]) for part in parts for row in part.rows)
    assert full_row_tokens(parts, 4096, None) == longest < 4096
    assert full_row_tokens(parts, longest - 1, None) == longest - 1
    assert full_row_tokens(open_parts(toy.sft_parts, 4096), 4096, 4096) == 4096  # conversations packed to that
