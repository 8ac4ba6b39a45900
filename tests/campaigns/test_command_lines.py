"""Wild command lines end with sentences and leave nothing behind: the first of the campaign."""

import pytest

from tests.campaigns import command_lines
from tests.campaigns.outcome import WHOLE


@pytest.mark.slow
def test_the_lines_that_are_changed_work(tmp_path):
    world = command_lines.make_world(tmp_path / "world")
    for name, (_, words) in world.lines.items():
        outcome = command_lines.run_trial(world, name, words, is_alone=False)
        assert outcome.result == WHOLE, f"{outcome.kind}: {outcome.detail}"


def test_the_first_command_lines_of_the_campaign_end_well(tmp_path):
    outcomes = list(command_lines.run_trials(15, 7, tmp_path))
    assert len({outcome.kind.removesuffix(", alone") for outcome in outcomes}) == 15
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
