"""Builds the engine and loads the model as it wants it: dtype, attention, kernels, recomputation, freezing, adapters."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from colossal_llama.dataset.part_reader import full_row_tokens
from colossal_llama.engine.backend import Backend
from colossal_llama.engine.launch import current_device
from colossal_llama.engine.plugins import PRECISIONS, PluginConfig, build_backend
from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.attention.varlen import choose_attention
from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason, use_fused_kernels
from colossal_llama.model.kernels.fp8_linear import fp8_unavailable_reason, use_fp8
from colossal_llama.model.kernels.per_token_loss import return_token_losses
from colossal_llama.model.loading import load_config, load_model
from colossal_llama.model.lora import freeze_all_but_embeddings, lora_config
from colossal_llama.model.param_count import flops_per_token
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.command_line import GPU_ONLY_PLUGINS
from colossal_llama.training.distributed import consensus
from colossal_llama.training.inputs import Data
from colossal_llama.training.lr_schedule import step_geometry
from colossal_llama.training.memory.allocator import segments_grow
from colossal_llama.training.memory.config import may_be_frugal
from colossal_llama.training.memory.recompute_policy import choose_recomputation, recomputed_in_words
from colossal_llama.training.parallel_layout import layout_of, notes_on_dimensions
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class Plan:
    """A backend and the model that it will train."""

    backend: Backend
    model: LlamaForCausalLM | PeftModel
    flops_per_token: float
    fuses_loss: bool
    """Whether the output layer and the cross-entropy are one, and the logits never built."""
    notes: list[str]


def plugin_config(arguments: TrainingArguments) -> PluginConfig:
    """The plugin's settings among the arguments."""
    return PluginConfig(
        name=arguments.plugin,
        mixed_precision=arguments.mixed_precision,
        gradient_clipping=arguments.gradient_clipping,
        accumulates_gradients=(arguments.accumulation_steps or 1) > 1,
        tp=arguments.tp,
        pp=arguments.pp,
        sp=arguments.sp,
        sp_mode=arguments.sp_mode,
        microbatch_size=arguments.microbatch_size,
        zero=arguments.zero,
        zero_cpu_offload=arguments.zero_cpu_offload,
    )


def open_model(arguments: TrainingArguments, data: Data) -> Plan:
    """Builds the backend and loads the model as it wants it: dtype, attention, kernels, freezing, checkpointing."""
    backend = build_backend(plugin_config(arguments))
    device = current_device()
    compute_dtype = PRECISIONS[arguments.mixed_precision]
    config = load_config(data.model_path)
    ranks = layout_of(arguments).head_parallel_size
    heads = (config.num_attention_heads // ranks, config.num_key_value_heads // ranks, config.head_dim)
    attention, attention_note = choose_attention(
        arguments.use_flash_attn, arguments.fused_kernels, device, compute_dtype, heads, config.attention_dropout
    )
    with consensus.raise_on_all_ranks():
        model = load_model(data.model_path, backend.parameter_dtype, attention, _place_to_load(arguments, device))
    return_token_losses(model)
    notes = [attention_note, _use_kernels(arguments, model, device)]
    if arguments.fp8:
        notes.append(_use_fp8(model, device))
    notes += notes_on_dimensions(
        arguments.pp,
        arguments.sp,
        arguments.sp_mode,
        arguments.microbatch_size,
        step_geometry(arguments, 1).accumulation_steps,
    )
    _check_vocabulary(model, data)
    if arguments.use_grad_checkpoint:
        notes.append(_recompute(arguments, backend, model, device))
    if arguments.freeze_non_embeds_params:
        freeze_all_but_embeddings(model)
        notes.append("training input and output embeddings only")
    flops = flops_per_token(config, full_row_tokens(data.parts, arguments.max_length, data.origin.packed_to_tokens))
    if arguments.lora_rank:
        model = _with_adapters(arguments, data, backend, model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        notes.append(f"LoRA of rank {arguments.lora_rank}: {trained:,} parameters are trained")
    return Plan(backend, model, flops, _fuses_loss(arguments, device), notes)


def _place_to_load(arguments: TrainingArguments, device: torch.device) -> torch.device:
    """Where a process loads the whole model: one that will keep a part of it leaves the rest on the disk.

    On the CPU the weight files are mapped, and all processes of a host share what is read of them
    (a model of 395 MB takes 1 MB of a process's own memory), as long as the files have the dtype
    that the run wants.
    """
    return torch.device("cpu") if arguments.tp * arguments.pp > 1 else device


def _with_adapters(arguments: TrainingArguments, data: Data, backend: Backend, model: LlamaForCausalLM) -> PeftModel:
    """The model with LoRA adapters on it, new ones or those of a checkpoint, in the model's dtype."""
    alpha = arguments.lora_alpha or 2.0 * arguments.lora_rank
    config = lora_config(arguments.lora_rank, alpha, arguments.lora_dropout, arguments.lora_target_modules)
    adapter = str(data.adapter_path) if data.adapter_path else None
    torch.manual_seed(arguments.seed)  # adapters begin random, and must be the same on every rank
    adapted = backend.add_lora(model, config, adapter)
    # peft keeps the name that a loaded adapter has; the base may lie elsewhere by now.
    adapted.active_peft_config.base_model_name_or_path = str(data.model_path)
    return adapted


def _recompute(arguments: TrainingArguments, backend: Backend, model: LlamaForCausalLM, device: torch.device) -> str:
    """Lets layers recompute their activations."""
    layers, frugal = choose_recomputation(arguments, model.config, device, backend.data_parallel_size)
    # The non-reentrant way stops a recomputation by an exception as soon as it has what it needs;
    # Gemini's hooks around each operation would then be left open.
    recompute_layers(model, layers, reentrant=arguments.plugin in GPU_ONLY_PLUGINS, selective=frugal)
    words = recomputed_in_words(layers, model.config.num_hidden_layers, frugal)
    if layers and device.type == "cuda" and may_be_frugal(arguments) and not segments_grow():
        words += (
            " (fewer, perhaps, without a setting in PYTORCH_CUDA_ALLOC_CONF or with expandable_segments:True in it)"
        )
    return f"gradient checkpointing: {words}"


def _fuses_loss(arguments: TrainingArguments, device: torch.device) -> bool:
    return arguments.fused_kernels and arguments.tp == 1 and fused_kernels_unavailable_reason(device) is None


def _use_kernels(arguments: TrainingArguments, model: LlamaForCausalLM, device: torch.device) -> str:
    if not arguments.fused_kernels:
        return "fused kernels: off (--fused_kernels False)"
    reason = fused_kernels_unavailable_reason(device)
    if reason is not None:
        return f"fused kernels: off, {reason}"
    fuse_loss = _fuses_loss(arguments, device)
    use_fused_kernels(model, fuse_loss=fuse_loss)
    return "fused kernels: norm, rotary, SwiGLU" + (", linear cross-entropy" if fuse_loss else "")


def _use_fp8(model: LlamaForCausalLM, device: torch.device) -> str:
    reason = fp8_unavailable_reason(device, model.config)
    if reason is not None:
        raise UserError(f"--fp8 cannot be used: {reason}")
    use_fp8(model)
    return "fp8: the decoder layers' products are computed in 8 bits"


def _check_vocabulary(model: LlamaForCausalLM, data: Data) -> None:
    rows, tokens = model.get_input_embeddings().num_embeddings, len(data.tokenizer)
    if rows < tokens:
        raise UserError(
            f"{data.model_path}: the model has {rows} embedding rows, its tokenizer {tokens} tokens: "
            "run colossal_llama/model/init_model.py first"
        )
