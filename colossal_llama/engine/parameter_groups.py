"""Parameter groups of the optimizer, each with its learning rate as a ratio of `--lr`.

    group         lr_ratio                 new_row_lr_ratio
    layers        1                        -
    embeddings    --embedding_lr / --lr    --new_row_lr / --lr, of their new rows

A run with one rate for all has one group, as PyTorch makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NEW_ROWS = "new_rows"
"""Key of a group's `NewRows`, which the hyperparameters in a checkpoint do not have."""


@dataclass(frozen=True)
class NewRows:
    """Rows [first, end) of the group's matrices, which are not trained as the others are."""

    first: int
    end: int
    lr_ratio: float
    """Their peak learning rate over `--lr`."""
    others_are_frozen: bool
    """True when only these rows are trained."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained with one learning rate, apart from their new rows."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    lr_ratio: float = 1.0
    """Peak learning rate over `--lr`."""
    new_rows: NewRows | None = None

    def settings(self, lr: float) -> dict[str, Any]:
        """The group as PyTorch's optimizers take it; `lr` is the peak of a ratio of 1."""
        settings: dict[str, Any] = {
            "params": list(self.parameters),
            "name": self.name,
            "lr": lr * self.lr_ratio,
            "lr_ratio": self.lr_ratio,
        }
        if self.new_rows is not None:
            ratio = self.new_rows.lr_ratio
            settings |= {"new_row_lr": lr * ratio, "new_row_lr_ratio": ratio, NEW_ROWS: self.new_rows}
        return settings


def whole_group(model: torch.nn.Module) -> ParameterGroup:
    """One group of all parameters that require gradients."""
    return ParameterGroup("all", [parameter for parameter in model.parameters() if parameter.requires_grad])


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Sets the learning rate of every parameter group, `rate` times its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
        if "new_row_lr_ratio" in group:
            group["new_row_lr"] = rate * group["new_row_lr_ratio"]


def hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """The inner optimizer's parameter groups without the parameters, for a checkpoint."""
    left_out = ("params", NEW_ROWS)
    return [
        {name: value for name, value in group.items() if name not in left_out} | _rows_record(group.get(NEW_ROWS))
        for group in optimizer.optim.param_groups
    ]


def _rows_record(new_rows: NewRows | None) -> dict[str, Any]:
    if new_rows is None:
        return {}
    return {"first_new_row": new_rows.first, "trains_new_rows_only": new_rows.others_are_frozen}
