"""Prepared parts: what is wrong with one is named; the length of a full row comes from the data."""

import shutil

import pytest

from colossal_llama.dataset.part_reader import full_row_tokens, open_parts
from colossal_llama.utils.errors import UserError


@pytest.mark.parametrize(
    "facts", ["{}", "[]", '{"kind": "sft", "fingerprint": "f", "tokens": "many", "max_length": 9}']
)
def test_a_part_json_that_lacks_something_is_named(toy, tmp_path, facts):
    part = tmp_path / "part-00000"
    shutil.copytree(toy.parts[0], part)
    (part / "part.json").write_text(facts)
    with pytest.raises(UserError, match=r"--dataset: .*part-00000/part\.json lacks .*tokens"):
        open_parts([part], max_length=96)


def test_a_full_row_is_as_long_as_the_data_has_them(toy):
    """What attention is charged for: `--max_length` may be far above."""
    parts = open_parts(toy.parts, 4096)
    longest = max(len(row["input_ids"]) for part in parts for row in part.rows)
    assert full_row_tokens(parts, 4096, None) == longest < 4096
    assert full_row_tokens(parts, longest - 1, None) == longest - 1
    assert full_row_tokens(open_parts(toy.sft_parts, 4096), 4096, 4096) == 4096  # conversations packed to that
