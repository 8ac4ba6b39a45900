"""Runs that train a part of a model, or parts of it at other rates, and what must come of them.

The embeddings have 210 rows, of which the tokenizer has 203, and the last expansion added 53.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from colossal_llama.model.weights.generation_config import save_model
from tests.support.plain_adamw import INPUT, OUTPUT, Way, is_frozen
from tests.support.training_runs import VOCABULARY_SIZE, Toy

FIRST, ROWS = 150, 210
CLIP = 0.3
RUN = ("--lr", "3e-3", "--grad_clip", str(CLIP), "--warmup_steps", "2", "--shuffle", "none", "--skip_save_each_epoch")
NEW = (FIRST, VOCABULARY_SIZE)
WAYS = {
    "new_rows": (("--train_only", "new_rows"), Way(NEW, trains_layers=False, trains_old_rows=False)),
    "faster_new_rows": (
        ("--train_only", "new_rows", "--new_row_lr", "9e-3"),
        Way(NEW, trains_layers=False, trains_old_rows=False, new_row_ratio=3.0),
    ),
    "embeddings": (
        ("--train_only", "embeddings", "--embedding_lr", "6e-3"),
        Way(trains_layers=False, embedding_ratio=2.0),
    ),
    "rates": (
        ("--embedding_lr", "1.5e-3", "--new_row_lr", "12e-3", "--freeze_layers", "1"),
        Way(NEW, frozen_layers=1, embedding_ratio=0.5, new_row_ratio=4.0),
    ),
    "faster_all": (("--new_row_lr", "12e-3"), Way(NEW, new_row_ratio=4.0)),
    "frozen_layer": (("--freeze_layers", "1"), Way(frozen_layers=1)),
}


@dataclass(frozen=True)
class Models:
    """Directories of models with padding rows; `tied` has one matrix for both embeddings."""

    untied: Path
    tied: Path
    deep: Path
    """Four layers, so that the middle stages of a pipeline have no embeddings."""


def make_models(toy: Toy, root: Path) -> Models:
    """Makes them, with the record of an expansion."""
    for name in ("untied", "tied", "deep"):
        shutil.copytree(toy.model, root / name, ignore=shutil.ignore_patterns("*.safetensors"))
        model = AutoModelForCausalLM.from_pretrained(toy.model, tie_word_embeddings=name == "tied")
        if name == "deep":
            model.config.num_hidden_layers = 4
            model = LlamaForCausalLM(model.config)
        torch.manual_seed(1)
        model.resize_token_embeddings(ROWS)
        save_model(model.bfloat16().float(), root / name)  # exact in half precision, too
        (root / name / "init_report.json").write_text(json.dumps({"rows": {"kept": FIRST, "new": 53}}))
    return Models(root / "untied", root / "tied", root / "deep")


def assert_follows(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], before: dict[str, torch.Tensor]
) -> None:
    """Weights after training in half precision are near those after training in full precision."""
    for key, tensor in found.items():
        change, rounding = (expected[key] - before[key]).norm(), 2**-8 * expected[key].norm()
        differences = (tensor.float() - expected[key]).abs().flatten().sort().values
        assert differences[: int(0.97 * len(differences))].norm() <= 0.15 * change + rounding, (key, change)


def assert_untouched(found: dict[str, torch.Tensor], before: dict[str, torch.Tensor], way: Way) -> None:
    """What is not trained has the bytes of the beginning; what is, has changed."""
    for key, tensor in found.items():
        start = before[key].to(tensor.dtype)
        if key in (INPUT, OUTPUT):
            first, end = way.new_rows
            new, old = slice(first, end), [*range(first), *range(end, len(tensor))]
            assert way.trains_old_rows or torch.equal(tensor[old], start[old]), key
            assert not way.trains_old_rows or not torch.equal(tensor[old], start[old]), key
            assert first == end or (tensor[new] != start[new]).any(dim=1).sum() > 40, key
        else:
            frozen = not way.trains_layers or is_frozen(key, way.frozen_layers)
            assert torch.equal(tensor, start) == frozen, key
