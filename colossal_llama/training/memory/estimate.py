"""How much memory a training step takes on each device, term by term: pure arithmetic over the model's configuration.

A step has three moments at which memory can be at its fullest; each is a sum of the same parts:

    forward          weights + optimizer states + every layer's kept activations + the loss's own tensors
    backward         the worst layer: what the layers below it still keep, its own activations (recomputed or kept), their
                     gradients, and the gradients of all weights above it
    optimizer step   weights + optimizer states + all gradients + what the plugin allocates to apply them

The terms were read off the code (ColossalAI 0.5.0, transformers 4.51.3, Liger 0.6.5) and hold what
tests/training/test_estimate.py counts on real steps. Not in it: the CUDA context and the
allocator's gaps (see `ALLOWANCE_BYTES`). Imports no torch.
"""

from dataclasses import dataclass
from typing import Any

from colossal_llama.model.param_count import attention_widths, layer_parameters, parameters
from colossal_llama.training.memory.config import MemoryConfig

GIB = 2**30
ALLOWANCE_BYTES = int(1.5 * GIB)
"""Left free on a device when a run is said to fit: CUDA context, NCCL's buffers, gaps between
allocations. A guess, not measured."""

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_BUCKET_ELEMENTS = 12 * 2**20  # ZeRO's communication bucket
_LOSS_CHUNK_ROWS = 4096  # of colossal_llama.model.kernels.linear_cross_entropy (a test compares them)
_SLICE_BUFFERS_BYTES = 16 * 2**20  # of colossal_llama.engine.zero_offload_update (a test compares them)
_INPUT_BYTES_PER_TOKEN = 4 * 8  # ids, labels, positions and document lengths, int64


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device by moment and part, and bytes in host memory for each process."""

    moments: dict[str, dict[str, int]]
    host_bytes: int
    parameters: int
    """Of the whole model."""

    @property
    def peak_moment(self) -> str:
        """The fullest moment."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak_bytes(self) -> int:
        """Bytes at the fullest moment: what `torch.cuda.max_memory_allocated` is compared with."""
        return sum(self.moments[self.peak_moment].values())

    def fits(self, device_bytes: int) -> bool:
        """Whether the peak leaves the allowance free on a device of that size."""
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
    """Bytes that one decoder layer keeps from the forward to the backward pass.

    Args:
        config: of a LLaMA.
        tokens: of a micro-batch on one device, padding included.
        fused_kernels: fused norm and SwiGLU, which keep their inputs and no fp32 copies.
        flash_attention: one variable-length kernel; document by document the results are put
            together in one more copy.
        value_bytes: of an activation: 2 in half precision.
        tensor_parallel_size: devices that share each layer.
        autocast: fp32 weights, so that what flows between the layers is fp32 and each projection
            makes a half-precision copy of its input.
        fp8: the projections keep their inputs in 8 bits, one copy for all that read the same.

    Returns:
        `(all, kept if selective, kept if recomputed)`: all that the backward pass needs, that without
            the results of norms and SwiGLU
        (model.activation_checkpointing), the layer's input alone.
    """
    width, inner = config.hidden_size, config.intermediate_size // tensor_parallel_size
    queries, keys = (share // tensor_parallel_size for share in attention_widths(config))
    flow_bytes = 4 if autocast else value_bytes
    norms = 2 * width * (flow_bytes if fused_kernels else 4 + flow_bytes)  # input; fp32 input and scaled result
    norms += 2 * 4  # 1 / rms
    # Copies of the norms' results: for queries, keys, values, and for gate, up.
    copies = (3 + 2) if autocast and not fp8 else (1 + 1)
    norms += copies * (1 if fp8 else value_bytes) * width
    swiglu = (3 if fused_kernels else 4) * value_bytes * inner  # gate, up, their product; and silu(gate)
    if fp8:
        swiglu -= (value_bytes - 1) * inner
    attention = value_bytes * (queries + 2 * keys + queries)  # queries, keys, values, result
    attention += 4 * config.num_attention_heads // tensor_parallel_size  # log-sum-exp
    if fp8:
        attention += queries  # the result once more, for the layer that reads it
    if not flash_attention:
        attention += value_bytes * queries
    everything = tokens * (norms + attention + swiglu)
    return everything, everything - tokens * value_bytes * (2 * width + inner), tokens * flow_bytes * width


def estimate(config: Any, setup: MemoryConfig) -> MemoryEstimate:
    """Memory of a training step.

    Args:
        config: a LLaMA's configuration (transformers' `LlamaConfig`, or anything with the same
            names).
        setup: plugin, ranks, batch.
    """
    model = _Model(config, setup)
    static = _static(model, setup)
    moments = {
        "forward": {**static, "gradients": model.accumulated_gradients, **_forward(model, setup)},
        "backward": {**static, **_backward(model, setup)},
        "optimizer step": {**static, **_optimizer_step(model, setup)},
    }
    return MemoryEstimate(moments, _host(model, setup), parameters(config))


class _Model:
    """Sizes of the share of the model that one device computes with."""

    def __init__(self, config: Any, setup: MemoryConfig):
        self.config, self.setup = config, setup
        split = setup.tensor_parallel_size
        # Plugin 3d pads a vocabulary that is split.
        self.columns = config.vocab_size if split == 1 else 64 * -(-config.vocab_size // (64 * split))
        padding = (
            (self.columns * split - config.vocab_size) * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        )
        self.layers = -(-config.num_hidden_layers // setup.pipeline_stages)
        whole = parameters(config) + padding
        if setup.pipeline_stages > 1:  # a share of the layers and one of the embeddings
            whole = self.layers * layer_parameters(config) + config.hidden_size * (self.columns * split + 1)
        self.parameters = whole // split
        self.trainable = (whole if setup.trainable_parameters is None else setup.trainable_parameters) // split
        self.trained_share = self.trainable / self.parameters
        self.layer = layer_parameters(config) // split
        self.head = self.columns * config.hidden_size
        self.is_ddp = setup.plugin == "ddp"
        self.is_gemini = setup.plugin in ("gemini", "gemini_auto")
        self.is_zero = setup.plugin in ("zero2", "zero2_cpu") or (setup.plugin == "3d" and setup.zero_stage > 0)
        self.offloads = setup.offloads
        self.value_bytes = DTYPE_BYTES[setup.mixed_precision]
        self.autocasts = self.is_ddp and self.value_bytes < 4
        self.weight_bytes = 4 if self.is_ddp else self.value_bytes
        self.shards = setup.data_parallel_size if self.is_zero or self.is_gemini else 1
        partitions_gradients = setup.plugin in ("zero2", "zero2_cpu") or (
            setup.plugin == "3d" and setup.zero_stage == 2
        )
        self.gradient_shards = self.shards if partitions_gradients else 1
        self.activations, selective, self.checkpoint = activation_bytes_per_layer(
            config,
            setup.tokens,
            setup.fused_kernels,
            setup.flash_attention,
            self.value_bytes,
            setup.tensor_parallel_size,
            autocast=self.autocasts,
            fp8=setup.fp8,
        )
        self.kept_activations = selective if setup.selective else self.activations

    def gradients(self, of_parameters: float) -> int:
        """Bytes of the gradients that are kept for so many parameters."""
        if self.is_gemini:  # they take the place of the weights, unless micro-batches are summed
            return int(self.weight_bytes * of_parameters / self.shards) if self.setup.accumulation_steps > 1 else 0
        return int(self.weight_bytes * of_parameters / self.gradient_shards)

    @property
    def accumulated_gradients(self) -> int:
        """Gradients of former micro-batches, there from the start."""
        return self.gradients(self.trainable) if self.setup.accumulation_steps > 1 else 0

    def kept(self, layers: int) -> int:
        """Activations that the first `layers` layers keep."""
        recomputed = min(layers, self.setup.recomputed_layers)
        return recomputed * self.checkpoint + (layers - recomputed) * self.kept_activations


def _static(model: _Model, setup: MemoryConfig) -> dict[str, int]:
    """What is there all the time."""
    master = 4 * model.trainable if not model.is_ddp and (model.is_zero or model.value_bytes < 4) else 0
    moments = 8 * model.trainable
    return {
        "weights": model.weight_bytes * model.parameters // (model.shards if model.is_gemini else 1),
        "master weights and moments": 0 if model.offloads else (master + moments) // model.shards,
        "communication buffers": _buffers(model, setup),
    }


def _buffers(model: _Model, setup: MemoryConfig) -> int:
    # Plugin 3d wraps the model in DistributedDataParallel without ZeRO and pipeline, where there
    # are gradients to exchange.
    partners = setup.data_parallel_size * setup.sequence_parallel_size > 1
    wraps = setup.plugin == "3d" and setup.zero_stage == 0 and setup.pipeline_stages == 1 and partners
    wrapped = model.is_ddp or wraps
    ddp_buckets = model.weight_bytes * model.trainable if wrapped else 0
    # Gemini keeps shards and puts one chunk at a time together; the largest holds an embedding.
    chunk = model.weight_bytes * model.head if model.is_gemini and model.shards > 1 else 0
    return ddp_buckets + chunk


def _forward(model: _Model, setup: MemoryConfig) -> dict[str, int]:
    """At the loss, with all layers' activations kept; or at the end of a pipeline's first stage, which has no loss."""
    around = _around_layers(model, setup) + _autocast_copies(model, 0)
    kept = model.kept(model.layers)
    ends = [{"activations": kept + around, "logits and loss": _loss_forward(model, setup)}]
    if setup.pipeline_stages > 1:
        ends.append({"activations": setup.micro_batches_in_flight * kept + around, "logits and loss": 0})
    return max(ends, key=lambda parts: sum(parts.values()))


def _around_layers(model: _Model, setup: MemoryConfig) -> int:
    """Inputs, rotary tables, and what the last norm keeps."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    flow_bytes = 4 if model.autocasts else model.value_bytes
    norm = flow_bytes + (0 if setup.fused_kernels else 4) + model.value_bytes
    return setup.tokens * (_INPUT_BYTES_PER_TOKEN + 2 * head * flow_bytes + norm * config.hidden_size)


def _autocast_copies(model: _Model, recomputed_layers: int) -> int:
    """`ddp` computes with half-precision copies of its fp32 weights.

    Autocast keeps them all until the forward pass ends, and the backward pass those of the layers
    that are not recomputed.
    """
    if not model.autocasts:
        return 0
    return model.value_bytes * (model.head + (model.layers - recomputed_layers) * model.layer)


def _logit_bytes(model: _Model, setup: MemoryConfig, value_bytes: int) -> int:
    return value_bytes * setup.tokens * model.columns


def _loss_forward(model: _Model, setup: MemoryConfig) -> int:
    if setup.tensor_parallel_size > 1:  # the engine's loss: three fp32 copies of a rank's share of the logits
        return 3 * _logit_bytes(model, setup, 4)
    if not setup.fuses_loss:  # logits, their fp32 copy, log-softmax
        copy = _logit_bytes(model, setup, 4) if model.value_bytes < 4 else 0
        return _logit_bytes(model, setup, model.value_bytes) + copy + _logit_bytes(model, setup, 4)
    chunk = model.value_bytes * min(_LOSS_CHUNK_ROWS, setup.tokens) * (model.columns + 2 * model.config.hidden_size)
    return _loss_kept(model, setup) + chunk


def _loss_kept(model: _Model, setup: MemoryConfig) -> int:
    """From the loss to its backward: the fused loss's gradients of hidden states and, in fp32, output layer; or the log-softmax."""
    if setup.fuses_loss:
        return model.value_bytes * setup.tokens * model.config.hidden_size + 4 * model.head
    return _logit_bytes(model, setup, 4)


def _backward(model: _Model, setup: MemoryConfig) -> dict[str, int]:
    """The worst moment of the backward pass: at the loss, or in some layer, from the last to the first."""
    candidates = [_backward_of_loss(model, setup)]
    candidates += [_backward_of_layer(model, setup, index) for index in reversed(range(model.layers))]
    return max(candidates, key=lambda parts: sum(parts.values()))


def _backward_of_loss(model: _Model, setup: MemoryConfig) -> dict[str, int]:
    gradients = model.accumulated_gradients
    if setup.fuses_loss:  # both gradients once more, scaled and in the dtype of the weights
        loss = _loss_kept(model, setup) + model.value_bytes * setup.tokens * model.config.hidden_size
        loss += model.weight_bytes * model.head
    elif setup.tensor_parallel_size > 1:  # in place; then the last norm's own backward, in fp32
        loss = max(_loss_kept(model, setup), 4 * 4 * setup.tokens * model.config.hidden_size)
    else:  # log-softmax, the gradient that comes in, the one that goes out
        loss = 3 * _logit_bytes(model, setup, 4)
    kept = model.kept(model.layers) + _around_layers(model, setup) + _autocast_copies(model, setup.recomputed_layers)
    return {"gradients": gradients, "activations": kept, "logits and loss": loss}


def _backward_of_layer(model: _Model, setup: MemoryConfig, index: int) -> dict[str, int]:
    """In layer `index`: the layers below keep theirs, this one has all of its own, and those above have left gradients."""
    above = model.head + (model.layers - 1 - index) * model.layer
    in_flight = model.weight_bytes * min(max(model.layer, _BUCKET_ELEMENTS), above) if model.gradient_shards > 1 else 0
    gradients = max(model.accumulated_gradients, model.gradients(above * model.trained_share))
    recomputed_input = model.checkpoint if index < setup.recomputed_layers else 0
    copies = _autocast_copies(model, max(0, setup.recomputed_layers - 1))
    below = (setup.micro_batches_in_flight - 1) * model.kept(model.layers) + model.kept(index)
    width, inner = model.config.hidden_size, model.config.intermediate_size // setup.tensor_parallel_size
    flowing = model.value_bytes * setup.tokens * (2 * width + (inner if setup.fused_kernels else 2 * inner))
    if setup.fp8:  # a gradient in both layouts
        flowing += 2 * setup.tokens * inner
    return {
        "gradients": gradients + model.weight_bytes * model.layer + in_flight,
        "activations": below + recomputed_input + model.activations + flowing + copies,
        "logits and loss": 0,
    }


def _optimizer_step(model: _Model, setup: MemoryConfig) -> dict[str, int]:
    """What the plugin allocates to apply the gradients."""
    largest = model.head / model.shards
    gradients = model.gradients(model.trainable)
    in_fp32 = 4 * model.trainable / model.shards if model.value_bytes < 4 else 0
    norm = 8 * largest  # taken in fp64, tensor by tensor
    if model.is_gemini or model.is_ddp:  # Gemini's gradients are read in half precision (model.kernels.adamw)
        needed = 0
    elif not model.is_zero:  # each gradient makes room for its fp32 copy
        gradients, needed = 0, (in_fp32 or gradients) + norm
    elif _has_fused_step(model, setup):
        needed = 0
    elif model.offloads:
        needed = max(norm, _gathering(model))
    else:  # all gradients in fp32 and the norm; then the new weights are gathered, bucket by bucket
        needed = max(in_fp32 + norm, _gathering(model))
    return {"gradients": gradients, "the step itself": int(needed)}


def _has_fused_step(model: _Model, setup: MemoryConfig) -> bool:
    is_whole = setup.tensor_parallel_size == 1 and setup.pipeline_stages == 1
    return setup.fused_update and is_whole and model.value_bytes < 4


def _gathering(model: _Model) -> float:
    """A full bucket of new weights: one by one, put together, and as received from all ranks. One fp32 gradient is still alive."""
    bucket = model.value_bytes * min(_BUCKET_ELEMENTS, model.trainable)
    mine = bucket / model.shards
    copies, last_gradient = (2, 4 * model.head / model.shards) if model.value_bytes < 4 else (1, 0)
    return copies * mine + bucket + last_gradient


def _host(model: _Model, setup: MemoryConfig) -> int:
    """Master weights and moments of a plugin that keeps them in host memory; fp32 gradients where the engine updates them."""
    if not model.offloads:
        return 0
    if _has_fused_step(model, setup):
        return 12 * model.trainable // model.shards + _SLICE_BUFFERS_BYTES
    return 16 * model.trainable // model.shards
