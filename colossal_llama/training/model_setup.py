"""Model set-up: loading, attention, kernels, recomputation, frozen weights, LoRA adapters."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from colossal_llama.dataset.part import full_row_tokens
from colossal_llama.engine.backend import Backend
from colossal_llama.engine.launch import current_device
from colossal_llama.engine.plugins import PRECISIONS, PluginConfig, build_backend
from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.architectures import head_width, key_value_heads
from colossal_llama.model.attention.varlen import choose_attention
from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason, use_fused_kernels
from colossal_llama.model.kernels.fp8_linear import fp8_unavailable_reason, use_fp8
from colossal_llama.model.kernels.per_token_loss import return_token_losses
from colossal_llama.model.loading import check_adapter, load_config, load_model
from colossal_llama.model.lora import config_to_continue, lora_config, restore_adapter, train_embeddings
from colossal_llama.model.param_count import flops_per_token
from colossal_llama.model.weights.weight_files import first_line
from colossal_llama.training.arguments import (
    GPU_ONLY_PLUGINS,
    MethodArguments,
    ModelArguments,
    PluginArguments,
    TrainingArguments,
)
from colossal_llama.training.distributed import consensus
from colossal_llama.training.inputs import RunInputs
from colossal_llama.training.lr_schedule import step_geometry
from colossal_llama.training.memory.allocator import expandable_segments_enabled
from colossal_llama.training.memory.config import selective_recomputation_possible
from colossal_llama.training.memory.recompute_policy import choose_recomputation
from colossal_llama.training.parallel_layout import describe_parallel_layout, layout_of
from colossal_llama.training.trained_parameters import describe_rows, freeze, new_row_options
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class ModelSetup:
    """Backend of the plugin, and the model to train with it."""

    backend: Backend
    model: PreTrainedModel | PeftModel
    flops_per_token: float
    fuses_loss: bool
    """True when output layer and cross-entropy are one kernel, which never builds the logits."""
    notes: list[str]
    """Sentences for the start-up report."""


def plugin_config(arguments: TrainingArguments) -> PluginConfig:
    """Configuration of the plugin for `engine.plugins`."""
    plugin = arguments.plugin
    return PluginConfig(
        name=plugin.plugin,
        mixed_precision=plugin.mixed_precision,
        gradient_clipping=arguments.optimizer.gradient_clipping,
        accumulates_gradients=(arguments.data.accumulation_steps or 1) > 1,
        tp=plugin.tp,
        pp=plugin.pp,
        sp=plugin.sp,
        sp_mode=plugin.sp_mode,
        microbatch_size=plugin.microbatch_size,
        zero=plugin.zero,
        zero_cpu_offload=plugin.zero_cpu_offload,
        master_weights=arguments.optimizer.optimizer_states == "fp32",
    )


def set_up_model(arguments: TrainingArguments, inputs: RunInputs) -> ModelSetup:
    """Builds the backend and loads the model for it.

    Raises:
        CollectiveError: the weights cannot be loaded on some rank.
        UserError: fp8 is not possible, or the model has fewer embedding rows than its tokenizer
            has tokens.
    """
    backend, device = build_backend(plugin_config(arguments)), current_device()
    config = load_config(inputs.model_path)
    attention, attention_note = _choose_attention(arguments.model, arguments.plugin, config, device)
    with consensus.raise_on_all_ranks():
        model = load_model(
            inputs.model_path, backend.parameter_dtype, attention, _loading_device(arguments.plugin, device)
        )
    return_token_losses(model)
    fused_kernels = arguments.model.fused_kernels and fused_kernels_unavailable_reason(device) is None
    fuses_loss = fused_kernels and arguments.plugin.tp == 1
    notes = [attention_note, _use_kernels(arguments.model, model, device, fuses_loss)]
    if arguments.model.fp8:
        notes.append(_use_fp8(model, device))
    geometry = step_geometry(arguments.data, arguments.plugin, data_parallel_size=1)
    notes += describe_parallel_layout(arguments.plugin, geometry.accumulation_steps)
    _check_vocabulary(model, inputs)
    if arguments.memory.use_grad_checkpoint:
        notes.append(_recompute(arguments, backend, model, device, fused_kernels))
    if note := freeze(arguments.method, model, inputs.new_rows):
        notes.append(note)
    if inputs.new_rows is not None and new_row_options(arguments) == ["--new_row_lr"]:
        notes.append(f"{describe_rows(inputs.new_rows)} have a learning rate of their own")
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    length_tokens = full_row_tokens(inputs.parts, arguments.data.max_length, inputs.origin.packed_to_tokens)
    if arguments.method.lora_rank:
        model = _with_adapters(arguments.method, arguments.data.seed, inputs, backend, model)
        notes.append(_describe_adapters(arguments.method, model, inputs))
    return ModelSetup(backend, model, flops_per_token(config, length_tokens, frozen), fuses_loss, notes)


def _choose_attention(
    model: ModelArguments, plugin: PluginArguments, config: PretrainedConfig, device: torch.device
) -> tuple[str, str]:
    ranks = layout_of(plugin).head_parallel_size
    heads = (config.num_attention_heads // ranks, key_value_heads(config) // ranks, head_width(config))
    return choose_attention(
        model.use_flash_attn,
        model.fused_kernels,
        device,
        PRECISIONS[plugin.mixed_precision],
        heads,
        config.attention_dropout,
    )


def _loading_device(plugin: PluginArguments, device: torch.device) -> torch.device:
    """Device on which the whole model is loaded: the CPU when this process keeps a shard of it.

    On the CPU the weight files are memory-mapped, so all processes of a host share their pages, as
    long as the files have the dtype of the run. (A model of 395 MB took 1 MB of a process's own
    memory.)
    """
    return torch.device("cpu") if plugin.tp * plugin.pp > 1 else device


def _with_adapters(
    method: MethodArguments, seed: int, inputs: RunInputs, backend: Backend, model: PreTrainedModel
) -> PeftModel:
    """Adds LoRA adapters to the model, new ones or those of a checkpoint, in the model's dtype."""
    alpha = method.lora_alpha or 2.0 * method.lora_rank
    config = lora_config(method.lora_rank, alpha, method.lora_dropout, method.lora_target_modules)
    adapter = inputs.adapter_path
    torch.manual_seed(seed)  # new adapters are random, and must be the same on every rank
    with consensus.raise_on_all_ranks():
        try:
            if adapter is not None and method.lora_new_rows:
                adapted = backend.add_lora(model, config_to_continue(adapter), None)
                restore_adapter(adapted, adapter)
            else:
                adapted = backend.add_lora(model, config, str(adapter) if adapter else None)
        except Exception as error:  # peft and safetensors each raise their own on damaged files
            if adapter is None:
                raise
            raise UserError(f"the adapter {adapter} cannot be loaded: {first_line(error)}") from error
        if adapter is not None:
            check_adapter(adapted, adapter)
    if method.lora_new_rows:
        train_embeddings(adapted)
    # peft keeps the base path of a loaded adapter; the base model may have been moved since.
    # A path also where the adapter names a repository: peft would ask the hub about that.
    adapted.active_peft_config.base_model_name_or_path = str(inputs.model_path)
    return adapted


def _describe_adapters(method: MethodArguments, model: PeftModel, inputs: RunInputs) -> str:
    factors = sum(
        tensor.numel() for name, tensor in model.named_parameters() if tensor.requires_grad and "lora_" in name
    )
    note = f"LoRA of rank {method.lora_rank}: {factors:,} parameters are trained"
    if not method.lora_new_rows:
        return note
    return note + f", and {len(inputs.new_rows or ()):,} new rows of the embeddings, saved as whole matrices"


def _recompute(
    arguments: TrainingArguments, backend: Backend, model: PreTrainedModel, device: torch.device, fused_kernels: bool
) -> str:
    """Sets up activation checkpointing; returns a note for the start-up report."""
    chosen = choose_recomputation(arguments, model.config, device, backend.data_parallel_size, fused_kernels)
    # Non-reentrant checkpointing ends a recomputation by an exception as soon as all saved tensors
    # are there; Gemini's hooks around each operation would then not be closed.
    reentrant = arguments.plugin.plugin in GPU_ONLY_PLUGINS
    recompute_layers(model, chosen.layers, reentrant=reentrant, selective=chosen.selective)
    note = f"gradient checkpointing: {chosen.describe(model.config.num_hidden_layers)}"
    could_be_selective = selective_recomputation_possible(arguments) and not expandable_segments_enabled()
    if chosen.layers and device.type == "cuda" and could_be_selective:
        note += "; fewer may do with PYTORCH_CUDA_ALLOC_CONF unset, or with expandable_segments:True in it"
    return note


def _use_kernels(arguments: ModelArguments, model: PreTrainedModel, device: torch.device, fuses_loss: bool) -> str:
    if not arguments.fused_kernels:
        return "fused kernels: off (--fused_kernels False)"
    reason = fused_kernels_unavailable_reason(device)
    if reason is not None:
        return f"fused kernels: off, {reason}"
    use_fused_kernels(model, fuse_loss=fuses_loss)
    return "fused kernels: norm, rotary, SwiGLU" + (", linear cross-entropy" if fuses_loss else "")


def _use_fp8(model: PreTrainedModel, device: torch.device) -> str:
    reason = fp8_unavailable_reason(device, model.config)
    if reason is not None:
        raise UserError(f"--fp8 cannot be used: {reason}")
    use_fp8(model)
    return "fp8: matrix products of the decoder layers in 8 bits"


def _check_vocabulary(model: PreTrainedModel, inputs: RunInputs) -> None:
    rows, tokens = model.get_input_embeddings().num_embeddings, len(inputs.tokenizer)
    if rows < tokens:
        raise UserError(
            f"{inputs.model_path}: the model has {rows} embedding rows, its tokenizer {tokens} tokens: "
            "run colossal_llama/model/init_model.py first"
        )
