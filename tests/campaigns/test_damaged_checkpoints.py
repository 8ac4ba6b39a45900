"""A checkpoint that is damaged in any file is refused or left out, with the file's name.

Some trials of the campaign, and what an earlier version wrote.
"""

import random
import shutil

import pytest

from tests.campaigns import damaged_checkpoints
from tests.campaigns.damaged_checkpoints import DAMAGES, FILES, HARMLESS, run_trial, written_without_checksums
from tests.campaigns.outcome import REFUSED, REPAIRED, WHOLE
from tests.support.layouts import LAST_CHECKPOINT_STEP, LAYOUTS, Runs

ZERO, TENSOR_PARALLEL, _, LORA, ALONE = LAYOUTS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize(
    ("layout", "file", "damage", "by_auto"),
    [
        (ZERO, "optimizer shard", damaged_checkpoints.flip_bit_at_the_end, False),
        (ZERO, "optimizer shard", damaged_checkpoints.swap_with_neighbour, True),
        (ZERO, "random states", damaged_checkpoints.flip_bit_at_the_end, True),
        (TENSOR_PARALLEL, "weights", damaged_checkpoints.flip_bit_at_the_end, True),
        (ALONE, "weights", damaged_checkpoints.add_a_copy, False),
        (ALONE, "optimizer shard", damaged_checkpoints.replace_by_pipe, False),
        (ALONE, "running states", damaged_checkpoints.replace_by_that_of_the_other, True),
        (ALONE, "checksums", damaged_checkpoints.delete, False),
        (ALONE, "schedule", damaged_checkpoints.replace_by_link_to_its_copy, False),
        (LORA, "weights", damaged_checkpoints.flip_bit_at_the_end, False),
        (LORA, "model configuration", damaged_checkpoints.leave_a_note, True),
    ],
)
def test_damage_is_named(runs, layout, file, damage, by_auto):
    outcome = run_trial(runs, "trial", layout, file, damage, by_auto, random.Random(0))
    expected = WHOLE if damage in HARMLESS else REPAIRED if by_auto else REFUSED
    assert outcome.result == expected, outcome.output


def test_checkpoints_without_checksums_resume(runs):
    name = "earlier"
    (path,) = runs.copy_checkpoints(ALONE, name, [LAST_CHECKPOINT_STEP])
    written_without_checksums(path)
    ended = runs.train(ALONE, name, "--load_checkpoint", "auto")
    assert ended.result() == WHOLE
    assert ended.stdout.count("was written without checksums") == 1
    assert runs.differences(ALONE, name) == []


def test_a_damaged_model_is_refused_as_a_start(runs):
    """The weights of a finished run; its configuration may be edited, which is said."""
    model = runs.save_dir("start") / "modelling"
    shutil.copytree(runs.save_dir(runs.undisturbed(ALONE)) / "modelling", model)
    config = model / "generation_config.json"
    config.write_text(config.read_text().replace("0.9", "0.8"))
    ended = runs.train(ALONE, "next", "--load_checkpoint", str(model), "--max_steps", "1")
    assert ended.result() == WHOLE
    assert f"{model} was edited or is damaged: " in ended.stdout
    weights = next(model.glob("*.safetensors"))
    damaged_checkpoints.flip_bit_at_the_end(weights, weights, random.Random(0))
    ended = runs.train(ALONE, "next", "--load_checkpoint", str(model), "--max_steps", "1")
    assert ended.result() == REFUSED
    assert f"{model} is damaged: the content of {weights.name}" in ended.stdout


def test_every_trial_is_possible():
    assert len(LAYOUTS) * len(FILES) * len(DAMAGES) > 38
