"""Four trials of the campaign: two of documents, two of conversations."""

from tests.campaigns.fuzzed_records import run_trials


def test_every_line_is_used_rejected_or_counted(tmp_path):
    for outcome in run_trials(4, seed=0, work_dir=tmp_path):
        assert outcome.is_good, outcome
