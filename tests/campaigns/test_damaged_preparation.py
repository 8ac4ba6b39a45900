"""A few damages of preparations; the long form is run by hand."""

from tests.campaigns.damaged_preparation import run_trials


def test_damages_of_preparations_are_noticed(tmp_path):
    outcomes = list(run_trials(25, 1, tmp_path))
    assert len(outcomes) >= 25
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
