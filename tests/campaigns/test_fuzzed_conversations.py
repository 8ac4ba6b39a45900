"""A few trials of the campaign of fuzzed conversations."""

from tests.campaigns.fuzzed_conversations import run_trials


def test_every_record_is_used_or_rejected_and_the_right_answers_are_targets(tmp_path):
    outcomes = list(run_trials(6, 1, tmp_path))
    assert len(outcomes) == 6
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
