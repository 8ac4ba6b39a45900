"""Memory configuration of a training step: plugin, ranks, recomputation. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory.allocator import expandable_segments_enabled
from colossal_llama.training.trained_parameters import trained_parameters


@dataclass(frozen=True)
class MemoryConfig:
    """Settings that determine the memory of a training step, apart from the model."""

    plugin: str
    mixed_precision: str = "bf16"
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_stages: int = 1
    """Stages of the pipeline. The estimate is for the stage that needs most: the first, with a
    micro-batch in flight for every stage, or the last, with the loss."""
    sequence_parallel_size: int = 1
    """Ranks that share a sequence in mode all_to_all; other modes count as 1."""
    zero_stage: int = 1
    """ZeRO stage of plugin 3d."""
    zero_cpu_offload: bool = False
    """True when plugin 3d keeps master weights and optimizer states in host memory."""
    micro_batch_size: int = 1
    length_tokens: int = 4096
    accumulation_steps: int = 1
    recomputed_layers: int = 0
    """Number of layers, the first ones, that save their input only and are recomputed whole."""
    selective: bool = False
    """True when the other layers recompute norms and SwiGLU (model.activation_checkpointing)."""
    requested_layers: int | None = None
    """`--recompute_layers`; None: training.memory.recompute_policy chooses."""
    fused_kernels: bool = True
    fp8: bool = False
    flash_attention: bool = True
    fused_update: bool = True
    """True for the step of engine.zero_update or engine.zero_offload_update, where the plugin can
    use it; else ColossalAI's own."""
    optimizer_states: str = "fp32"
    """`bf16` and `8bit` are without master weights (engine.low_precision_update)."""
    trainable_parameters: int | None = None
    """Number of trained parameters when some are frozen (LoRA's adapters are part of the model);
    None: all are trained. Activations of frozen layers are estimated up to a fifth too high: the
    tensors that only a frozen weight's gradient needs are not saved."""

    @property
    def offloads(self) -> bool:
        """True when master weights and optimizer states are in host memory."""
        return self.plugin == "zero2_cpu" or self.zero_cpu_offload

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one device."""
        return self.micro_batch_size * self.length_tokens // self.sequence_parallel_size

    @property
    def micro_batches_in_flight(self) -> int:
        """Number of micro-batches whose activations the first pipeline stage holds at once."""
        return min(self.pipeline_stages, self.accumulation_steps)

    @property
    def fuses_loss(self) -> bool:
        """True when the fused cross-entropy is used; tensor parallelism rules it out."""
        return self.fused_kernels and self.tensor_parallel_size == 1


def memory_config_of(
    arguments: TrainingArguments, config: Any, data_parallel_size: int, fused_kernels: bool, flash_attention: bool
) -> MemoryConfig:
    """Builds the memory configuration of a command line.

    Args:
        arguments: with the defaults that depend on the data filled in.
        config: the model's.
        data_parallel_size: ranks that see different rows.
        fused_kernels: True when the device runs them.
        flash_attention: True when the device has a variable-length attention kernel.
    """
    plugin, data, memory = arguments.plugin, arguments.data, arguments.memory
    accumulated = data.accumulation_steps or 1
    if plugin.pp > 1:
        accumulated = accumulated * data.micro_batch_size // plugin.microbatch_size
    recomputed = (memory.recompute_layers or config.num_hidden_layers) if memory.use_grad_checkpoint else 0
    offloads = plugin.plugin == "zero2_cpu" or plugin.zero_cpu_offload
    return MemoryConfig(
        plugin=plugin.plugin,
        mixed_precision=plugin.mixed_precision,
        data_parallel_size=data_parallel_size,
        tensor_parallel_size=plugin.tp,
        pipeline_stages=plugin.pp,
        sequence_parallel_size=plugin.sp if plugin.sp_mode == "all_to_all" else 1,
        zero_stage=plugin.zero,
        zero_cpu_offload=plugin.zero_cpu_offload,
        micro_batch_size=plugin.microbatch_size if plugin.pp > 1 else data.micro_batch_size,
        length_tokens=data.max_length,
        accumulation_steps=accumulated,
        recomputed_layers=min(recomputed, config.num_hidden_layers),
        requested_layers=memory.recompute_layers,
        selective=fused_kernels and selective_recomputation_possible(arguments) and expandable_segments_enabled(),
        fused_kernels=fused_kernels,
        fp8=arguments.model.fp8,
        flash_attention=flash_attention,
        fused_update=arguments.model.fused_kernels if offloads else fused_kernels,  # in host memory on any device
        optimizer_states=arguments.optimizer.optimizer_states,
        trainable_parameters=trained_parameters(arguments.method, config),
    )


def selective_recomputation_possible(arguments: TrainingArguments) -> bool:
    """True when layers can drop the outputs of norms and SwiGLU until the backward pass.

    The dropped tensors must be the very tensors that autograd saved. `--fp8` saves them in 8 bits,
    `ddp` in another dtype; parallel dimensions of 3d and adapters may save a part or a copy.
    Gemini's parameters are not on the device when a projection needs the output of its norm. Done
    with expandable segments only: with segments of fixed sizes, fragmentation takes more than the
    estimate leaves free (training.memory.allocator).
    """
    if not arguments.memory.use_grad_checkpoint:
        return False
    plugin = arguments.plugin
    is_whole = plugin.tp == plugin.pp == plugin.sp == 1 and not arguments.method.lora_rank
    return is_whole and not arguments.model.fp8 and plugin.plugin in ("zero2", "zero2_cpu", "3d")
