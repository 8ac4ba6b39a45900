"""Some signals at the end of a run; many by `python -m tests.campaigns signals_at_the_end`."""

import pytest

from tests.campaigns.signals_at_the_end import run_trials


@pytest.mark.distributed
def test_a_run_that_is_signalled_in_its_last_phase_ends_whole(tmp_path):
    bad = [outcome for outcome in run_trials(9, 1, tmp_path) if not outcome.is_good]
    assert not bad, bad
