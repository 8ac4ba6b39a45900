"""The Booster plugin for a command line: one function a plugin, all settings in one place."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin, HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin
from colossalai.booster.plugin.plugin_base import Plugin

from colossal_llama.engine.launch import has_gpu
from colossal_llama.engine.patches.llama_parallel import complete_partial_gradients, install_sharded_forwards
from colossal_llama.engine.pipeline_schedule import StepSchedule
from colossal_llama.training.arguments import TrainingArguments

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
INITIAL_LOSS_SCALE = 2.0**16


@dataclass(frozen=True)
class Engine:
    """A booster with what the training loop must know of its plugin."""

    booster: Booster
    plugin: Plugin
    parameter_dtype: torch.dtype
    """In which the model is loaded: `ddp` keeps fp32 weights and computes under autocast, the
    others hold half-precision copies."""
    autocast_dtype: torch.dtype | None
    clips_itself: bool
    """Whether `optimizer.step()` clips the gradients."""

    @property
    def pipeline_stages(self) -> int:
        """Number of pipeline stages; 1 without a pipeline."""
        return self.plugin.pp_size if isinstance(self.plugin, HybridParallelPlugin) else 1

    @property
    def is_last_stage(self) -> bool:
        """Whether this process has the end of the model, and the loss; so it is without a pipeline."""
        return self.pipeline_stages == 1 or self.plugin.stage_manager.is_last_stage()

    def boost(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Hands model and optimizer to the plugin; returns its own of both."""
        model, optimizer, *_ = self.booster.boost(model, optimizer)
        if isinstance(self.plugin, HybridParallelPlugin):
            complete_partial_gradients(model, self.plugin.tp_group)
        return model, optimizer


def build_engine(arguments: TrainingArguments) -> Engine:
    """The booster for `--plugin` and its settings; the process group must exist."""
    plugin = _BUILDERS[arguments.plugin](arguments)
    half = PRECISIONS[arguments.mixed_precision]
    if arguments.plugin == "ddp":
        scaled = "fp16" if arguments.mixed_precision == "fp16" else None
        return Engine(
            booster=Booster(plugin=plugin, mixed_precision=scaled),
            plugin=plugin,
            parameter_dtype=torch.float32,
            autocast_dtype=torch.bfloat16 if arguments.mixed_precision == "bf16" else None,
            clips_itself=False,
        )
    return Engine(
        booster=Booster(plugin=plugin),
        plugin=plugin,
        parameter_dtype=half,
        autocast_dtype=None,
        clips_itself=True,
    )


def _overlaps(arguments: TrainingArguments) -> bool:
    """Whether gradients are exchanged on a second CUDA stream: a CPU has none, and one rank nothing to exchange, while the
    engine would make the host wait for the device after every micro-batch.

    Nor in a pipeline, which exchanges them after its last backward pass: there the engine waits for
    that stream nowhere, and the update would begin with gradients that are still being summed.
    """
    return has_gpu() and dist.get_world_size() > 1 and arguments.pp == 1


def _norm_limit(arguments: TrainingArguments) -> float:
    """Infinity for no clipping: with 0 some plugins compute no norm, by which a bad step is known (training.nonfinite_steps)."""
    return arguments.gradient_clipping or float("inf")


def _zero2(arguments: TrainingArguments, cpu_offload: bool = False) -> Plugin:
    return LowLevelZeroPlugin(
        stage=2,
        precision=arguments.mixed_precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(arguments),
        cpu_offload=cpu_offload,
        overlap_communication=_overlaps(arguments),
    )


def _zero2_cpu(arguments: TrainingArguments) -> Plugin:
    return _zero2(arguments, cpu_offload=True)


def _gemini(arguments: TrainingArguments, placement_policy: str = "static") -> Plugin:
    return GeminiPlugin(
        precision=arguments.mixed_precision,
        placement_policy=placement_policy,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(arguments),
        enable_gradient_accumulation=(arguments.accumulation_steps or 1) > 1,
        pin_memory=True,
    )


def _gemini_auto(arguments: TrainingArguments) -> Plugin:
    return _gemini(arguments, placement_policy="auto")


def _three_dimensions(arguments: TrainingArguments) -> Plugin:
    install_sharded_forwards()
    plugin = HybridParallelPlugin(
        tp_size=arguments.tp,
        pp_size=arguments.pp,
        sp_size=arguments.sp if arguments.sp_mode == "all_to_all" else 1,
        enable_sequence_parallelism=arguments.sp > 1,
        sequence_parallelism_mode=arguments.sp_mode if arguments.sp > 1 else None,
        microbatch_size=arguments.microbatch_size,  # the schedule below does not cut; the plugin wants a number all the same
        zero_stage=arguments.zero,
        precision=arguments.mixed_precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(arguments),
        cpu_offload=arguments.zero_cpu_offload,
        overlap_communication=_overlaps(arguments),
        # Its fused norm is apex's; ours are put into the model before
        # (colossal_llama.model.kernels.apply).
        enable_fused_normalization=False,
        # Without tensor parallelism nothing needs a padded vocabulary, and the fused cross-entropy
        # needs an unpadded one.
        make_vocab_size_divisible_by=64 if arguments.tp > 1 else 1,
    )
    if arguments.pp > 1:
        plugin.scheduler = StepSchedule(plugin.stage_manager, microbatch_size=arguments.microbatch_size)
    return plugin


def _ddp(arguments: TrainingArguments) -> Plugin:
    return TorchDDPPlugin(broadcast_buffers=False)


_BUILDERS = {
    "zero2": _zero2,
    "zero2_cpu": _zero2_cpu,
    "gemini": _gemini,
    "gemini_auto": _gemini_auto,
    "3d": _three_dimensions,
    "ddp": _ddp,
}


def data_parallel_place(engine: Engine) -> tuple[int, int]:
    """This process's data-parallel rank and the number of data-parallel ranks."""
    if isinstance(engine.plugin, HybridParallelPlugin):
        return dist.get_rank(engine.plugin.dp_group), dist.get_world_size(engine.plugin.dp_group)
    return dist.get_rank(), dist.get_world_size()
