"""Wild command lines end with sentences and leave nothing behind: the first of the campaign."""

from tests.campaigns import command_lines


def test_the_first_command_lines_of_the_campaign_end_well(tmp_path):
    outcomes = list(command_lines.run_trials(15, 7, tmp_path))
    assert len({outcome.kind.removesuffix(", alone") for outcome in outcomes}) == 15
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
