"""Fused ZeRO step: the AdamW of ColossalAI's ZeRO on GPUs, with a fraction of the memory traffic.

`LowLevelZeroOptimizer.step` makes an fp32 copy of every gradient at once (26 GiB at 7 B). It reads
each as fp64 for the norm, scales it, updates, and casts the result into a further copy. Here each
parameter is read once and written once, and gradients stay in half precision. The host waits for
nothing: the clipping factor stays on the device. With one data-parallel rank a gradient is kept
where autograd put it, instead of passing through a communication bucket (three copies of each).

The optimizer keeps its class, states and checkpoints: `use_fused_step` replaces two methods of the
one instance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TypeAlias

import torch
import torch.distributed as dist
from colossalai.zero.low_level import LowLevelZeroOptimizer

from colossal_llama.engine.row_segments import updates_of
from colossal_llama.model.kernels.adamw import adamw, step_scalars


def why_no_fused_step(optimizer: torch.optim.Optimizer, device: torch.device) -> str | None:
    """The reason why the fused ZeRO step cannot be used; None without one."""
    if not isinstance(optimizer, LowLevelZeroOptimizer):
        return "the plugin's optimizer is not ColossalAI's ZeRO"
    if device.type != "cuda":
        return f"the fused step is for CUDA devices, this is {device.type}"
    reason = why_plugin_must_update(optimizer)
    if reason is None and optimizer._cpu_offload:
        reason = "the optimizer's states are in host memory"
    return reason


def why_plugin_must_update(optimizer: LowLevelZeroOptimizer) -> str | None:
    """The reason why no step of ours can replace the plugin's; None without one."""
    if not optimizer._master_weights:
        return "there are no fp32 master weights"
    if optimizer._dtype not in (torch.bfloat16, torch.float16):
        return f"the weights are {optimizer._dtype}"
    for name in ("tp_pg", "pp_pg"):  # gradients of shared parameters count once in the norm there
        group = getattr(optimizer, name, None)
        if group is not None and dist.get_world_size(group) > 1:
            return "the model is divided over ranks"
    groups = list(optimizer.pg_to_param_list)
    if len(groups) > 1 or isinstance(groups[0], tuple):
        return "there are several data-parallel groups"
    return None


def use_fused_step(
    optimizer: LowLevelZeroOptimizer, apply: "Apply | None" = None, next_state: "NextState | None" = None
) -> None:
    """Replaces the step of one prepared optimizer, in place.

    Call it where `why_no_fused_step` returns None.

    Args:
        optimizer: of ZeRO.
        apply: updates elements of a shard (None: all) by the scalars of
            `model.kernels.adamw.step_scalars`; None: `adamw` on fp32 master weights.
        next_state: counts the step in a parameter's states, and makes them before the first; None:
            moments of the master weights' dtype.
    """
    apply, next_state = apply or _apply, next_state or state_for_next_step

    def step(self: LowLevelZeroOptimizer, closure: None = None) -> None:
        _step(self, apply, next_state)

    optimizer.step = MethodType(step, optimizer)
    optimizer.uncount_last_step = MethodType(_uncount_last_step, optimizer)
    skip_communication_buckets(optimizer)


def skip_communication_buckets(optimizer: LowLevelZeroOptimizer) -> None:
    """Keeps gradients where autograd put them, if there is no other rank to communicate them to."""
    if all(dist.get_world_size(group) == 1 for group in optimizer.pg_to_param_list):
        optimizer._add_to_bucket = MethodType(_keep_gradient, optimizer)


@dataclass(frozen=True)
class ParameterUpdate:
    """This rank's shard of one parameter and of its gradient, all flat and of the same length."""

    group: dict
    master: torch.Tensor
    """fp32."""
    gradient: torch.Tensor
    """Half precision."""
    padded_working: torch.Tensor
    """The whole parameter in half precision, padded to a multiple of the ranks."""
    process_group: dist.ProcessGroup

    @property
    def working(self) -> torch.Tensor:
        """This rank's shard of `padded_working`."""
        size, rank = dist.get_world_size(self.process_group), dist.get_rank(self.process_group)
        return self.padded_working.chunk(size)[rank]


Apply: TypeAlias = Callable[[dict, ParameterUpdate, slice | None, torch.Tensor], None]
NextState: TypeAlias = Callable[[dict, torch.Tensor], dict]


def _step(self: LowLevelZeroOptimizer, apply: Apply, next_state: NextState) -> None:
    """Takes the step of `LowLevelZeroOptimizer.step`, one fused kernel a parameter."""
    if not self.require_grad_sync:
        return
    if self.mixed_precision_mixin is not None and self.mixed_precision_mixin.should_skip_step():
        self.zero_grad()
        return
    updates = list(parameter_updates(self))
    norm = global_norm(updates, next(iter(self.pg_to_param_list)))
    self._current_grad_norm = norm
    factor = gradient_factor(self, norm)
    changing: dict[tuple[int, float, int], torch.Tensor] = {}
    for update in updates:
        state = next_state(self.optim.state[update.master], update.master)
        beta1, beta2 = update.group["betas"]
        for elements, rate in updates_of(self.optim, update.group, update.master):
            key = (id(update.group), rate, state["step"])
            if key not in changing:
                changing[key] = step_scalars(rate, beta1, beta2, state["step"], factor)
            apply(state, update, elements, changing[key])
    gather_working_weights(updates)


def _uncount_last_step(self: LowLevelZeroOptimizer) -> None:
    """Decrements the step counts after a refused update; before the gradients are cleared."""
    for update in parameter_updates(self):
        self.optim.state[update.master]["step"] -= 1


def parameter_updates(optimizer: LowLevelZeroOptimizer) -> Iterator[ParameterUpdate]:
    """Updates of the parameters that have a gradient."""
    for group_id, group in enumerate(optimizer.optim.param_groups):
        for working, master in zip(optimizer._working_param_groups[group_id], group["params"], strict=True):
            store = optimizer.pid_to_grad_store[id(working)]
            gradients = store.get_partitioned_gradients_by_param_id(group_id, id(working))
            if gradients:
                gradient = gradients[0 if optimizer._partition_grads else store.local_rank]
                padded = optimizer._working_param_to_padded_working_param[working]
                yield ParameterUpdate(group, master, gradient.view(-1), padded, optimizer.param_to_pg[working])


def global_norm(updates: list[ParameterUpdate], process_group: dist.ProcessGroup) -> torch.Tensor:
    """Norm of all gradients over all ranks, summed in fp32; a scalar on the device."""
    norms = torch._foreach_norm([update.gradient for update in updates], 2, dtype=torch.float32)
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square, group=process_group)
    return square.sqrt()


def gradient_factor(optimizer: LowLevelZeroOptimizer, norm: torch.Tensor) -> torch.Tensor:
    """Factor on the gradients that removes the loss scale of fp16, and clips.

    It is NaN, for which `adamw` changes nothing, where the norm is NaN or Inf.
    """
    scale = 1.0
    if optimizer.mixed_precision_mixin is not None:
        scale = optimizer.mixed_precision_mixin.get_grad_div_scale()
    if optimizer._clip_grad_norm <= 0.0:
        return torch.full_like(norm, 1.0 / scale)
    excess = (norm / scale + 1e-6) / optimizer._clip_grad_norm
    return torch.where(norm.isfinite(), 1.0 / (scale * excess.clamp(min=1.0)), torch.nan)


def state_for_next_step(state: dict, master: torch.Tensor) -> dict:
    """Increments an optimizer state's step count; before the first step its moments are zeros."""
    if "exp_avg" not in state:
        state.update(step=0, exp_avg=torch.zeros_like(master), exp_avg_sq=torch.zeros_like(master))
    state["step"] += 1
    return state


def _apply(state: dict, update: ParameterUpdate, elements: slice | None, changing: torch.Tensor) -> None:
    """Updates some elements of a shard; None: all of them."""
    group = update.group
    beta1, beta2 = group["betas"]
    tensors = [update.master, update.gradient, state["exp_avg"], state["exp_avg_sq"], update.working]
    if elements is not None:
        tensors = [tensor[elements] for tensor in tensors]
    master, gradient, exp_avg, exp_avg_sq, working = tensors
    hyper = (beta1, beta2, group["eps"], group["weight_decay"])
    adamw(master, gradient, exp_avg, exp_avg_sq, working, changing, *hyper)


def gather_working_weights(updates: list[ParameterUpdate]) -> None:
    """All-gathers the working weights from every rank's shards, in place."""
    pending = []
    for update in updates:
        if dist.get_world_size(update.process_group) > 1:
            pending.append(
                dist.all_gather_into_tensor(
                    update.padded_working, update.working, group=update.process_group, async_op=True
                )
            )
    for work in pending:
        work.wait()


def _keep_gradient(self: LowLevelZeroOptimizer, param: torch.nn.Parameter, group_id: int) -> None:
    """Replaces `_add_to_bucket` where there is no other rank: the gradient is reduced already."""
    assert param.grad is not None, "called by the hook on its gradient"
    gradient = param.grad.detach().view(-1)
    param.grad = None
    self._add_grad(gradient, 1, group_id, id(param))
