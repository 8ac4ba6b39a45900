"""Booster plugins: builds the `Backend` of a `PluginConfig`, in one function a plugin."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin, HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin
from colossalai.booster.plugin.plugin_base import Plugin

from colossal_llama.engine.backend import Backend
from colossal_llama.engine.launch import has_gpu
from colossal_llama.engine.pipeline_schedule import VariableShapeSchedule
from colossal_llama.engine.whole_model import WholeModelPolicy

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
INITIAL_LOSS_SCALE = 2.0**16


@dataclass(frozen=True)
class PluginConfig:
    """Settings of a plugin."""

    name: str
    """`zero2`, `zero2_cpu`, `gemini`, `gemini_auto`, `3d` or `ddp`."""
    mixed_precision: str
    """A key of `PRECISIONS`."""
    gradient_clipping: float = 0.0
    """Largest norm of the gradients; 0: they are not clipped."""
    accumulates_gradients: bool = False
    """True when a step has several micro-batches."""
    tp: int = 1
    """Tensor-parallel ranks; this and the fields below are of `3d`."""
    pp: int = 1
    """Pipeline stages."""
    sp: int = 1
    """Ranks that share a sequence."""
    sp_mode: str | None = None
    """`split_gather`, `ring` or `all_to_all`."""
    microbatch_size: int = 1
    """Rows of a micro-batch in the pipeline."""
    zero: int = 0
    """Stage of ZeRO: 0, 1 or 2."""
    zero_cpu_offload: bool = False
    """True for optimizer states in host memory."""
    master_weights: bool = True
    """False: zero2 updates the half-precision weights themselves (engine.low_precision_update)."""


def build_backend(config: PluginConfig) -> Backend:
    """Builds the booster of a plugin; the process group must exist."""
    plugin = _BUILDERS[config.name](config)
    if config.name == "ddp":
        return Backend(
            booster=Booster(plugin=plugin, mixed_precision="fp16" if config.mixed_precision == "fp16" else None),
            plugin=plugin,
            parameter_dtype=torch.float32,
            autocast_dtype=torch.bfloat16 if config.mixed_precision == "bf16" else None,
            clips_gradients=False,
            gradient_clipping=config.gradient_clipping,
        )
    return Backend(
        booster=Booster(plugin=plugin),
        plugin=plugin,
        parameter_dtype=PRECISIONS[config.mixed_precision],
        autocast_dtype=None,
        clips_gradients=True,
        gradient_clipping=config.gradient_clipping,
    )


def _overlaps_communication(config: PluginConfig) -> bool:
    """True when gradients are communicated on a second CUDA stream, during the backward pass.

    A CPU has no streams, and one rank has nothing to communicate, while the plugin would make the
    host wait for the device after every micro-batch.

    A pipeline communicates gradients after its last backward pass. There the plugin never waits for
    that stream, and the update would begin with gradients that are still being summed.
    """
    return has_gpu() and dist.get_world_size() > 1 and config.pp == 1


def _norm_limit(config: PluginConfig) -> float:
    """Limit of the gradient norm; infinity for no clipping.

    With 0 some plugins compute no norm, by which a non-finite step is recognised
    (`engine.optimizer_step`).
    """
    return config.gradient_clipping or float("inf")


def _zero2(config: PluginConfig, cpu_offload: bool = False) -> Plugin:
    return LowLevelZeroPlugin(
        stage=2,
        precision=config.mixed_precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(config),
        cpu_offload=cpu_offload,
        overlap_communication=_overlaps_communication(config),
        master_weights=config.master_weights,
    )


def _zero2_cpu(config: PluginConfig) -> Plugin:
    return _zero2(config, cpu_offload=True)


def _gemini(config: PluginConfig, placement_policy: str = "static") -> Plugin:
    return GeminiPlugin(
        precision=config.mixed_precision,
        placement_policy=placement_policy,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(config),
        enable_gradient_accumulation=config.accumulates_gradients,
        pin_memory=True,
    )


def _gemini_auto(config: PluginConfig) -> Plugin:
    return _gemini(config, placement_policy="auto")


def _three_dimensions(config: PluginConfig) -> Plugin:
    if divides_model := max(config.tp, config.pp, config.sp) > 1:
        # Imported here: it is for transformers 4.51 (training.argument_checks refuses others).
        from colossal_llama.engine.patches.llama_parallel import install_sharded_forwards

        install_sharded_forwards()
    plugin = HybridParallelPlugin(
        tp_size=config.tp,
        pp_size=config.pp,
        sp_size=config.sp if config.sp_mode == "all_to_all" else 1,
        enable_sequence_parallelism=config.sp > 1,
        sequence_parallelism_mode=config.sp_mode if config.sp > 1 else None,
        microbatch_size=config.microbatch_size,  # unused by the schedule below, but the plugin requires it
        zero_stage=config.zero,
        precision=config.mixed_precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=_norm_limit(config),
        cpu_offload=config.zero_cpu_offload,
        overlap_communication=_overlaps_communication(config),
        # The plugin's fused norm is apex's; the model has ours by then
        # (colossal_llama.model.kernels.apply).
        enable_fused_normalization=False,
        # Without tensor parallelism nothing needs a padded vocabulary, and the fused cross-entropy
        # needs an unpadded one.
        make_vocab_size_divisible_by=64 if config.tp > 1 else 1,
        custom_policy=None if divides_model else WholeModelPolicy(),
    )
    if config.pp > 1:
        plugin.scheduler = VariableShapeSchedule(plugin.stage_manager, microbatch_size=config.microbatch_size)
    return plugin


def _ddp(config: PluginConfig) -> Plugin:
    return TorchDDPPlugin(broadcast_buffers=False)


_BUILDERS = {
    "zero2": _zero2,
    "zero2_cpu": _zero2_cpu,
    "gemini": _gemini,
    "gemini_auto": _gemini_auto,
    "3d": _three_dimensions,
    "ddp": _ddp,
}
