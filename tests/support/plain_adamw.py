"""Trains in a plain loop, with torch.optim.AdamW and old and new embedding rows as parameters of
their own: what `--train_only`, `--embedding_lr`, `--new_row_lr` and `--freeze_layers` must equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from tests.support.plain_training import BETAS, mean_loss, rows_of

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Way:
    """What is trained, and at which rates over `--lr`.

    Attributes:
        new_rows: first and end.
    """

    new_rows: tuple[int, int] = (0, 0)
    trains_layers: bool = True
    frozen_layers: int = 0
    trains_old_rows: bool = True
    embedding_ratio: float = 1.0
    new_row_ratio: float = 1.0


def train(
    model_path: Path, parts: Sequence[Path], way: Way, rates: Sequence[float], rows_per_step: int, clip: float
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after training on all rows in their order, and gradient norms."""
    model = AutoModelForCausalLM.from_pretrained(model_path, torch_dtype=torch.float32).train()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first, end = way.new_rows
    pieces = {
        name: [torch.nn.Parameter(rows.clone()) for rows in weights[name].tensor_split([first, end])]
        for name in (INPUT, OUTPUT)
        if name in weights
    }
    layers = {
        name: torch.nn.Parameter(weight)
        for name, weight in weights.items()
        if name not in pieces and way.trains_layers and not is_frozen(name, way.frozen_layers)
    }
    groups = [
        {"params": list(layers.values()), "ratio": 1.0},
        {"params": [rows[1] for rows in pieces.values()], "ratio": way.new_row_ratio},
    ]
    if way.trains_old_rows:
        others = [rows[number] for rows in pieces.values() for number in (0, 2)]
        groups.append({"params": others, "ratio": way.embedding_ratio})
    groups = [group for group in groups if group["params"]]
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=BETAS, weight_decay=0.1)
    rows = rows_of(parts)
    norms = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        batch = rows[step * rows_per_step : (step + 1) * rows_per_step]
        made = {**weights, **layers, **{name: torch.cat(rows) for name, rows in pieces.items()}}
        mean_loss(lambda weights=made, **inputs: functional_call(model, weights, (), inputs), batch).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, clip)))
        optimizer.step()
        optimizer.zero_grad()
    made = {**weights, **layers, **{name: torch.cat(rows) for name, rows in pieces.items()}}
    return {name: weight.detach() for name, weight in made.items()}, norms


def is_frozen(name: str, frozen_layers: int) -> bool:
    return any(name.startswith(f"model.layers.{number}.") for number in range(frozen_layers))
