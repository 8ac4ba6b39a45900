"""Per-token losses without the fused kernels, for losses by category and by row."""

from dataclasses import dataclass
from types import MethodType

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from colossal_llama.model.kernels.linear_cross_entropy import next_token_labels
from colossal_llama.utils.labels import IGNORED_LABEL


@dataclass
class LossOutput(CausalLMOutputWithPast):
    """Model output with per-token losses."""

    token_losses: torch.Tensor | None = None
    """(rows, length) in fp32, without gradient: the next token's loss, 0 where it is no target."""


def return_token_losses(model: PreTrainedModel) -> None:
    """Makes a model also return `token_losses`; its loss is their mean, in fp32.

    Without labels it returns logits, with `logit_positions` those at these positions only.
    """
    model.forward = MethodType(_forward_with_token_losses, model)


def states_at(hidden: torch.Tensor, logit_positions: torch.Tensor | None) -> torch.Tensor:
    """Hidden states whose logits are asked for: all, or those at positions of the flattened rows.

    Args:
        hidden: (rows, length, width).
        logit_positions: int64 (positions,); None for all.
    """
    return hidden if logit_positions is None else hidden.reshape(-1, hidden.shape[-1])[logit_positions]


def _forward_with_token_losses(
    self: PreTrainedModel,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    logit_positions: torch.Tensor | None = None,
    **settings: object,
) -> LossOutput:
    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **settings)
    if labels is None:
        return LossOutput(logits=self.lm_head(states_at(outputs[0], logit_positions)))
    logits = self.lm_head(outputs[0])
    shifted = next_token_labels(labels).reshape(-1)
    losses = cross_entropy(
        logits.float().view(-1, logits.shape[-1]), shifted, ignore_index=IGNORED_LABEL, reduction="none"
    )
    mean = losses.sum() / (shifted != IGNORED_LABEL).sum().clamp(min=1)
    return LossOutput(loss=mean, token_losses=losses.detach().view(labels.shape))
