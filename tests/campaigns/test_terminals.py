"""Scripts on badly prepared terminals: one condition of each kind of the campaign."""

import pytest

from tests.campaigns.command_lines import World, make_world
from tests.campaigns.outcome import REFUSED, STOPPED, WHOLE
from tests.campaigns.terminals import run_trial


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("terminals") / "world")


@pytest.mark.parametrize(
    ("name", "condition", "result"),
    [
        ("plot_training", "all streams closed", WHOLE),
        ("scale_model", "stdout full", REFUSED),
        ("scale_model", "reader gone", STOPPED),
        ("scale_model", "C locale", WHOLE),
        ("survey", "working directory gone", REFUSED),
        ("survey", "ulimit -n 20", WHOLE),
        ("survey", "no HOME", WHOLE),
    ],
)
def test_a_script_ends_as_undisturbed_or_with_a_sentence(world, name, condition, result):
    outcome = run_trial(world, condition, name)
    assert outcome.result == result, outcome.output
