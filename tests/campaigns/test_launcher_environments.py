"""Some odd environments; many by `python -m tests.campaigns launcher_environments`."""

import pytest

from tests.campaigns.launcher_environments import run_trials


@pytest.mark.engine
def test_odd_environments_are_refused_in_a_sentence(tmp_path):
    bad = [outcome for outcome in run_trials(9, 1, tmp_path) if not outcome.is_good]
    assert not bad, bad
