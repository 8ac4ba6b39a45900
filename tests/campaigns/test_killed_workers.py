"""Six trials of the campaign: one of each kind."""

from tests.campaigns.killed_workers import KINDS, run_trials


def test_a_killed_worker_or_fork_server_ends_the_run_with_a_sentence(tmp_path):
    for outcome in run_trials(len(KINDS), seed=0, work_dir=tmp_path):
        assert outcome.is_good, outcome
