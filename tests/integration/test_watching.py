"""Watching a run: losses by category, the validation loss, bad steps, the plan; none of it changes
what is trained.
"""

import itertools
import json
import math
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.model.weights.generation_config import save_model
from colossal_llama.training.plot_training import draw_curves, read_curve
from tests.support.plain_training import BETAS, rows_of, train_plainly
from tests.support.training_runs import poisoned, ranks_of, torchrun
from tests.support.versions import possible, run_names

pytestmark = pytest.mark.slow  # the runs that all tests of the file share

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2")
PLUGINS = {
    "zero2": (),
    "ddp": ("--plugin", "ddp"),
    "3d": ("--plugin", "3d", "--zero", "0"),
    "tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--micro_batch_size", "4"),
    "sp2": ("--plugin", "3d", "--zero", "0", "--sp", "2", "--sp_mode", "all_to_all", "--micro_batch_size", "4"),
    "pp2": ("--plugin", "3d", "--zero", "0", "--pp", "2", "--micro_batch_size", "4", "--microbatch_size", "2"),
}
BAD = {
    **PLUGINS,
    "zero2_bf16": ("--mixed_precision", "bf16"),
    "zero2_fp16": ("--mixed_precision", "fp16"),
    "zero2_cpu": ("--mixed_precision", "bf16", "--plugin", "zero2_cpu"),
    "ddp_bf16": ("--mixed_precision", "bf16", "--plugin", "ddp"),
    "3d_zero1": ("--mixed_precision", "bf16", "--plugin", "3d"),
    "unclipped": ("--gradient_clipping", "0", "--plugin", "3d", "--zero", "0"),
}
BAD_RUN = ("--shuffle", "none", "--max_bad_steps", "2", "--save_interval", "1")


@pytest.fixture(scope="module")
def poison(toy, tmp_path_factory) -> tuple[Path, int]:
    """A model in which the embedding of one token is no number, and the only row that has this
    token (numbered through).
    """
    rows = [row["input_ids"] for part in toy.parts for row in datasets.load_from_disk(str(part))]
    # In the third step of eight rows.
    return poisoned(toy, rows, range(16, 24), tmp_path_factory.mktemp("poison") / "model")


@pytest.fixture(scope="module")
def two_ranks(runner, toy, dropout_model, poison, targets):
    """All runs of this module on two ranks, in one launch."""
    command, evaluation = runner.command, ("--eval_dataset", str(toy.parts[1]), "--eval_interval", "2")
    random = (*BATCH, "--use_neft", "--pretrained", str(dropout_model))
    bad = ("--pretrained", str(poison[0]))
    runner.run(
        [
            command("plain", *random),
            command("evaluated", *random, *evaluation),
            *(
                command(f"{name}_evaluated", *BATCH, *options, *evaluation)
                for name, options in possible(PLUGINS).items()
            ),
            command("in_order", *BATCH, "--shuffle", "none"),
            *(
                with_dataset(command(f"{name}_targets", *BATCH, "--shuffle", "none"), part)
                for name, part in targets.items()
            ),
            *(command(f"{name}_bad", *BATCH, *options, *BAD_RUN, *bad) for name, options in possible(BAD).items()),
            with_dataset(command("one_means", *BATCH, "--loss_average", "micro_batch"), targets["one"]),
            command("planned", *BATCH, "--num_epochs", "3", "--dry_run", "--gpu_memory_gib", "1e-4"),
            command("planned_short", *BATCH, "--num_epochs", "3", "--max_steps", "7", "--dry_run"),
            command("short", *BATCH, "--num_epochs", "3", "--max_steps", "7", "--save_interval", "100"),
        ],
        ranks=2,
    )
    return runner


def with_dataset(command: list[str], part: Path) -> list[str]:
    """A command line with another data set: one part."""
    begin = command.index("--dataset")
    end = next(index for index in range(begin + 1, len(command)) if command[index].startswith("--"))
    return [*command[: begin + 1], str(part), *command[end:]]


@pytest.fixture(scope="module")
def targets(toy, tmp_path_factory) -> dict[str, Path]:
    """One row; three rows, alone and among five without any target, which fill whole micro-batches
    and the share of a rank.
    """
    rows = list(datasets.load_from_disk(str(toy.parts[0])))[:8]
    without = [{**row, "labels": [-100] * len(row["labels"])} for row in rows[3:]]
    made = {"one": rows[:1], "few": rows[:3], "none_in_some": [*without[:4], *rows[:3], without[4]]}
    features = datasets.load_from_disk(str(toy.parts[0])).features
    folder = tmp_path_factory.mktemp("targets")
    for name, content in made.items():
        datasets.Dataset.from_list(content, features=features).save_to_disk(str(folder / name))
        facts = json.loads((toy.parts[0] / "part.json").read_text())
        facts |= {"rows": len(content), "tokens": sum(len(row["input_ids"]) for row in content)}
        (folder / name / "part.json").write_text(json.dumps(facts))
    return {name: folder / name for name in made}


def losses_by_category(model_path: Path, rows: list[dict]) -> tuple[float, dict[str, float]]:
    """Mean loss per target, of all and of each category, by transformers alone, document by
    document.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    sums, counts = Counter(), Counter()
    for row in rows:
        ends = list(itertools.accumulate(row["document_lengths"], initial=0))
        for category, (begin, end) in zip(row["document_categories"], itertools.pairwise(ends), strict=True):
            ids, labels = (torch.tensor([row[name][begin:end]]) for name in ("input_ids", "labels"))
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none")
            sums["ab"[category]] += losses.sum().item()
            counts["ab"[category]] += int((labels[0, 1:] != -100).sum())
    return sum(sums.values()) / sum(counts.values()), {name: sums[name] / counts[name] for name in sums}


def test_evaluation_changes_nothing(two_ranks):
    """Bit for bit, though dropout and noise draw random numbers."""
    assert two_ranks.losses("evaluated") == two_ranks.losses("plain")
    expected = two_ranks.weights("plain")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in two_ranks.weights("evaluated").items())


def test_evaluated_at_intervals_and_at_the_end(two_ranks):
    steps = [entry["step"] for entry in two_ranks.metrics("evaluated") if "eval_loss" in entry]
    assert steps == [2, 4, 5]


@pytest.mark.parametrize("name", run_names(PLUGINS))
def test_the_validation_loss_is_that_of_transformers(two_ranks, toy, name):
    last = two_ranks.metrics(f"{name}_evaluated")[-1]
    rows = list(datasets.load_from_disk(str(toy.parts[1])))
    loss, by_category = losses_by_category(two_ranks.workspace / f"{name}_evaluated" / "save" / "modelling", rows)
    assert last["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert last["eval_loss_by_category"] == pytest.approx(by_category, rel=1e-5)


@pytest.mark.parametrize("name", run_names(PLUGINS)[1:])
def test_losses_by_category_do_not_depend_on_the_plugin(two_ranks, name):
    for first, second in zip(two_ranks.metrics("zero2_evaluated"), two_ranks.metrics(f"{name}_evaluated"), strict=True):
        assert first["loss_by_category"] == pytest.approx(second["loss_by_category"], rel=5e-4)


def test_losses_by_category_are_exact(two_ranks, toy):
    rows = list(datasets.load_from_disk(str(toy.parts[0])))[:8]
    step = two_ranks.metrics("in_order")[0]
    loss, by_category = losses_by_category(toy.model, rows)
    assert step["loss"] == pytest.approx(loss, rel=1e-5)
    assert step["loss_by_category"] == pytest.approx(by_category, rel=1e-5)


def test_the_same_as_plain_pytorch(two_ranks, toy):
    """AdamW, clipping, cosine and the mean over all targets, written out with PyTorch and
    transformers, document by document.
    """
    rows = rows_of(toy.parts)
    model = AutoModelForCausalLM.from_pretrained(toy.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=BETAS, weight_decay=0.1)
    steps = math.ceil(len(rows) / 8)
    rates = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * step / (steps - 1))) for step in range(steps)]
    losses = train_plainly(model, optimizer, [rows[8 * step : 8 * step + 8] for step in range(steps)], rates)
    assert two_ranks.losses("in_order") == pytest.approx(losses, rel=2e-4)
    weights = two_ranks.weights("in_order")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=2e-4, atol=2e-4)


def test_rows_without_targets_count_for_nothing(two_ranks):
    """No NaN from their empty means, and the step is that of the other rows."""
    (alone,), (among,) = two_ranks.metrics("few_targets"), two_ranks.metrics("none_in_some_targets")
    assert among["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert among["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-4)
    expected = two_ranks.weights("few_targets")
    for key, tensor in two_ranks.weights("none_in_some_targets").items():
        torch.testing.assert_close(tensor, expected[key], rtol=2e-4, atol=2e-4)
    (token,), (mean,) = two_ranks.metrics("one_targets"), two_ranks.metrics("one_means")
    for name in (
        "loss",
        "gradient_norm",
    ):  # of one micro-batch both averages are its mean, whatever stands in for the others
        assert mean[name] == pytest.approx(token[name], rel=1e-5), name


@pytest.mark.parametrize("name", run_names(BAD))
def test_a_bad_step_changes_no_weight_and_its_rows_are_written_down(two_ranks, toy, poison, name):
    bad_step, place = poison[1] // 8 + 1, two_ranks.workspace / f"{name}_bad" / "save"
    entries = two_ranks.metrics(f"{name}_bad")
    assert [entry["step"] for entry in entries if entry["loss"] is None] == [bad_step]
    (noted,) = [json.loads(line) for line in (place / "bad_steps.jsonl").read_text().splitlines()]
    assert noted["step"] == bad_step
    starts = list(itertools.accumulate((len(datasets.load_from_disk(str(part))) for part in toy.parts), initial=0))
    part = max(index for index, start in enumerate(starts) if start <= poison[1])
    assert {"part": str(toy.parts[part]), "row": poison[1] - starts[part]} in noted["rows"]
    assert len(noted["rows"]) == 8
    before, after, end = (
        two_ranks.weights(f"{name}_bad", f"epoch-0_step-{step}/modelling")
        for step in (bad_step - 1, bad_step, bad_step + 1)
    )
    for key, tensor in before.items():
        assert torch.equal(after[key].nan_to_num(-7.0), tensor.nan_to_num(-7.0)), key
    changed = [key for key, tensor in before.items() if not torch.equal(end[key].nan_to_num(), tensor.nan_to_num())]
    assert changed, "training went on"
    assert all(tensor.isfinite().all() for key, tensor in end.items() if "embed" not in key)
    record = (two_ranks.workspace / f"{name}_bad" / "logs" / "metrics.jsonl").read_text()
    assert "NaN" not in record, "which is no JSON"


def test_too_many_bad_steps_end_the_run(two_ranks, poison, project_root):
    command = two_ranks.command("ended", *BATCH, "--shuffle", "none", "--pretrained", str(poison[0]))
    done = torchrun("train.py", command, 2, project_root)
    assert done.returncode != 0
    assert "--max_bad_steps 1 ends the run after such a step" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
    assert not (two_ranks.workspace / "ended" / "save" / "modelling").exists()
    entries = two_ranks.metrics("ended")
    assert [entry["loss"] is None for entry in entries] == [False, False, True], "the step that ended it is recorded"


@pytest.fixture(scope="module")
def overflowing(toy, tmp_path_factory) -> Path:
    """A model whose gradients are beyond fp16's largest number by themselves: tiny embeddings,
    which the norms divide by, alone count.
    """
    path = tmp_path_factory.mktemp("overflowing") / "model"
    shutil.copytree(toy.model, path)
    model = AutoModelForCausalLM.from_pretrained(toy.model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2e-5)
        model.lm_head.weight.mul_(300)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.config.rms_norm_eps = 1e-12
    save_model(model, path)
    return path


@pytest.mark.parametrize("plugin", [("zero2",), ("3d", "--zero", "0")], ids=" ".join)
def test_fp16_that_overflows_without_a_scale_ends_the_run(two_ranks, overflowing, project_root, plugin):
    name = f"overflowing_{plugin[0]}"
    options = ("--mixed_precision", "fp16", "--pretrained", str(overflowing), "--max_steps", "40", "--num_epochs", "99")
    command = two_ranks.command(name, *BATCH, "--plugin", *plugin, *options)
    done = torchrun("train.py", command, 2, project_root)
    assert "the gradient norm inf" in done.stderr
    assert "overflow of fp16" in done.stderr
    steps = two_ranks.metrics(name)
    assert 10 < len(steps) < 40, "the scale falls from 2^16 to 1 first"
    assert {step["gradient_norm"] for step in steps} == {None}


SLOW_DISK = """
import time
from colossal_llama.training import train
from colossal_llama.engine import launch
from colossal_llama.utils.errors import run_main

launch.prepare_engine()
from colossal_llama.training.checkpoint.commit import DirectoryCommit

write = DirectoryCommit._write

def slowly(self, file):
    time.sleep(2)
    write(self, file)

DirectoryCommit._write = slowly
run_main(train.main)
"""


def test_a_checkpoint_that_is_being_written_survives_a_bad_step(two_ranks, poison, project_root, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_DISK)
    options = ("--shuffle", "none", "--save_interval", "2", "--pretrained", str(poison[0]))
    done = torchrun(str(tmp_path / "slow.py"), two_ranks.command("slow", *BATCH, *options), 2, project_root)
    assert "--max_bad_steps 1 ends the run after such a step" in done.stderr
    assert (two_ranks.workspace / "slow" / "save" / "epoch-0_step-2" / "running_states.json").is_file()


def test_a_signal_ends_an_evaluation(two_ranks, toy, tmp_path):
    """Of so many rows that it would take minutes."""
    for number in range(2000):
        shutil.copytree(toy.parts[1], tmp_path / f"part-{number:05d}")
    parts = ["--eval_dataset", str(tmp_path), "--eval_interval", "1"]
    process = two_ranks.start(two_ranks.command("signalled", *BATCH, *parts))
    metrics = two_ranks.workspace / "signalled" / "logs" / "metrics.jsonl"
    shown = ""
    while "evaluating" not in shown:
        shown += process.stdout.read(200)
        assert process.poll() is None, shown
    begun = time.monotonic()
    for rank in ranks_of(process).values():
        rank.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert "the evaluation is aborted" in rest
    assert "everything is saved" in rest
    assert "eval_loss" not in metrics.read_text()


def test_the_plan_is_what_a_run_does(two_ranks):
    plan = json.loads((two_ranks.workspace / "planned" / "config.json.dry_run.json").read_text())
    assert (plan["total_steps"], plan["rows_per_step"], plan["prepared_rows"]) == (3 * 5, 8, 33)
    assert plan["parameters"] == sum(tensor.numel() for tensor in two_ranks.weights("plain").values())
    assert plan["fits"] is False
    assert not (two_ranks.workspace / "planned" / "save").exists()
    short = json.loads((two_ranks.workspace / "planned_short" / "config.json.dry_run.json").read_text())
    last = two_ranks.metrics("short")[-1]
    assert short["total_steps"] == last["step"] == 7
    assert short["tokens"] == last["tokens_seen"]


def test_curves_have_the_validation_loss_and_leave_bad_steps_out(two_ranks, tmp_path):
    evaluated = read_curve(two_ranks.workspace / "evaluated" / "logs", "evaluated")
    assert evaluated.evaluations[:, 0].tolist() == [2, 4, 5]
    bad = read_curve(two_ranks.workspace / "zero2_bad" / "logs", "bad", smoothing_steps=2)
    assert bad.steps.tolist() == [1, 2, 4, 5]
    assert all(math.isfinite(loss) for loss in bad.smoothed())
    draw_curves([evaluated, bad], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
