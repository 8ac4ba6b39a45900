"""Distillation of the source model into new embedding rows, after Token Distillation.

The method is that of arXiv 2505.20133, with changes. A new row begins as the mean of its pieces'
rows. Then the rows alone are trained on texts in which they occur, everything else is frozen. Each
text is encoded by both tokenizers, and two losses are minimised at once:

    hidden states   those of the expanded model come close to the source model's wherever a token of
                    both tokenizers ends at the same byte: trains rows as inputs
    cross-entropy   of the next token by the expanded tokenizer: trains rows as outputs, and lowers
                    those that would take probability from the old tokens

The paper trains input rows by hidden states alone. Where input and output are tied, one row learns
from both losses.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from colossal_llama.model.activation_checkpointing import recompute_layers
from colossal_llama.model.attention.backends import attention_without_plans
from colossal_llama.model.config_file import read_model_config
from colossal_llama.model.device import select_device
from colossal_llama.model.expansion.distillation.arguments import TOKENS_PER_NEW_ROW, DistillationArguments
from colossal_llama.model.expansion.distillation.memory import Shape, must_recompute
from colossal_llama.model.expansion.distillation.row_training import NewRows, Progress, train_rows
from colossal_llama.model.expansion.distillation.state import read_state, state_path, write_state
from colossal_llama.model.expansion.distillation.windows import Encoder, Windows, batch_of, plan_batches, read_windows
from colossal_llama.model.expansion.resize_embeddings import INPUT_MATRIX, OUTPUT_MATRIX, ExpansionPlan, mean_matrices
from colossal_llama.model.kernels.apply import fused_kernels_unavailable_reason, use_fused_kernels
from colossal_llama.model.loading import load_model
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_directory

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SEEN_LIMITS = (1, 10, 100, 1000)
_SHOWN_LOSSES = 10
_POSITIONS = 2048
"""Of a LLaMA whose config.json does not say."""


@dataclass(frozen=True)
class Distilled:
    """Result of a distillation.

    Attributes:
        rows: by the name of the matrix: [new rows, width].
        means: the same before.
        record: for the report.
        state: file that is removed when the rows are written.
    """

    rows: Mapping[str, np.ndarray]
    means: Mapping[str, np.ndarray]
    record: dict[str, Any]
    state: Path


def distil(plan: ExpansionPlan, arguments: DistillationArguments, fields: FieldOptions, target: Path) -> Distilled:
    """Trains the new rows, or goes on with a run that was killed.

    Args:
        plan: of the expansion.
        arguments: the options.
        fields: which columns of the texts' records are read.
        target: directory of the new model, at which the state is kept.

    Raises:
        UserError: the texts have none of the new tokens, the model does not fit in the memory, or
            another run was interrupted.
    """
    started = time.monotonic()
    if not plan.new_tokens:
        raise UserError(f"{plan.target_tokenizer} has no more tokens than the source's tokenizer: nothing to distil")
    device = select_device(arguments.distill_device, "--distill_device")
    dtype = arguments.distill_dtype or ("bf16" if device.type == "cuda" else "fp32")
    texts = _prepare_texts(plan, arguments, fields)
    settings = {
        "learning_rate": arguments.distill_lr,
        "hidden_weight": arguments.distill_hidden_weight,
        "batch_tokens": arguments.distill_batch_tokens,
        "seed": arguments.distill_seed,
        "device": device.type,
        "dtype": dtype,
        **texts.identity(),
        "source_model": fingerprint_directory(plan.source),
    }
    means = mean_matrices(plan)
    state = read_state(state_path(target), settings)
    rows = _open_rows(plan, means, texts.occurrences > 0, device, _DTYPES[dtype], arguments.distill_batch_tokens)
    if state is not None:
        log_rank_zero(f"going on with the interrupted distillation at step {state['step']:,} of {len(texts.batches):,}")
    with _deterministic(device), attention_without_plans():  # windows vary in length
        progress = train_rows(
            rows,
            texts.batches,
            partial(batch_of, texts.windows, *texts.encoders, plan.source_vocabulary),
            texts.batch_lengths,
            arguments.distill_lr,
            arguments.distill_hidden_weight,
            state,
            partial(write_state, state_path(target), settings),
        )
    record = {
        **settings,
        "steps": len(texts.batches),
        "windows": len(texts.windows.target),
        "passes": sum(texts.batch_lengths) / texts.windows.tokens,
        "rows_seen": seen_counts(texts.occurrences),
        "losses": _losses(progress),
        "seconds": round(time.monotonic() - started, 2),
    }
    return Distilled(_trained_matrices(rows, means), means, record, state_path(target))


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Makes an interrupted run end with the same bytes as another, on the same device.

    An operation of a GPU that has no deterministic implementation is warned of.

    Raises:
        UserError: the memory was estimated wrongly.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which matrix products need for it on a GPU
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of the device is too small: {str(error).splitlines()[0]} Give a smaller --distill_batch_tokens"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Texts:
    """Texts to train on, encoded and put into batches.

    Attributes:
        encoders: of the source's tokenizer and of the expanded one.
        windows: of text.
        batches: numbers of the windows of each step.
        occurrences: of each new row in all batches.
        tokenizer: fingerprint of the expanded tokenizer.
    """

    encoders: tuple[Encoder, Encoder]
    windows: Windows
    batches: list[np.ndarray]
    occurrences: np.ndarray
    tokenizer: str

    @cached_property
    def batch_lengths(self) -> list[int]:
        """Tokens of each batch by the expanded tokenizer, without padding."""
        return [sum(len(self.windows.target[number]) for number in batch) for batch in self.batches]

    def identity(self) -> dict[str, Any]:
        """Record that tells these texts from others."""
        content = fingerprint_bytes(*(ids.data for ids in self.windows.target))
        return {"tokens": sum(self.batch_lengths), "texts": content, "target_tokenizer": self.tokenizer}


def _prepare_texts(plan: ExpansionPlan, arguments: DistillationArguments, fields: FieldOptions) -> _Texts:
    source, target = load_tokenizer(plan.source), load_tokenizer(plan.target_tokenizer)
    encoders = Encoder.of(source), Encoder.of(target)
    budget = arguments.distill_tokens or TOKENS_PER_NEW_ROW * plan.new_tokens
    positions = read_model_config(plan.source).get("max_position_embeddings", _POSITIONS)
    windows = read_windows(
        arguments.distill_data,
        fields,
        *encoders,
        plan.source_vocabulary,
        budget,
        positions,
        arguments.distill_seed,
    )
    batches = plan_batches(windows, arguments.distill_batch_tokens, budget, arguments.distill_seed)
    occurrences = count_occurrences(windows, batches, plan.source_vocabulary, plan.new_tokens)
    return _Texts(encoders, windows, batches, occurrences, tokenizer_fingerprint(target))


def count_occurrences(windows: Windows, batches: list[np.ndarray], first_new: int, new_rows: int) -> np.ndarray:
    """Counts how often each new row occurs in all batches: int64 [new rows]."""
    counts = np.zeros(new_rows, np.int64)
    uses = np.bincount(np.concatenate(batches), minlength=len(windows.target))
    for ids, used in zip(windows.target, uses, strict=True):
        if used:
            counts += int(used) * np.bincount(ids[ids >= first_new] - first_new, minlength=new_rows)
    return counts


def seen_counts(occurrences: np.ndarray) -> dict[str, int]:
    """Numbers of rows that occur never, and fewer than 10, 100, 1000 times."""
    names = ("never", *(f"fewer_than_{limit}" for limit in _SEEN_LIMITS[1:]))
    return {
        "rows": len(occurrences),
        **{name: int((occurrences < limit).sum()) for name, limit in zip(names, _SEEN_LIMITS, strict=True)},
    }


def _open_rows(
    plan: ExpansionPlan,
    means: Mapping[str, np.ndarray],
    is_seen: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    batch_tokens: int,
) -> NewRows:
    """Loads the source model, frozen, and puts the means behind its rows."""
    config = read_model_config(plan.source)
    is_tied = bool(config.get("tie_word_embeddings", False))
    shapes = {name: shape.shape for shard in plan.weights.shards for name, shape in shard.tensors.items()}
    shape = Shape(
        parameters=sum(int(np.prod(sizes)) for sizes in shapes.values()),
        value_bytes=dtype.itemsize,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        new_rows=plan.new_tokens,
        matrices=1 if is_tied else 2,
        vocabulary=plan.target_vocabulary,
        batch_tokens=batch_tokens,
    )
    is_recomputed = must_recompute(shape, device)
    model = _frozen_model(plan.source, dtype, device)
    if is_recomputed:
        recompute_layers(model, len(model.model.layers), reentrant=False)
    first = torch.from_numpy(means[INPUT_MATRIX].astype(np.float32)).to(device)
    last = first if is_tied else torch.from_numpy(means[OUTPUT_MATRIX].astype(np.float32)).to(device)
    seen = torch.from_numpy(is_seen).to(device).unsqueeze(1)
    return NewRows(model, plan.source_vocabulary, first, last, seen)


def _frozen_model(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = load_model(directory, dtype, "sdpa", device).to(device).eval().requires_grad_(False)
    if fused_kernels_unavailable_reason(device) is None:
        use_fused_kernels(model, fuse_loss=False, fuse_rotary=False)  # batches have other numbers of rows each
    return model


def _trained_matrices(rows: NewRows, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The new rows; one that never occurred is its mean, bit for bit."""
    seen = rows.is_seen.cpu().numpy()
    by_name = {INPUT_MATRIX: rows.input, OUTPUT_MATRIX: rows.output}
    return {
        name: np.where(seen, by_name[name].detach().cpu().numpy().astype(mean.dtype), mean)
        for name, mean in means.items()
    }


def _losses(progress: Progress) -> list[dict[str, float]]:
    """Losses in the course of the training, about ten points."""
    parts = np.array_split(np.array(progress.losses), min(_SHOWN_LOSSES, len(progress.losses)))
    averages = [np.average(part[:, 1:], axis=0, weights=part[:, 0]) for part in parts]
    return [
        {"cross_entropy": round(float(entropy), 4)}
        | ({} if np.isnan(distance) else {"hidden_distance": round(float(distance), 5)})
        for entropy, distance in averages
    ]
