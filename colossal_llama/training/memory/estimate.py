"""Memory estimate of a training step on one device, term by term. Imports no torch.

Memory can peak in three phases of a step. Each is a sum of the same parts:

    forward          weights + optimizer states + the saved activations of every layer
                     + the tensors of the loss
    backward         the layer with the highest sum: saved activations of the layers below it, its
                     own activations (saved or recomputed) and their gradients, and the gradients
                     of all weights above it
    optimizer step   weights + optimizer states + all gradients + temporary buffers of the plugin

The terms were derived from the code (ColossalAI 0.5.0, transformers 4.51.3, Liger 0.6.5), and
tests/training/test_estimate.py compares them with bytes counted in real steps. The CUDA context and
the allocator's fragmentation are not included (see `ALLOWANCE_BYTES`). See also arXiv 2205.05198
(memory of activations) and 1910.02054 (ZeRO).
"""

from dataclasses import dataclass
from typing import Any

from colossal_llama.model.architectures import architecture_of, head_width
from colossal_llama.model.param_count import attention_widths, layer_parameters, parameters
from colossal_llama.training.memory.config import MemoryConfig

GIB = 2**30
ALLOWANCE_BYTES = int(1.5 * GIB)
"""Memory left free on a device for CUDA context, NCCL buffers and fragmentation. An assumption, not
a measurement."""

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_MOMENT_BYTES = {"fp32": 8, "bf16": 4, "8bit": 2 + 2 / 256}  # both; of a parameter
_BUCKET_ELEMENTS = 12 * 2**20  # of ZeRO's communication bucket
_LOSS_CHUNK_ROWS = 4096  # of colossal_llama.model.kernels.linear_cross_entropy (a test compares them)
_SLICE_BUFFERS_BYTES = 16 * 2**20  # of colossal_llama.engine.zero_offload_update (a test compares them)
_INPUT_BYTES_PER_TOKEN = 4 * 8  # int64 ids, labels, positions and document lengths


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device by phase and part, and bytes in host memory of each process."""

    phases: dict[str, dict[str, int]]
    """Bytes of each part at the peak of each phase of a step."""
    host_bytes: int
    parameters: int
    """Number of parameters of the whole model."""

    @property
    def peak_phase(self) -> str:
        """Phase of a step with the highest peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak_bytes(self) -> int:
        """Highest peak in bytes, comparable with `torch.cuda.max_memory_allocated`."""
        return sum(self.phases[self.peak_phase].values())

    def fits(self, device_bytes: int) -> bool:
        """True when the peak leaves `ALLOWANCE_BYTES` free on a device of that size."""
        return self.peak_bytes + ALLOWANCE_BYTES <= device_bytes


def activation_bytes_per_layer(
    config: Any,
    tokens: int,
    fused_kernels: bool,
    flash_attention: bool = True,
    value_bytes: int = 2,
    tensor_parallel_size: int = 1,
    autocast: bool = False,
    fp8: bool = False,
) -> tuple[int, int, int]:
    """Bytes that one decoder layer saves in the forward pass for the backward pass.

    Args:
        config: of an architecture of `model.architectures`.
        tokens: of a micro-batch on one device, padding included.
        fused_kernels: True for fused norm and SwiGLU, which save their inputs and no fp32 copies.
        flash_attention: True for one variable-length kernel; attention document by document
            concatenates the outputs into one more copy.
        value_bytes: of an activation: 2 in half precision.
        tensor_parallel_size: devices that share each layer.
        autocast: True for fp32 weights: the residual stream is fp32, and each projection makes a
            half-precision copy of its input.
        fp8: True when the projections save their inputs in 8 bits, one copy for all that share it.

    Returns:
        Bytes saved in each of three modes. Without recomputation: all tensors that the backward
        pass needs. With selective recomputation (model.activation_checkpointing): the same without
        the outputs of norms and SwiGLU. With recomputation of the whole layer: its input.
    """
    width, inner = config.hidden_size, config.intermediate_size // tensor_parallel_size
    queries, keys = (share // tensor_parallel_size for share in attention_widths(config))
    residual_bytes = 4 if autocast else value_bytes
    norms = 2 * width * (residual_bytes if fused_kernels else 4 + residual_bytes)  # input; fp32 input, scaled output
    norms += 2 * 4  # 1 / rms
    # Copies of the norms' outputs: for queries, keys, values, and for gate, up.
    copies = (3 + 2) if autocast and not fp8 else (1 + 1)
    norms += copies * (1 if fp8 else value_bytes) * width
    swiglu = (3 if fused_kernels else 4) * value_bytes * inner  # gate, up, their product; and silu(gate)
    if fp8:
        swiglu -= (value_bytes - 1) * inner
    attention = value_bytes * (queries + 2 * keys + queries)  # queries, keys, values, output
    attention += 4 * config.num_attention_heads // tensor_parallel_size  # log-sum-exp
    if architecture_of(config).has_qk_norm:  # each head's 1 / rms, and the input of the norm, without kernels in fp32
        attention += 4 * (queries + keys) // head_width(config)
        attention += (value_bytes if fused_kernels else 4 + value_bytes) * (queries + keys)
    if fp8:
        attention += queries  # the output once more in 8 bits, for the output projection
    if not flash_attention:
        attention += value_bytes * queries
    everything = tokens * (norms + attention + swiglu)
    return everything, everything - tokens * value_bytes * (2 * width + inner), tokens * residual_bytes * width


def estimate(config: Any, settings: MemoryConfig) -> MemoryEstimate:
    """Estimates the memory of a training step.

    Args:
        config: the model's (transformers', or an object with the same names).
        settings: plugin, ranks, batch, recomputation.
    """
    model = _ModelShare(config, settings)
    resident = _resident(model, settings)
    phases = {
        "forward": {**resident, "gradients": model.accumulated_gradients, **_forward(model, settings)},
        "backward": {**resident, **_backward(model, settings)},
        "optimizer step": {**resident, **_optimizer_step(model, settings)},
    }
    return MemoryEstimate(phases, _host_bytes(model, settings), parameters(config))


class _ModelShare:
    """Sizes of the share of the model on one device."""

    def __init__(self, config: Any, settings: MemoryConfig):
        self.config, self.settings = config, settings
        split = settings.tensor_parallel_size
        # Plugin 3d pads a vocabulary that is sharded.
        self.columns = config.vocab_size if split == 1 else 64 * -(-config.vocab_size // (64 * split))
        padding = (
            (self.columns * split - config.vocab_size) * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        )
        self.layers = -(-config.num_hidden_layers // settings.pipeline_stages)
        whole = parameters(config) + padding
        if settings.pipeline_stages > 1:  # a share of the layers, and one of the two embeddings
            whole = self.layers * layer_parameters(config) + config.hidden_size * (self.columns * split + 1)
        self.parameters = whole // split
        self.trainable = (whole if settings.trainable_parameters is None else settings.trainable_parameters) // split
        self.trained_share = self.trainable / self.parameters
        self.layer = layer_parameters(config) // split
        self.head = self.columns * config.hidden_size
        self.is_ddp = settings.plugin == "ddp"
        self.is_gemini = settings.plugin in ("gemini", "gemini_auto")
        self.is_zero = settings.plugin in ("zero2", "zero2_cpu") or (
            settings.plugin == "3d" and settings.zero_stage > 0
        )
        self.offloads = settings.offloads
        self.value_bytes = DTYPE_BYTES[settings.mixed_precision]
        self.autocasts = self.is_ddp and self.value_bytes < 4
        self.weight_bytes = 4 if self.is_ddp else self.value_bytes
        self.shards = settings.data_parallel_size if self.is_zero or self.is_gemini else 1
        partitions_gradients = settings.plugin in ("zero2", "zero2_cpu") or (
            settings.plugin == "3d" and settings.zero_stage == 2
        )
        self.gradient_shards = self.shards if partitions_gradients else 1
        self.activations, selective, self.layer_input = activation_bytes_per_layer(
            config,
            settings.tokens,
            settings.fused_kernels,
            settings.flash_attention,
            self.value_bytes,
            settings.tensor_parallel_size,
            autocast=self.autocasts,
            fp8=settings.fp8,
        )
        self.saved_activations = selective if settings.selective else self.activations

    def gradients(self, of_parameters: float) -> int:
        """Bytes of the gradients that are stored for so many parameters."""
        if self.is_gemini:  # they overwrite the weights, unless micro-batches are accumulated
            return int(self.weight_bytes * of_parameters / self.shards) if self.settings.accumulation_steps > 1 else 0
        return int(self.weight_bytes * of_parameters / self.gradient_shards)

    @property
    def accumulated_gradients(self) -> int:
        """Bytes of the gradients accumulated by earlier micro-batches."""
        return self.gradients(self.trainable) if self.settings.accumulation_steps > 1 else 0

    def saved_bytes(self, layers: int) -> int:
        """Bytes of the activations that the first `layers` layers save."""
        recomputed = min(layers, self.settings.recomputed_layers)
        return recomputed * self.layer_input + (layers - recomputed) * self.saved_activations


def _resident(model: _ModelShare, settings: MemoryConfig) -> dict[str, int]:
    """Bytes that stay allocated in all phases."""
    has_master = not model.is_ddp and (model.is_zero or model.value_bytes < 4) and settings.optimizer_states == "fp32"
    master = 4 * model.trainable if has_master else 0
    adam_moments = int(_MOMENT_BYTES[settings.optimizer_states] * model.trainable)
    return {
        "weights": _weights(model),
        "master weights and moments": 0 if model.offloads else (master + adam_moments) // model.shards,
        "communication buffers": _buffers(model, settings),
    }


def _weights(model: _ModelShare) -> int:
    """Bytes of the weights. Gemini divides those that are trained over the ranks."""
    if not model.is_gemini:
        return model.weight_bytes * model.parameters
    return model.weight_bytes * (model.parameters - model.trainable + model.trainable // model.shards)


def _buffers(model: _ModelShare, settings: MemoryConfig) -> int:
    # Without ZeRO and pipeline, plugin 3d wraps the model in DistributedDataParallel if there are
    # gradients to reduce.
    reduces = settings.data_parallel_size * settings.sequence_parallel_size > 1
    wraps = settings.plugin == "3d" and settings.zero_stage == 0 and settings.pipeline_stages == 1 and reduces
    is_wrapped = model.is_ddp or wraps
    ddp_buckets = model.weight_bytes * model.trainable if is_wrapped else 0
    # Gemini stores shards and gathers one chunk at a time; the largest holds an embedding.
    chunk = model.weight_bytes * model.head if model.is_gemini and model.shards > 1 else 0
    return ddp_buckets + chunk


def _forward(model: _ModelShare, settings: MemoryConfig) -> dict[str, int]:
    """Peak of the forward pass: at the loss, with the saved activations of all layers.

    In a pipeline also at the end of the first stage, which has no loss.
    """
    outside = _outside_layers(model, settings) + _autocast_copies(model, 0)
    saved = model.saved_bytes(model.layers)
    peaks = [{"activations": saved + outside, "logits and loss": _loss_forward(model, settings)}]
    if settings.pipeline_stages > 1:
        peaks.append({"activations": settings.micro_batches_in_flight * saved + outside, "logits and loss": 0})
    return max(peaks, key=lambda parts: sum(parts.values()))


def _outside_layers(model: _ModelShare, settings: MemoryConfig) -> int:
    """Activation bytes outside the layers: inputs, rotary tables, and tensors of the last norm."""
    config = model.config
    head = head_width(config)
    residual_bytes = 4 if model.autocasts else model.value_bytes
    norm = residual_bytes + (0 if settings.fused_kernels else 4) + model.value_bytes
    return settings.tokens * (_INPUT_BYTES_PER_TOKEN + 2 * head * residual_bytes + norm * config.hidden_size)


def _autocast_copies(model: _ModelShare, recomputed_layers: int) -> int:
    """Bytes of the half-precision copies of fp32 weights with which `ddp` computes.

    Autocast caches all of them until the forward pass ends; the backward pass holds those of the
    layers that are not recomputed.
    """
    if not model.autocasts:
        return 0
    return model.value_bytes * (model.head + (model.layers - recomputed_layers) * model.layer)


def _logit_bytes(model: _ModelShare, settings: MemoryConfig, value_bytes: int) -> int:
    return value_bytes * settings.tokens * model.columns


def _loss_forward(model: _ModelShare, settings: MemoryConfig) -> int:
    if settings.tensor_parallel_size > 1:  # ColossalAI's loss: three fp32 copies of a rank's share of the logits
        return 3 * _logit_bytes(model, settings, 4)
    if not settings.fuses_loss:  # logits, their fp32 copy, log-softmax
        copy = _logit_bytes(model, settings, 4) if model.value_bytes < 4 else 0
        return _logit_bytes(model, settings, model.value_bytes) + copy + _logit_bytes(model, settings, 4)
    chunk = model.value_bytes * min(_LOSS_CHUNK_ROWS, settings.tokens) * (model.columns + 2 * model.config.hidden_size)
    return _loss_saved(model, settings) + chunk


def _loss_saved(model: _ModelShare, settings: MemoryConfig) -> int:
    """Bytes saved by the loss for its backward pass.

    The fused loss saves the gradients of the hidden states and, in fp32, of the output layer; the
    other saves the log-softmax.
    """
    if settings.fuses_loss:
        return model.value_bytes * settings.tokens * model.config.hidden_size + 4 * model.head
    return _logit_bytes(model, settings, 4)


def _backward(model: _ModelShare, settings: MemoryConfig) -> dict[str, int]:
    """Peak of the backward pass: at the loss or in one of the layers, from last to first."""
    candidates = [_backward_of_loss(model, settings)]
    candidates += [_backward_of_layer(model, settings, index) for index in reversed(range(model.layers))]
    return max(candidates, key=lambda parts: sum(parts.values()))


def _backward_of_loss(model: _ModelShare, settings: MemoryConfig) -> dict[str, int]:
    gradients = model.accumulated_gradients
    if settings.fuses_loss:  # both gradients once more, scaled, in the dtype of the weights
        loss = _loss_saved(model, settings) + model.value_bytes * settings.tokens * model.config.hidden_size
        loss += model.weight_bytes * model.head
    elif settings.tensor_parallel_size > 1:  # in place; then the backward pass of the last norm, in fp32
        loss = max(_loss_saved(model, settings), 4 * 4 * settings.tokens * model.config.hidden_size)
    else:  # log-softmax, its gradient, the gradient of the logits
        loss = 3 * _logit_bytes(model, settings, 4)
    saved = model.saved_bytes(model.layers) + _outside_layers(model, settings)
    saved += _autocast_copies(model, settings.recomputed_layers)
    return {"gradients": gradients, "activations": saved, "logits and loss": loss}


def _backward_of_layer(model: _ModelShare, settings: MemoryConfig, index: int) -> dict[str, int]:
    """Peak of the backward pass of layer `index`.

    The layers below hold their saved activations, this one all of its own, and those above have
    left the gradients of their weights.
    """
    above = model.head + (model.layers - 1 - index) * model.layer
    in_flight = model.weight_bytes * min(max(model.layer, _BUCKET_ELEMENTS), above) if model.gradient_shards > 1 else 0
    gradients = max(model.accumulated_gradients, model.gradients(above * model.trained_share))
    recomputed_input = model.layer_input if index < settings.recomputed_layers else 0
    copies = _autocast_copies(model, max(0, settings.recomputed_layers - 1))
    below = (settings.micro_batches_in_flight - 1) * model.saved_bytes(model.layers) + model.saved_bytes(index)
    width, inner = model.config.hidden_size, model.config.intermediate_size // settings.tensor_parallel_size
    activation_gradients = (
        model.value_bytes * settings.tokens * (2 * width + (inner if settings.fused_kernels else 2 * inner))
    )
    if settings.fp8:  # an 8-bit gradient in row and in column layout
        activation_gradients += 2 * settings.tokens * inner
    return {
        "gradients": gradients + model.weight_bytes * model.layer + in_flight,
        "activations": below + recomputed_input + model.activations + activation_gradients + copies,
        "logits and loss": 0,
    }


def _optimizer_step(model: _ModelShare, settings: MemoryConfig) -> dict[str, int]:
    """Gradients, and temporary buffers that the plugin allocates to apply them."""
    largest = model.head / model.shards
    gradients = model.gradients(model.trainable)
    in_fp32 = 4 * model.trainable / model.shards if model.value_bytes < 4 else 0
    norm = 8 * largest  # computed in fp64, tensor by tensor
    if model.is_gemini or model.is_ddp:  # Gemini's gradients are read in half precision (model.kernels.adamw)
        needed = 0
    elif not model.is_zero:  # each gradient is freed after its fp32 copy is made
        gradients, needed = 0, (in_fp32 or gradients) + norm
    elif _has_fused_step(model, settings):
        needed = 0
    elif model.offloads:
        needed = max(norm, _gather_buffers(model))
    else:  # all gradients in fp32, and the norm; then the new weights are gathered, bucket by bucket
        needed = max(in_fp32 + norm, _gather_buffers(model))
    return {"gradients": gradients, "the step itself": int(needed)}


def _has_fused_step(model: _ModelShare, settings: MemoryConfig) -> bool:
    is_whole = settings.tensor_parallel_size == 1 and settings.pipeline_stages == 1
    is_fused = settings.fused_update or settings.optimizer_states != "fp32"
    return is_fused and is_whole and model.value_bytes < 4


def _gather_buffers(model: _ModelShare) -> float:
    """Bytes of gathering a full bucket of new weights.

    The bucket exists as single tensors, concatenated, and as received from all ranks. One fp32
    gradient is still allocated.
    """
    bucket = model.value_bytes * min(_BUCKET_ELEMENTS, model.trainable)
    shard = bucket / model.shards
    copies, last_gradient = (2, 4 * model.head / model.shards) if model.value_bytes < 4 else (1, 0)
    return copies * shard + bucket + last_gradient


def _host_bytes(model: _ModelShare, settings: MemoryConfig) -> int:
    """Bytes in host memory of a plugin that offloads master weights and moments.

    ColossalAI's own step also copies fp32 gradients to the host.
    """
    if not model.offloads:
        return 0
    if _has_fused_step(model, settings):
        return 12 * model.trainable // model.shards + _SLICE_BUFFERS_BYTES
    return 16 * model.trainable // model.shards
