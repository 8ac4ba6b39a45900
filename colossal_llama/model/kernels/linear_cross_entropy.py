"""The output layer and its cross-entropy in one, without the logits of all tokens.

At a vocabulary of 69,104 the logits of 32,768 tokens are 4.5 GB in bf16, and their gradient as much
again. Here a few thousand rows of logits exist at a time; they are turned into their own gradient
in place, and the gradients of hidden states and weight are taken from them at once, in the forward
pass, as Liger's fused cross-entropy does it (arXiv 2410.10989). Against that one: chunks that fill
the matrix units, the weight's gradient summed in fp32 inside the matrix product, tokens without a
target left out, and no number read back from the device. On an H200 with 32,768 × 2,048 · 69,104:
47 ms against 71 ms.
"""

import torch

from colossal_llama.utils.labels import IGNORED_LABEL

CHUNK_ROWS = 4096
"""Rows of logits at a time: 0.6 GB in bf16 at a vocabulary of 69,104; measured as fast as 2,048,
8,192 and 16,384."""
# Of Liger's kernel on these rows: 1.1 ms a chunk of 8,192; its own 32768, 32: 1.9 ms.
_KERNEL_BLOCK, _KERNEL_WARPS = 4096, 8


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """(rows, length) int64: at each position the label of the token after it, IGNORED_LABEL at the end.

    >>> next_token_labels(torch.tensor([[-100, 7, 8]]))
    tensor([[   7,    8, -100]])
    """
    return torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:]


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats of `hidden @ weight.T` against labels.

    Args:
        hidden: (tokens, width).
        weight: (vocabulary, width), the output layer's, in the same dtype; under autocast both are
            computed with in its dtype.
        labels: (tokens,) int64; -100 where a token does not count.
        positions: (targets,) int64, where labels are not -100: only these rows are computed. None:
            all rows are.

    Returns:
        The mean over the targets, a scalar in fp32, and each token's loss without gradient,
            (tokens,) in fp32, 0 where it does not count.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    grads = torch.is_grad_enabled()
    wanted = (grads and hidden.requires_grad, grads and weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, positions, wanted)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, positions, wanted):
        """Mean loss and each token's; the gradients for a loss summed over the tokens are computed on the way and kept."""
        wants_hidden, wants_weight = wanted
        losses = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        hidden_gradient = _like(hidden, filled=positions is not None) if wants_hidden else None
        weight_gradient = _like(weight, filled=True, dtype=torch.float32) if wants_weight else None
        rows = hidden.shape[0] if positions is None else positions.shape[0]
        for begin in range(0, rows, CHUNK_ROWS):
            chosen = (
                slice(begin, min(begin + CHUNK_ROWS, rows))
                if positions is None
                else positions[begin : begin + CHUNK_ROWS]
            )
            part = hidden[chosen]
            logits = part @ weight.t()
            losses[chosen] = _to_gradient_in_place(logits, labels[chosen])
            if wants_hidden:
                hidden_gradient[chosen] = logits @ weight
            if wants_weight:
                _add_product(weight_gradient, logits.t(), part)
        targets = (labels != IGNORED_LABEL).sum().clamp(min=1)
        ctx.gradients, ctx.targets, ctx.weight_dtype = (hidden_gradient, weight_gradient), targets, weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum() / targets, losses

    @staticmethod
    def backward(ctx, gradient, _):
        """The kept gradients times the incoming one over the number of targets."""
        hidden_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None  # the graph, and this with it, lives as long as the step's loss does
        factor = gradient.float() / ctx.targets
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient * factor.to(hidden_gradient.dtype)
        if weight_gradient is not None:
            # One pass from fp32 to the weight's dtype.
            rounded = torch.empty(weight_gradient.shape, dtype=ctx.weight_dtype, device=weight_gradient.device)
            weight_gradient = torch.mul(weight_gradient, factor, out=rounded)
        return hidden_gradient, weight_gradient, None, None, None


def _like(tensor: torch.Tensor, filled: bool, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A plain tensor of the same shape (a plugin's parameter class is not passed on), of zeros when `filled`."""
    make = torch.zeros if filled else torch.empty
    return make(tensor.shape, dtype=dtype or tensor.dtype, device=tensor.device)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right` for a `total` in fp32, added up in fp32 within the product where the device can."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _to_gradient_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Replaces logits (rows, vocabulary) by the gradient of their summed loss, and returns each row's loss in fp32.

    Softmax minus one at the label; zeros and loss 0 where the label is -100.
    """
    if logits.is_cuda:
        return _liger_in_place(logits, labels)
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    probabilities = torch.softmax(logits.float(), dim=-1)
    counted = labels != IGNORED_LABEL
    probabilities[counted.nonzero().squeeze(1), labels[counted]] -= 1.0
    logits.copy_(probabilities * counted.unsqueeze(1))
    return losses


def _liger_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Liger's Triton kernel (0.6.5), called directly: its Python wrapper counts the targets with a read-back from the device."""
    from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel

    rows, vocabulary = logits.shape
    losses = torch.zeros(rows, dtype=torch.float32, device=logits.device)
    labels = labels.contiguous()
    liger_cross_entropy_kernel[(rows,)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=labels,
        Y_stride=1,
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=None,
        loss_stride=1,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        n_cols=vocabulary,
        n_non_ignore=1,
        sum_non_ignore_weight=1,
        weight_sum=0.0,
        ignore_index=IGNORED_LABEL,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="sum",
        softcap=None,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=True,
        BLOCK_SIZE=_KERNEL_BLOCK,
        num_warps=_KERNEL_WARPS,
    )
    return losses
