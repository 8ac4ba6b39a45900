"""Shares of the ranks: every row once an epoch, whatever the number of ranks."""

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.loader import StepGeometry


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
