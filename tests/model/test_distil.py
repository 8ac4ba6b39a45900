"""`--init_method distilled`: what is trained, on which texts, to which losses; kill and resume."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from colossal_llama.model.expansion.distillation import distil as distil_module
from colossal_llama.model.expansion.distillation.alignment import common_ends
from colossal_llama.model.expansion.distillation.arguments import DistillationArguments
from colossal_llama.model.expansion.distillation.distil import distil
from colossal_llama.model.expansion.distillation.memory import Shape, must_recompute, needed_bytes
from colossal_llama.model.expansion.distillation.row_training import NewRows, rate_factor, step_losses, train_rows
from colossal_llama.model.expansion.distillation.state import state_path
from colossal_llama.model.expansion.distillation.windows import (
    Encoder,
    Windows,
    batch_of,
    choose_windows,
    plan_batches,
)
from colossal_llama.model.expansion.new_rows import new_rows_trained
from colossal_llama.model.expansion.resize_embeddings import (
    INPUT_MATRIX,
    OUTPUT_MATRIX,
    create_model,
    mean_matrices,
    plan_expansion,
)
from colossal_llama.model.expansion.text_loss import loss_per_byte
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.architectures import config_of, random_model
from tests.support.made_data import chinese_words, sentences
from tests.support.scripts import run_script
from tests.support.texts import TEXTS
from tests.support.tokenizer_scripts import expand

FAMILIES = {"sentencepiece": "llama2", "byte-level": "llama3-base"}
_CHINESE = [word for word, _ in chinese_words(5) if len(word) > 1]
WORDS = [first + second for first, second in pairwise(_CHINESE[:13])]  # which no made vocabulary has
UNSEEN = "魑魅魍魉"


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizers(request, project_root, made_data, tmp_path_factory) -> tuple[Path, Path]:
    """Directories of a tokenizer, and of one with 13 pieces more, the last of which no text has."""
    directory = tmp_path_factory.mktemp("tokenizer")
    source = made_data / "tokenizers" / FAMILIES[request.param]
    pieces = "".join(json.dumps({"piece": word}, ensure_ascii=False) + "\n" for word in (*WORDS, UNSEEN))
    (directory / "pieces.jsonl").write_text(pieces, "utf-8")
    done = expand(project_root, source, directory / "target", directory / "pieces.jsonl", "--pad_to_multiple_of", "64")
    assert done.returncode == 0, done.stderr
    return source, directory / "target"


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    draw = random.Random(0)
    lines = ["".join(draw.choices([*WORDS, "的", "，"], k=12)) for _ in range(24)] + sentences("en")[:8]
    lines = [json.dumps({"text": line}, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(lines), "utf-8")
    return path


def make_source(directory: Path, tokenizer: Path, variant: str, padding: int = 0, dtype=torch.float32) -> Path:
    """A random model of these rows whose embeddings are large enough for rows to matter."""
    rows = len(load_tokenizer(tokenizer)) + padding
    model = random_model(config_of(variant, vocab_size=rows, initializer_range=0.1)).to(dtype)
    model.save_pretrained(directory, max_shard_size="150kB")
    load_tokenizer(tokenizer).save_pretrained(directory)
    return directory


def options(texts: Path, **settings) -> DistillationArguments:
    given = {"distill_tokens": 8_000, "distill_batch_tokens": 512, "distill_device": "cpu"}
    return DistillationArguments(distill_data=(texts,), **given | settings)


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


# --------------------------------------------------------------------------------------- alignment


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=30), data=st.data())
def test_tokens_that_end_at_the_same_byte_are_all_found(text, data):
    first, second = (pieces_of(text, data.draw(st.sets(st.integers(1, 29)))) for _ in range(2))
    of_first, of_second = common_ends(first, second)
    found = list(zip(of_first.tolist(), of_second.tolist(), strict=True))
    assert found == [
        (i, j)
        for i in range(len(first))
        for j in range(len(second))
        if b"".join(first[: i + 1]) == b"".join(second[: j + 1])
    ]


def pieces_of(text: bytes, cuts: set[int]) -> list[bytes]:
    ends = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in pairwise(ends) if b > a]


def test_nothing_is_aligned_where_the_bytes_differ():
    assert [part.tolist() for part in common_ends([b"ab", b"c"], [b"a", b"bd"])] == [[], []]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS.map("".join), min_size=1, max_size=4))
def test_aligned_states_have_read_the_same_text(tokenizers, texts):
    """Also where merges cross the source's tokens, and at LLaMA-2's leading space."""
    texts = [f"{WORDS[0]}{text}{WORDS[1]}a" for text in texts]
    source, target = (Encoder.of(load_tokenizer(directory)) for directory in tokenizers)
    first_new = len(source.bytes_of)
    windows = Windows(source.encode(texts), target.encode(texts))
    batch = batch_of(windows, source, target, first_new, np.arange(len(texts)))
    width = [ids.shape[1] for ids in (batch.source_ids, batch.target_ids)]
    assert len(batch.target_positions) >= len(texts)
    for old, new in zip(batch.source_positions.tolist(), batch.target_positions.tolist(), strict=True):
        row, position = divmod(new, width[1])
        assert old // width[0] == row
        read_new = b"".join(target.bytes_of[i] for i in windows.target[row][1 : position + 1])
        read_old = b"".join(source.bytes_of[i] for i in windows.source[row][1 : old % width[0] + 1])
        assert read_new == read_old
        assert (windows.target[row][: position + 1] >= first_new).any()


# ----------------------------------------------------------------------------------------- windows


@settings(max_examples=60, deadline=None)
@given(
    windows=st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=80),
    budget=st.integers(1, 1500),
    seed=st.integers(0, 9),
)
def test_windows_are_chosen_to_the_budget_and_for_rare_rows(windows, budget, seed):
    new = [np.array(rows, np.int64) for rows in windows]
    chosen = choose_windows(new, [20] * len(new), budget, seed)
    assert chosen == choose_windows(new, [20] * len(new), budget, seed)
    assert len(set(chosen)) == len(chosen) == min(len(new), -(-budget // 20))
    all_of_a_kind = [[0]] * 200 + [[1]]
    chosen = choose_windows([np.array(rows) for rows in all_of_a_kind], [20] * 201, 400, seed)
    assert 200 in chosen  # one in two hundred, and a tenth of the windows are taken


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60),
    batch_tokens=st.integers(40, 300),
    budget=st.integers(1, 4000),
)
def test_batches_are_whole_passes_within_their_size(lengths, batch_tokens, budget):
    windows = Windows([np.zeros(old, np.int32) for old, _ in lengths], [np.zeros(new, np.int32) for _, new in lengths])
    batches = plan_batches(windows, batch_tokens, budget, 0)
    longest = np.array([max(pair) for pair in lengths])
    assert all(longest[batch].max() * len(batch) <= batch_tokens for batch in batches)
    flat = np.concatenate(batches).tolist()
    uses = [flat.count(number) for number in range(len(lengths))]
    assert max(uses) - min(uses) <= 1
    used = [lengths[number][1] for number in flat]
    assert sum(used) >= budget > sum(used) - sum(lengths[number][1] for number in batches[-1])


def test_the_learning_rate_rises_and_falls_to_0():
    rates = [rate_factor(part) for part in np.linspace(0, 1, 201)]
    top = int(np.argmax(rates))
    assert rates[0] == rates[-1] == 0
    assert 0.9 < rates[top] <= 1
    assert top <= 10
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("variant", ["llama", "qwen2.5-small", "qwen3"])
def test_losses_and_gradients_are_those_of_the_expanded_model(tokenizers, texts, tmp_path, variant):
    """Against transformers' own model with these rows, and autograd through its matrices."""
    source = make_source(tmp_path / "source", tokenizers[0], variant, padding=3)
    plan = plan_expansion(source, tokenizers[1])
    create_model(plan, "mean", tmp_path / "mean")
    model, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("source", "mean"))
    first, end = plan.source_vocabulary, plan.target_vocabulary
    matrices = [reference.get_input_embeddings().weight, reference.get_output_embeddings().weight]
    is_tied = matrices[0] is matrices[1]
    inputs = matrices[0].detach()[first:end].clone().requires_grad_()
    outputs = inputs if is_tied else matrices[1].detach()[first:end].clone().requires_grad_()
    rows = NewRows(model.requires_grad_(False), first, inputs, outputs, torch.ones(end - first, 1, dtype=torch.bool))

    encoders = [Encoder.of(load_tokenizer(directory)) for directory in tokenizers]
    lines = [json.loads(line)["text"][:20] for line in texts.read_text("utf-8").splitlines()[:5]]
    windows = Windows(*(encoder.encode(lines) for encoder in encoders))
    batch = batch_of(windows, *encoders, first, np.arange(5))
    losses = step_losses(rows, batch)
    (losses[0] + 0.7 * losses[1]).backward()

    expected_entropy, distance, norm = [], 0.0, 0.0
    for row in range(5):
        old, new = (torch.from_numpy(ids[row].astype(np.int64))[None] for ids in (windows.source, windows.target))
        result = reference(new, output_hidden_states=True)
        expected_entropy.append(cross_entropy(result.logits[0, :-1, :end], new[0, 1:], reduction="none"))
        with torch.no_grad():
            wanted = model(old, output_hidden_states=True).hidden_states[-1][0]
        for i, j in zip(batch.target_positions, batch.source_positions, strict=True):
            if i // batch.target_ids.shape[1] == row:
                place = wanted[j % batch.source_ids.shape[1]]
                got = result.hidden_states[-1][0, i % batch.target_ids.shape[1]]
                distance, norm = distance + (got - place).square().sum(), norm + place.square().sum()
    expected = torch.cat(expected_entropy).mean(), distance / norm
    assert losses[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert losses[1].item() == pytest.approx(expected[1].item(), rel=1e-4)
    (expected[0] + 0.7 * expected[1]).backward()
    for matrix, trained in zip(matrices, (inputs, outputs), strict=True):
        assert torch.allclose(trained.grad, matrix.grad[first:end], rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("variant", ["llama", "smollm", "mistral-v0.1", "qwen2", "qwen3-small"])
def test_new_rows_alone_are_trained_and_the_loss_falls(tokenizers, texts, tmp_path, variant):
    is_bf16 = variant == "smollm"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    source = make_source(tmp_path / "source", tokenizers[0], variant, padding=5, dtype=dtype)
    plan = plan_expansion(source, tokenizers[1])
    create_model(plan, "mean", tmp_path / "mean")
    distilled = distil(plan, options(texts), FieldOptions(), tmp_path / "target")
    report = create_model(plan, "distilled", tmp_path / "target", distilled.rows)
    assert report["init_method"] == "distilled"

    mean, new = tensors_of(tmp_path / "mean"), tensors_of(tmp_path / "target")
    assert mean.keys() == new.keys()
    first, end = plan.source_vocabulary, plan.target_vocabulary
    for name, tensor in new.items():
        if name not in plan.matrices:
            assert torch.equal(tensor, mean[name]), name
            continue
        assert tensor.dtype == dtype
        assert torch.equal(tensor[:first], mean[name][:first])  # the source's, as test_init_model.py has it
        assert torch.equal(tensor[end:], mean[name][end:])
        is_changed = (tensor[first:end] != mean[name][first:end]).any(dim=1)
        assert int((~is_changed).sum()) == distilled.record["rows_seen"]["never"] >= 1
        assert not is_changed[-1]  # UNSEEN

    lines = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()]
    losses = {}
    for name in ("mean", "target"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, torch_dtype=torch.float32)
        losses[name] = loss_per_byte(model, load_tokenizer(tokenizers[1]), lines, "").loss_per_byte
    assert losses["target"] < 0.97 * losses["mean"]


def test_the_weight_moves_hidden_states_to_those_of_the_source(tokenizers, texts, tmp_path):
    plan = plan_expansion(make_source(tmp_path / "source", tokenizers[0], "smollm"), tokenizers[1])
    distances = {}
    for weight in (1e-6, 1000.0):
        given = options(texts, distill_hidden_weight=weight)
        losses = distil(plan, given, FieldOptions(), tmp_path / "target").record["losses"]
        distances[weight] = [losses[0]["hidden_distance"], losses[-1]["hidden_distance"]]
    assert distances[1000.0][-1] < 0.7 * distances[1000.0][0]
    assert distances[1000.0][-1] < 0.7 * distances[1e-6][-1]
    without = distil(plan, options(texts, distill_hidden_weight=0.0), FieldOptions(), tmp_path / "target")
    assert all(entry.keys() == {"cross_entropy"} for entry in without.record["losses"])


def test_rows_that_never_occur_have_no_part_in_the_training(tokenizers, texts, tmp_path):
    """They would take the gradient of every token that they are not."""
    plan = plan_expansion(make_source(tmp_path / "source", tokenizers[0], "llama"), tokenizers[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source").requires_grad_(False)
    encoders = [Encoder.of(load_tokenizer(directory)) for directory in tokenizers]
    lines = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()[:6]]
    windows = Windows(*(encoder.encode(lines) for encoder in encoders))
    means = [torch.from_numpy(matrix) for matrix in mean_matrices(plan).values()]
    is_seen = torch.ones(plan.new_tokens, 1, dtype=torch.bool)
    is_seen[3::4] = False
    rows = NewRows(model, plan.source_vocabulary, *(mean.clone() for mean in means), is_seen)
    make_batch = partial(batch_of, windows, *encoders, plan.source_vocabulary)
    train_rows(rows, [np.arange(6)] * 3, make_batch, [100] * 3, 0.1, 1.0, None, lambda state: None)
    for mean, trained in zip(means, (rows.input, rows.output), strict=True):
        assert torch.equal(trained.detach()[3::4], mean[3::4])
    assert not torch.equal(rows.output.detach()[0], means[1][0])


@pytest.mark.parametrize("tokenizers", ["byte-level"], indirect=True)
def test_the_tokenizers_own_directory_becomes_the_model(project_root, tokenizers, texts, tmp_path):
    source = make_source(tmp_path / "source", tokenizers[0], "smollm")
    target = shutil.copytree(tokenizers[1], tmp_path / "target")
    assert state_path(target).parent == target
    words = ["--source_model_and_tokenizer_path", source, "--target_tokenizer_path", target]
    words += ["--target_model_path", target, "--init_method", "distilled", "--distill_data", texts]
    words += ["--distill_tokens", "800", "--distill_device", "cpu"]
    done = run_script(project_root, "colossal_llama/model/init_model.py", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"the distillation needs about \d+\.\d GB of \d+\.\d on cpu\n", done.stdout)
    assert new_rows_trained(target)
    assert not [path for path in target.iterdir() if path.name.startswith(".")]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    AutoModelForCausalLM.from_pretrained(target)


def test_windows_of_any_length_are_not_given_to_cudnn(tokenizers, texts, tmp_path, monkeypatch):
    """It builds an execution plan for each shape."""
    plan = plan_expansion(make_source(tmp_path / "source", tokenizers[0], "llama"), tokenizers[1])
    seen = []

    def watched(rows, *arguments):
        rows.model.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
        return train_rows(rows, *arguments)

    monkeypatch.setattr(distil_module, "train_rows", watched)
    distil(plan, options(texts, distill_tokens=1500), FieldOptions(), tmp_path / "target")
    assert set(seen) == {False}


def test_recomputed_activations_give_the_same_rows(tokenizers, texts, tmp_path, monkeypatch):
    source = make_source(tmp_path / "source", tokenizers[0], "llama")
    plan = plan_expansion(source, tokenizers[1])
    given = options(texts, distill_tokens=1500)
    kept = distil(plan, given, FieldOptions(), tmp_path / "a").rows
    monkeypatch.setattr(distil_module, "must_recompute", lambda shape, device: True)
    recomputed = distil(plan, given, FieldOptions(), tmp_path / "b").rows
    assert all(np.array_equal(kept[name], recomputed[name]) for name in (INPUT_MATRIX, OUTPUT_MATRIX))


def test_a_model_that_does_not_fit_is_refused_or_recomputed(monkeypatch):
    shape = Shape(7_000_000_000, 2, 32, 4096, 11008, 20_000, 2, 52_000, 16384)
    most, least = needed_bytes(shape, False), needed_bytes(shape, True)
    assert 14e9 < least < most
    for free, expected in ((2 * most, False), (1.2 * least, True)):
        monkeypatch.setattr(
            "colossal_llama.model.expansion.distillation.memory.free_bytes", lambda device, free=free: free
        )
        assert must_recompute(shape, torch.device("cpu")) is expected
    monkeypatch.setattr("colossal_llama.model.expansion.distillation.memory.free_bytes", lambda device: 15e9)
    with pytest.raises(UserError, match=r"needs about \d+\.\d GB of memory on cpu, where 15\.0 GB are free"):
        must_recompute(shape, torch.device("cpu"))


# ------------------------------------------------------------------------------- script and resume

KILLED = """
import os, signal, sys
from colossal_llama.model.expansion.distillation import distil, row_training
row_training.SAVED_EVERY_S = 0.0
write, calls = distil.write_state, []
def write_and_die(*arguments):
    write(*arguments)
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
distil.write_state = write_and_die
sys.argv = ["init_model.py", *sys.argv[1:]]
from colossal_llama.model.init_model import main
main()
"""


@pytest.mark.slow  # four runs of the script
@pytest.mark.parametrize("tokenizers", ["sentencepiece"], indirect=True)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(project_root, made_data, tokenizers, texts, tmp_path):
    source = make_source(tmp_path / "source", tokenizers[0], "smollm")
    script = "colossal_llama/model/init_model.py"
    common = ["--source_model_and_tokenizer_path", source, "--target_tokenizer_path", tokenizers[1]]
    common += ["--init_method", "distilled", "--distill_data", texts, "--distill_tokens", "3000"]
    common += ["--distill_batch_tokens", "300", "--distill_device", "cpu"]
    evaluated = ["--eval_file", texts, "--eval_bytes", "600"]
    whole = run_script(project_root, script, *common, "--target_model_path", tmp_path / "whole", *evaluated)
    assert whole.returncode == 0, whole.stderr
    assert "never occurred and stay means" in whole.stdout
    report = json.loads((tmp_path / "whole" / "init_report.json").read_text())
    evaluation = {name: loss["loss_per_byte"] for name, loss in report["evaluation"].items()}
    assert evaluation["initialised"] < evaluation["mean"]
    assert report["distillation"]["rows_seen"]["rows"] >= 13

    target = [*common, "--target_model_path", tmp_path / "resumed"]
    command = [sys.executable, "-c", KILLED, *map(str, target)]
    died = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL
    state = state_path(tmp_path / "resumed")
    assert state.is_file()
    assert not (tmp_path / "resumed").exists()

    changed = run_script(project_root, script, *target, "--distill_lr", "0.5")
    assert changed.returncode == 2
    assert "learning_rate was 0.07, is 0.5" in changed.stderr
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    damaged = run_script(project_root, script, *target)
    assert damaged.returncode == 2
    assert f"remove {state} to begin anew" in damaged.stderr
    state.write_bytes(content)

    resumed = run_script(project_root, script, *target)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on with the interrupted distillation at step 3 of" in resumed.stdout
    assert not state.exists()
    for path in sorted((tmp_path / "whole").glob("*.safetensors*")):
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes(), path.name


def test_contradicting_options_are_refused_at_once(project_root, tokenizers, texts, tmp_path):
    common = ["--source_model_and_tokenizer_path", tokenizers[0], "--target_tokenizer_path", tokenizers[1]]
    common += ["--target_model_path", tmp_path / "target"]
    script = "colossal_llama/model/init_model.py"
    done = run_script(project_root, script, *common, "--init_method", "distilled", "--distill_lr", "0")
    assert done.returncode == 2
    assert "--init_method distilled needs --distill_data" in done.stderr
    assert "0 is not greater than 0" in done.stderr
    done = run_script(project_root, script, *common, "--distill_data", texts, "--distill_tokens", "5")
    assert done.returncode == 2
    assert "--distill_data has no effect without --init_method distilled" in done.stderr


def test_texts_or_tokenizers_without_new_tokens_are_refused(tokenizers, tmp_path):
    (tmp_path / "texts.txt").write_text("Nothing of the kind. " * 20)
    plan = plan_expansion(make_source(tmp_path / "source", tokenizers[0], "smollm"), tokenizers[1])
    with pytest.raises(UserError, match="--distill_data has none of the new tokens"):
        distil(plan, options(tmp_path / "texts.txt"), FieldOptions(), tmp_path / "target")
    plan = plan_expansion(tmp_path / "source", tokenizers[0])
    with pytest.raises(UserError, match="no more tokens than the source's"):
        distil(plan, options(tmp_path / "texts.txt"), FieldOptions(), tmp_path / "target")
