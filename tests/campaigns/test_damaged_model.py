"""Damaged models and adapters are refused in a sentence, or used as they would be undamaged."""

import pytest

from tests.campaigns.damaged_model import KINDS, run_trials


@pytest.mark.slow
@pytest.mark.distributed
def test_no_damage_goes_unnoticed(tmp_path):
    outcomes = list(run_trials(len(KINDS), seed=1, work_dir=tmp_path))
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
    assert sum(outcome.result == "refused" for outcome in outcomes) > len(KINDS) - 6
