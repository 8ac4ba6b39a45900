"""Shares of the ranks: every row once an epoch, whatever the number of ranks."""

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.collator import Collator
from colossal_llama.dataset.loader import RowReader, StepGeometry
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.utils.errors import UserError


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 200))
def test_ranks_share_each_step_completely_and_disjointly(micro, accumulation, ranks, rows):
    geometry = StepGeometry(micro, accumulation, ranks)
    seen = []
    for begin in range(0, rows, geometry.rows_per_step):
        step = list(range(begin, min(rows, begin + geometry.rows_per_step)))
        shares = [geometry.micro_batches(step, rank) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1  # as many collectives on every rank
        assert all(len(batch) <= micro for share in shares for batch in share)
        in_step = sorted(row for share in shares for batch in share for row in batch)
        assert in_step == step
        seen += in_step
    assert seen == list(range(rows))
    assert geometry.steps_for(rows) == len(range(0, rows, geometry.rows_per_step))


def test_a_part_that_is_cut_off_while_it_is_read_is_named_and_one_that_is_replaced_is_read_on(toy, tmp_path):
    part = shutil.copytree(toy.parts[0], tmp_path / "part")
    (file,) = part.glob("*.arrow")
    reader = RowReader(open_parts([part], 96), Collator(pad_token_id=0, max_length=96))
    before = reader.micro_batch([[3]])
    content = file.read_bytes()
    file.rename(tmp_path / "away")
    assert (reader.micro_batch([[3]]).input_ids == before.input_ids).all()
    file.write_bytes(content[:100])  # another file of that name
    assert (reader.micro_batch([[3]]).input_ids == before.input_ids).all()
    (tmp_path / "away").rename(file)
    os.truncate(file, 100)  # reading on would be SIGBUS
    with pytest.raises(UserError, match=rf"has become shorter while the run reads it \(100 of {len(content):,} bytes"):
        reader.micro_batch([[3]])
