"""What beside the model decides how much memory a step takes: plugin, ranks and batch, as a command line asks for them.

Imports no torch.
"""

from dataclasses import dataclass
from typing import Any

from colossal_llama.model.param_count import adapter_parameters
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.memory.allocator import segments_grow


@dataclass(frozen=True)
class Setup:
    """What beside the model decides about memory."""

    plugin: str
    mixed_precision: str = "bf16"
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_stages: int = 1
    """The fullest stage is estimated: the first, with as many micro-batches under way as there
    are stages, or the last, with the loss."""
    sequence_parallel_size: int = 1
    """Of mode all_to_all; what the other modes save beside tensor parallelism is not taken off."""
    zero_stage: int = 1
    """Of plugin 3d."""
    offload: bool = False
    """Plugin 3d: master weights and states in host memory."""
    micro_batch_size: int = 1
    length_tokens: int = 4096
    accumulation_steps: int = 1
    recomputed_layers: int = 0
    """So many layers, the first ones, keep only their input and are computed again in the
    backward pass."""
    frugal: bool = False
    """The other layers do not keep what is cheap to make again (model.activation_checkpointing)."""
    fused_kernels: bool = True
    fp8: bool = False
    flash_attention: bool = True
    lean_update: bool = True
    """The update of engine.zero_update or engine.zero_offload_update, where the plugin can have
    it; else the engine's own."""
    trainable_parameters: int | None = None
    """With frozen parameters (LoRA's adapters count as part of the model); None: all are trained.
    The activations are then estimated
    too high, by up to a fifth: what only a frozen weight's gradient would need is not kept."""

    @property
    def offloads(self) -> bool:
        """Whether master weights and states are in host memory."""
        return self.plugin == "zero2_cpu" or self.offload

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one device."""
        return self.micro_batch_size * self.length_tokens // self.sequence_parallel_size

    @property
    def under_way(self) -> int:
        """Micro-batches of which the first stage of a pipeline keeps activations at once."""
        return min(self.pipeline_stages, self.accumulation_steps)

    @property
    def fuses_loss(self) -> bool:
        """Whether the fused cross-entropy is used; tensor parallelism rules it out."""
        return self.fused_kernels and self.tensor_parallel_size == 1


def setup_of(
    arguments: TrainingArguments, config: Any, data_parallel_size: int, fused_kernels: bool, flash_attention: bool
) -> Setup:
    """The setup that a command line asks for.

    Args:
        arguments: with the defaults that depend on the data filled in.
        config: the model's.
        data_parallel_size: ranks that see different rows.
        fused_kernels, flash_attention: whether the device has them.
    """
    pipelined = arguments.pp > 1
    accumulated = arguments.accumulation_steps or 1
    recomputed = (arguments.recompute_layers or config.num_hidden_layers) if arguments.use_grad_checkpoint else 0
    offloads = arguments.plugin == "zero2_cpu" or arguments.zero_cpu_offload
    return Setup(
        plugin=arguments.plugin,
        mixed_precision=arguments.mixed_precision,
        data_parallel_size=data_parallel_size,
        tensor_parallel_size=arguments.tp,
        pipeline_stages=arguments.pp,
        sequence_parallel_size=arguments.sp if arguments.sp_mode == "all_to_all" else 1,
        zero_stage=arguments.zero,
        offload=arguments.zero_cpu_offload,
        micro_batch_size=arguments.microbatch_size if pipelined else arguments.micro_batch_size,
        length_tokens=arguments.max_length,
        accumulation_steps=accumulated * arguments.micro_batch_size // arguments.microbatch_size
        if pipelined
        else accumulated,
        recomputed_layers=min(recomputed, config.num_hidden_layers),
        frugal=fused_kernels and may_be_frugal(arguments) and segments_grow(),
        fused_kernels=fused_kernels,
        fp8=arguments.fp8,
        flash_attention=flash_attention,
        lean_update=arguments.fused_kernels if offloads else fused_kernels,  # in host memory any device has it
        trainable_parameters=trained_parameters(arguments, config),
    )


def trained_parameters(arguments: TrainingArguments, config: Any) -> int | None:
    """How many parameters are trained where not all are: with LoRA or with frozen layers."""
    if arguments.lora_rank:
        return adapter_parameters(config, arguments.lora_rank, arguments.lora_target_modules)
    if arguments.freeze_non_embeds_params:
        return config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return None


def may_be_frugal(arguments: TrainingArguments) -> bool:
    """Whether layers could leave out the results of norms and SwiGLU: these must be the very tensors that are kept.

    `--fp8` keeps them in 8 bits, `ddp` in another dtype, dimensions of 3d and adapters may keep a
    part or a copy; Gemini's parameters are not in their place when a layer's products ask for a
    result of its norm. They do it only in segments that grow: an allocator with others loses more
    to gaps than the estimate leaves free (training.memory.allocator).
    """
    if not arguments.use_grad_checkpoint:
        return False
    whole = arguments.tp == arguments.pp == arguments.sp == 1 and not arguments.lora_rank
    return whole and not arguments.fp8 and arguments.plugin in ("zero2", "zero2_cpu", "3d")
