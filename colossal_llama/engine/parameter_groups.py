"""Parameter groups of the optimizer, each with its learning rate as a ratio of `--lr`.

    group         lr_ratio                 new_row_lr_ratio
    layers        1                        -
    embeddings    --embedding_lr / --lr    --new_row_lr / --lr, of their new rows

A run with one rate for all has one group, as PyTorch makes it. All entries but the parameters are
JSON values, which a checkpoint records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ALL, LAYERS, EMBEDDINGS = "all", "layers", "embeddings"
"""Names of groups."""


@dataclass(frozen=True)
class NewRows:
    """Rows [first, end) of the group's matrices, which are not trained as the others are."""

    first: int
    end: int
    lr_ratio: float
    """Their peak learning rate over `--lr`."""
    others_are_frozen: bool
    """True when only these rows are trained."""

    @staticmethod
    def of(group: Mapping[str, Any]) -> "NewRows | None":
        """The new rows of a group, or of what a checkpoint has recorded of it."""
        if "new_rows" not in group:
            return None
        first, end = group["new_rows"]
        return NewRows(first, end, group["new_row_lr_ratio"], group["trains_new_rows_only"])


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
        if (rows := self.new_rows) is not None:
            settings |= {"new_row_lr": lr * rows.lr_ratio, "new_row_lr_ratio": rows.lr_ratio}
            settings |= {"new_rows": [rows.first, rows.end], "trains_new_rows_only": rows.others_are_frozen}
        return settings


def whole_group(model: torch.nn.Module) -> ParameterGroup:
    """One group of all parameters that require gradients."""
    return ParameterGroup(ALL, [parameter for parameter in model.parameters() if parameter.requires_grad])


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Sets the learning rate of every parameter group, `rate` times its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
        if "new_row_lr_ratio" in group:
            group["new_row_lr"] = rate * group["new_row_lr_ratio"]


def hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """The inner optimizer's parameter groups without the parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.optim.param_groups]


def trains_frozen_rows(saved: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]]) -> bool:
    """True when embedding rows are trained now that were frozen when `saved` was recorded."""
    frozen = [rows for group in saved if (rows := NewRows.of(group)) is not None and rows.others_are_frozen]
    for group in present if frozen else ():
        rows = NewRows.of(group)
        is_within = rows is not None and rows.first >= frozen[0].first and rows.end <= frozen[0].end
        if group["name"] != LAYERS and not (is_within and rows is not None and rows.others_are_frozen):
            return True
    return False
