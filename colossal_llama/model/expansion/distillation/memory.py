"""Estimated memory of a distillation, to refuse what cannot fit before the model is loaded."""

from dataclasses import dataclass

import psutil
import torch

from colossal_llama.model.kernels.linear_cross_entropy import CHUNK_ROWS
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_OPTIMIZER_BYTES = 16
"""Of each trained value: itself, its gradient and two moments in fp32."""
_USABLE = 0.92
"""Part of the free memory that may be planned with; the rest is fragmentation and libraries."""


@dataclass(frozen=True)
class Shape:
    """Sizes that memory depends on.

    Attributes:
        parameters: of the source model.
        value_bytes: of a value in the computation.
        layers: decoder layers.
        width: of the hidden states.
        inner: width of the MLP.
        new_rows: rows of a trained matrix.
        matrices: trained ones: 1 tied, 2 untied.
        vocabulary: rows of the output layer with the new ones.
        batch_tokens: tokens of a step.
    """

    parameters: int
    value_bytes: int
    layers: int
    width: int
    inner: int
    new_rows: int
    matrices: int
    vocabulary: int
    batch_tokens: int


def needed_bytes(shape: Shape, is_recomputed: bool) -> int:
    """Estimates the memory of weights, trained rows, output layer and activations.

    Weights are frozen, so that a linear layer keeps no input. A layer keeps about eight values of
    the width and four of the MLP's for each token; a recomputed one its input.
    """
    rows = shape.new_rows * shape.width * shape.matrices * _OPTIMIZER_BYTES
    output = shape.vocabulary * shape.width * (2 * shape.value_bytes + 4)
    logits = 3 * min(shape.batch_tokens, CHUNK_ROWS) * shape.vocabulary * shape.value_bytes
    layer = shape.batch_tokens * (8 * shape.width + 4 * shape.inner) * shape.value_bytes * 3 // 2
    kept = shape.batch_tokens * shape.width * shape.value_bytes * shape.layers + layer
    activations = kept if is_recomputed else layer * shape.layers
    return shape.parameters * shape.value_bytes + rows + output + logits + activations


def must_recompute(shape: Shape, device: torch.device) -> bool:
    """Decides whether activations have to be recomputed for a distillation to fit; logs its need.

    Raises:
        UserError: it does not fit even so.
    """
    free = free_bytes(device)
    for is_recomputed in (False, True):
        needed = needed_bytes(shape, is_recomputed)
        if needed <= _USABLE * free:
            how = ", activations recomputed" if is_recomputed else ""
            log_rank_zero(f"the distillation needs about {needed / 1e9:.1f} GB of {free / 1e9:.1f} on {device}{how}")
            return is_recomputed
    least = needed_bytes(Shape(**{**vars(shape), "batch_tokens": min(shape.batch_tokens, 2048)}), is_recomputed=True)
    smaller = "a smaller --distill_batch_tokens, " if least <= _USABLE * free else ""
    raise UserError(
        f"the distillation needs about {needed / 1e9:.1f} GB of memory on {device}, where {free / 1e9:.1f} GB are "
        f"free: give {smaller}another --distill_device with more memory (cpu: slow), or --init_method mean"
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; of a CPU the memory of the host that is not in use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
