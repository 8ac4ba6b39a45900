"""Data sets of other programs train as the parts with the same rows do: with the same losses."""

import re

import datasets
import pytest

from tests.support.tokenized_data import FORMS, one_document, rows_of, save
from tests.support.training_runs import torchrun
from tests.support.versions import can_run

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

SHORT = ("--max_steps", "4", "--skip_save_each_epoch")
BATCH = ("--micro_batch_size", "2", "--use_neft")
PLUGINS = {
    "ddp": ("--plugin", "ddp", "--max_steps", "2", "--skip_save_each_epoch"),
    "3d": ("--plugin", "3d", "--max_steps", "2", "--skip_save_each_epoch", "--mixed_precision", "bf16"),
}
if can_run(DIVIDED := ("--plugin", "3d", "--pp", "2", "--micro_batch_size", "2")):
    PLUGINS["pp2"] = (*DIVIDED, "--max_steps", "2", "--skip_save_each_epoch", "--mixed_precision", "bf16")
RESUMED_AT = "epoch-0_step-2"


@pytest.fixture(scope="module")
def runs(runner, toy, tmp_path_factory):
    """What two ranks print; the runs' metrics are the runner's."""
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("sets")
    rows = [rows_of(part) for part in toy.parts]
    forms = {}
    for number, (name, form) in enumerate(FORMS.items()):
        of_parts = [save(of_part, root / name / part.name, form, 1 + number % 3, "int64" if number % 2 else "int32")
                    for of_part, part in zip(rows, toy.parts, strict=True)]  # fmt: skip
        forms[name] = [str(of_parts[0].parent)] if number % 2 else [str(path) for path in of_parts]
    chats = save(rows_of(toy.sft_parts[0]), root / "chats", one_document, 2)

    def command(name, data, *options, evaluated=()):
        words = runner.command(name, *options)
        first = words.index("--dataset") + 1
        words[first : first + len(toy.parts)] = data
        return [*words, *(("--eval_dataset", *evaluated, "--eval_interval", "2") if evaluated else ())]

    parts, sft = [str(part) for part in toy.parts], [str(toy.sft_parts[0])]
    commands = [command("parts", parts, *SHORT, *BATCH, evaluated=parts)]
    commands += [command(name, data, *SHORT, *BATCH, evaluated=data) for name, data in forms.items()]
    commands += [command("chat-parts", sft, *SHORT), command("chat-sets", [str(chats)], *SHORT)]
    padded = ("--padding_mode", "longest", "--accumulation_steps", "2", *SHORT)
    commands += [command("padded-parts", sft, *padded), command("padded-sets", [str(chats)], *padded)]
    for plugin, options in PLUGINS.items():
        commands += [
            command(f"{plugin}-parts", parts, *options),
            command(f"{plugin}-sets", forms["padded_left"], *options),
        ]
    interrupted = command("whole", forms["padded_right"], *BATCH, "--save_interval", "2", "--max_steps", "4")
    resumed = [*command("resumed", forms["with_positions"], *BATCH, "--max_steps", "4")]
    resumed += ["--load_checkpoint", str(runner.workspace / "whole" / "save" / RESUMED_AT)]
    return runner.run([*commands, interrupted, resumed], ranks=2, timeout_s=600)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_trains_and_validates_as_the_parts(runs, runner, form):
    expected, found = runner.metrics("parts"), runner.metrics(form)
    for name in ("loss", "eval_loss", "gradient_norm"):
        values = [entry[name] for entry in expected if name in entry]
        assert values
        assert [entry[name] for entry in found if name in entry] == values


@pytest.mark.parametrize("mode", ["chat", "padded"])
def test_samples_are_told_by_their_labels_and_packed_as_conversations(runs, runner, mode):
    assert runner.losses(f"{mode}-sets") == runner.losses(f"{mode}-parts")


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_reads_them_alike(runs, runner, plugin):
    assert runner.losses(f"{plugin}-sets") == runner.losses(f"{plugin}-parts")


def test_changed_rows_do_not_resume_a_run(runs, runner, toy, project_root, tmp_path):
    changed = [rows_of(part) for part in toy.parts]
    changed[1][4]["input_ids"][0] += 1  # the first token of a document, which is no target
    sets = [save(rows, tmp_path / "sets" / str(number), FORMS["as_they_are"]) for number, rows in enumerate(changed)]
    words = runner.command(
        "changed", *BATCH, "--load_checkpoint", str(runner.workspace / "whole" / "save" / RESUMED_AT)
    )
    first = words.index("--dataset") + 1
    words[first : first + len(sets)] = [",".join(map(str, sets))]
    done = torchrun("train.py", words, 1, project_root)
    assert done.returncode != 0
    assert "the data (--dataset, its order or its content) differs" in done.stderr


def test_a_run_goes_on_bit_for_bit_from_another_form_of_the_same_rows(runs, runner):
    assert runner.losses("resumed") == runner.losses("whole")[2:]
    whole, resumed = runner.weights("whole"), runner.weights("resumed")
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_what_was_read_is_said(runs):
    assert "a data set tokenized elsewhere (2 files)" in runs
    assert re.search(r"counts as conversations, since \d+ of 12 rows begin with tokens that are no targets", runs)
    assert "tokens of padding left out" in runs
    assert "which tokenizer made it is not recorded; row 0 begins '<s> w" in runs
