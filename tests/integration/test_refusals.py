"""What would destroy a user's model, mix the records of two runs or end in a traceback: refused by
all ranks in one message.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from safetensors.torch import load_file

from colossal_llama.utils.file_lock import directory_lock
from tests.support.training_runs import MAX_LENGTH

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2", "--save_interval", "2")  # 33 rows, 8 a step
NEXT = (*BATCH, "--max_steps", "1")

# Runs command lines as benchmarks/train_many.py does, goes on after a refusal, and notes each one's
# type and problems on every rank.
ONE_AFTER_THE_OTHER = """
import json, os, sys
from pathlib import Path
from colossal_llama.training import train
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.engine import launch

launch.launch(seed=0)

outcomes = {{}}
for command in json.loads(Path(sys.argv[1]).read_text()):
    name = command.pop()
    outcomes[name] = None
    try:
        train.train(parse_arguments(command, has_gpu=False, world_size=int(os.environ["WORLD_SIZE"])))
    except BaseException as error:
        outcomes[name] = [type(error).__name__, *getattr(error, "problems", [repr(error)])]
Path("{place}", "outcomes-" + os.environ["RANK"] + ".json").write_text(json.dumps(outcomes))
launch.leave()
"""


@pytest.fixture(scope="module")
def done(runner, toy) -> dict:
    """All command lines, in one launch on two ranks: what came of them by name, and what was
    printed.
    """
    place, save = runner.workspace, runner.workspace / "stage" / "save"
    shutil.copytree(toy.model, place / "second" / "save" / "modelling")
    shutil.copytree(toy.model, place / "cut")
    (weights,) = (place / "cut").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    shutil.copytree(toy.model, place / "base")
    shutil.copytree(toy.model, place / "few_positions_model")
    config = json.loads((toy.model / "config.json").read_text())
    (place / "few_positions_model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    shutil.copytree(toy.model, place / "no_unk")
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads((place / "no_unk" / file).read_text())
        settings.pop("unk_token", None)
        (place / "no_unk" / file).write_text(json.dumps(settings))
    shutil.copytree(toy.model, place / "third" / "save" / "modelling")
    (place / "planned" / "config.json.dry_run.json").mkdir(parents=True)
    checkpoint = str(save / "epoch-0_step-2" / "modelling")

    def stage(*options: str) -> list[str]:
        return runner.command("stage", *BATCH, *options, pretrained=False)

    benchmark = [word for word in stage("--benchmark", "--num_samples", "16") if word not in map(str, toy.parts)]
    benchmark.remove("--dataset")
    begin, lora = ("--pretrained", str(toy.model)), ("--lora_rank", "4")
    shrunk = runner.command("shrunk", *BATCH, "--load_checkpoint", str(save / "epoch-0_step-4"), "--allow_other_data")
    shrunk = [word for word in shrunk if word not in map(str, toy.parts[1:])]
    rows = ("--first_new_row", "150")
    resumes = ("--load_checkpoint", str(place / "rows" / "save" / "epoch-0_step-2"))
    second = str(place / "second" / "save" / "modelling")
    commands = {
        "begins": stage(*begin, "--max_steps", "2"),
        "benchmark": [*benchmark, *begin],
        "goes_on": stage("--load_checkpoint", "auto", "--max_steps", "4"),
        "finished": stage("--load_checkpoint", "auto", "--max_steps", "4", "--eval_dataset", str(toy.parts[1])),
        "takes_the_logs": runner.command("other", *NEXT, "--tensorboard_dir", str(place / "stage" / "logs")),
        "finds_others_logs": stage("--load_checkpoint", "auto", "--max_steps", "5"),
        "cut_weights": runner.command("of_cut", *NEXT, "--pretrained", str(place / "cut"), pretrained=False),
        "no_unk": runner.command(
            "of_no_unk", *NEXT, "--pretrained", str(place / "no_unk"), "--pad_token", "unk", pretrained=False
        ),
        "planned": runner.command("planned", *NEXT, "--dry_run"),
        "no_config": runner.command("third", *NEXT, "--config_file", "/proc/no_such_place/config.json"),
        "lora_on_final": stage("--pretrained", str(save / "modelling"), *lora, "--merge_lora"),
        "lora_on_checkpoint": stage("--load_checkpoint", checkpoint, *lora),
        "full_on_checkpoint": stage("--load_checkpoint", checkpoint),
        "shrunk": shrunk,
        "few_positions": runner.command(
            "few_positions", *NEXT, "--pretrained", str(place / "few_positions_model"), "--dry_run", pretrained=False
        ),
        "held_logs": runner.command("held", *NEXT),
        "elsewhere": runner.command("elsewhere", *BATCH, "--max_steps", "3", "--save_interval", "1"),
        "from_elsewhere": runner.command(
            "elsewhere",
            *BATCH,
            "--load_checkpoint",
            str(save / "epoch-0_step-2"),
            "--max_steps",
            "3",
            "--save_interval",
            "1",
            "--keep_last",
            "1",
            pretrained=False,
        ),
        "lora": runner.command("lora", *NEXT, *lora, "--pretrained", str(place / "base"), pretrained=False),
        "lora_elsewhere": runner.command(
            "lora_elsewhere",
            *NEXT,
            *lora,
            "--pretrained",
            str(toy.model),
            "--load_checkpoint",
            str(place / "lora" / "save" / "modelling"),
            pretrained=False,
        ),
        "no_expansion": runner.command("no_expansion", *NEXT, "--train_only", "new_rows", "--new_row_lr", "1e-3"),
        "no_such_row": runner.command("no_such_row", *NEXT, "--train_only", "new_rows", "--first_new_row", "203"),
        "no_such_layer": runner.command("no_such_layer", *NEXT, "--freeze_layers", "3"),
        "new_rows": runner.command("rows", *BATCH, *rows, "--train_only", "new_rows", "--max_steps", "2"),
        "other_rows": runner.command("rows", *BATCH, *rows, "--train_only", "embeddings", *resumes),
        "all_rows": runner.command("rows", *BATCH, *rows, *resumes),
        "fewer_rows": runner.command(
            "rows", *BATCH, "--train_only", "new_rows", "--first_new_row", "160", "--max_steps", "3", *resumes
        ),
        "second": runner.command("second", *NEXT, "--load_checkpoint", second, pretrained=False),
    }
    script = place / "one_after_the_other.py"
    script.write_text(ONE_AFTER_THE_OTHER.format(place=place))
    with directory_lock(place / "held" / "logs"):
        printed = runner.run([[*words, name] for name, words in commands.items()], ranks=2, script=str(script))
    first, other = (json.loads((place / f"outcomes-{rank}.json").read_text()) for rank in range(2))
    assert first == other, "the ranks ended differently"
    return {**first, "printed": printed}


def test_new_rows_that_no_record_names_and_layers_that_are_not_there(done):
    for name, words in (
        ("no_expansion", ("--train_only new_rows and --new_row_lr", "no expansion is recorded", "--first_new_row")),
        ("no_such_row", ("--first_new_row 203", "has ids for 203 rows only")),
        ("no_such_layer", ("--freeze_layers 3", "has 2 layers")),
    ):
        kind, problem = done[name]
        assert kind == "CollectiveError"
        assert all(word in problem for word in words), problem


def test_frozen_rows_are_not_trained_on_by_a_resumed_run(done):
    """Their moments would be zeros of as many steps; fewer rows than before are possible."""
    assert done["new_rows"] is None
    assert done["fewer_rows"] is None
    assert "trained new embedding rows only" in done["other_rows"][1]
    for name in ("other_rows", "all_rows"):
        kind, problem = done[name]
        assert kind == "CollectiveError"
        assert "its modelling folder" in problem


def test_the_base_of_an_adapter_is_not_overwritten_by_it(done, runner):
    save = runner.workspace / "stage" / "save"
    for name, base in (("lora_on_final", "modelling"), ("lora_on_checkpoint", "epoch-0_step-2/modelling")):
        kind, problem = done[name]
        assert kind == "CollectiveError"
        assert str(save / base) in problem
        assert "another --save_dir" in problem
    names = {path.name for path in save.iterdir() if not path.name.startswith(".")}
    assert names == {"epoch-0_step-2", "epoch-0_step-4", "modelling"}
    assert "model.embed_tokens.weight" in all_weights(save / "modelling")


def all_weights(folder: Path) -> dict:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_checkpoint_that_a_run_begins_from_is_not_renamed(done, runner):
    """And a model is replaced at the end of the next stage, but not in silence; one that no run
    wrote is kept.
    """
    assert "another --save_dir" in done["full_on_checkpoint"][1]
    assert done["second"] is None
    assert "is replaced by the model of this run when it ends: it is archived then" in done["printed"]
    assert all_weights(runner.workspace / "second" / "save" / "superseded-0-modelling")


def test_a_benchmark_leaves_the_record_of_a_run_alone(done, runner):
    assert (done["begins"], done["benchmark"], done["goes_on"]) == (None, None, None)
    logs = runner.workspace / "stage" / "logs"
    assert [json.loads(line)["step"] for line in (logs / "metrics-0.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    measured = [json.loads(line) for line in (logs / "benchmark.jsonl").read_text().splitlines()]
    assert [entry["tokens_seen"] for entry in measured] == [8 * MAX_LENGTH, 16 * MAX_LENGTH]
    # Of a run begun, gone on with, and started again when finished.
    assert len(list(logs.glob("events-0/events.*"))) == 3
    assert (
        f"benchmark: no step is left after 3 of warm-up: raise --num_samples; the metrics are in {logs}"
        in done["printed"]
    )


def test_two_runs_do_not_write_one_record(done, runner):
    """Neither at a time nor one after the other: a fresh one sets the former's aside, one that goes
    on would be mixed with it.
    """
    logs, save = runner.workspace / "stage" / "logs", runner.workspace / "other" / "save"
    assert done["takes_the_logs"] is None
    assert [entry["step"] for entry in runner.metrics("stage")] == [1]
    assert len(list(logs.glob("events.*"))) == 1
    assert f"the metrics of an earlier run in {logs} are archived as metrics-0.jsonl and events-0/" in done["printed"]
    assert done["finds_others_logs"][0] == "CollectiveError"
    assert f"{logs} holds the metrics of the run with --save_dir {save}" in done["finds_others_logs"][1]
    assert "another run is writing into" in done["held_logs"][1]
    assert "another --tensorboard_dir" in done["held_logs"][1]
    assert {path.name for path in (runner.workspace / "held" / "logs").iterdir()} == {".lock"}


def test_what_cannot_be_read_or_written_is_said(done, runner):
    for name, said in {
        "cut_weights": "it is incomplete or damaged",
        "no_unk": "has no unk token: give --pad_token eos",
        "planned": "cannot be written: Is a directory",
    }.items():
        kind, problem = done[name]
        assert (kind, said in problem) == ("CollectiveError", True), (name, problem)
    assert str(runner.workspace / "cut" / "model.safetensors") in done["cut_weights"][1]
    assert problem.startswith(f"--config_file: {runner.workspace / 'planned' / 'config.json.dry_run.json'}")


def test_a_run_that_fails_while_it_begins_sets_nothing_aside(done, runner):
    kind, problem = done["no_config"]
    assert kind == "CollectiveError"
    assert "/proc/no_such_place" in problem
    assert [path.name for path in (runner.workspace / "third" / "save").iterdir() if path.is_dir()] == ["modelling"]


def test_a_run_that_goes_on_in_another_directory_sets_aside_what_lies_there(done, runner):
    """It is another run's past, and `--keep_last` would delete it."""
    assert (done["elsewhere"], done["from_elsewhere"]) == (None, None)
    place = runner.workspace / "elsewhere"
    left = {path.name for path in (place / "save").glob("*epoch*")}
    assert left == {f"superseded-0-epoch-0_step-{step}" for step in (1, 2, 3)} | {"epoch-0_step-3"}
    assert (place / "save" / "modelling" / "config.json").is_file()
    saved = runner.weights("elsewhere", "superseded-0-epoch-0_step-3/modelling")
    former = runner.weights("elsewhere", "superseded-0-modelling")
    assert all((former[key] == tensor).all() for key, tensor in saved.items())
    assert [entry["step"] for entry in runner.metrics("elsewhere")] == [3]
    former = (place / "logs" / "metrics-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in former] == [1, 2, 3]


def test_a_finished_run_still_tells_its_validation_loss(done):
    assert done["finished"] is None
    assert "nothing is left to train" in done["printed"]
    assert done["printed"].count("step 4: validation loss") == 1


def test_an_adapter_names_the_base_that_it_goes_on_with(done, runner, toy):
    assert (done["lora"], done["lora_elsewhere"]) == (None, None)
    settings = runner.workspace / "lora_elsewhere" / "save" / "modelling" / "adapter_config.json"
    assert json.loads(settings.read_text())["base_model_name_or_path"] == str(toy.model)
    assert (
        f"was trained on {runner.workspace / 'base'}; training continues on {toy.model}, moved or copied"
        in done["printed"]
    )


def test_documents_longer_than_the_model_was_made_for_are_warned_of(done, toy):
    longest = max(
        length for part in toy.parts for row in load_from_disk(str(part))["document_lengths"] for length in row
    )
    assert done["few_positions"] is None
    assert done["printed"].count(f"documents of up to {longest} tokens, and the model has 8 positions") == 1


def test_fewer_rows_than_were_done_are_refused(done):
    """A run would train nothing and say that it is done."""
    assert done["shrunk"][0] == "UserError"
    assert "has trained on 32 rows of its epoch, and the data have only 10" in done["shrunk"][1]
