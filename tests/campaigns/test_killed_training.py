"""Two trials of the campaign: killed at random moments, and resumed bit for bit."""

import pytest

from tests.campaigns.killed_training import run_trials


@pytest.mark.distributed
@pytest.mark.slow
def test_killed_and_resumed_runs_are_the_undisturbed_one(tmp_path):
    for outcome in run_trials(2, seed=0, work_dir=tmp_path):
        assert outcome.is_good, outcome
