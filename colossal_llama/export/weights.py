"""Weights of an export: the tensors in the model's order, from files or from a merged model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.export.source import ExportSource
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS
from colossal_llama.model.weights.llama_tensors import expected_tensors
from colossal_llama.model.weights.stored_tensors import StoredTensor, TensorShape, bytes_of, shape_of
from colossal_llama.model.weights.weight_files import (
    WeightShard,
    find_weight_files,
    first_line,
    open_tensors,
    read_shard,
)
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    import torch

INPUT_MATRIX, OUTPUT_MATRIX = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Weights:
    """Tensors to export.

    Attributes:
        shapes: by name, in the order in which they are written.
        read: opens a tensor by name.
        left_out: names of stored tensors that are no part of the model.
        tied: True where the output embeddings are the input embeddings; None for an adapter.
    """

    shapes: Mapping[str, TensorShape]
    read: Callable[[str], StoredTensor]
    left_out: tuple[str, ...] = ()
    tied: bool | None = None


@contextmanager
def open_weights(source: ExportSource, merge: bool) -> Iterator[Weights]:
    """Yields the weights of a model, of an adapter, or of an adapter merged into its base.

    Raises:
        UserError: they are damaged, or cannot be merged.
    """
    if source.adapter and merge:
        yield _merged_weights(source)
    elif source.adapter:
        with _open_files([read_shard(source.adapter / ADAPTER_WEIGHTS)]) as (shapes, read):
            yield Weights(dict(sorted(shapes.items())), read)
    else:
        with _open_files(find_weight_files(source.base, index_may_name_more=True).shards) as (shapes, read):
            yield _of_model(source.config, shapes, read)


@contextmanager
def _open_files(
    shards: "tuple[WeightShard, ...] | list[WeightShard]",
) -> Iterator[tuple[dict[str, TensorShape], Callable[[str], StoredTensor]]]:
    """Yields the shapes of all tensors and a function that opens one; one file is open."""
    shard_of = {name: shard for shard in shards for name in shard.tensors}
    with ExitStack() as stack:
        opened: dict[int, Callable[[str], StoredTensor]] = {}

        def read(name: str) -> StoredTensor:
            """Opens a tensor, and closes the file of the one before if it is another."""
            shard = shard_of[name]
            if id(shard) not in opened:
                stack.close()
                opened.clear()
                opened[id(shard)] = stack.enter_context(open_tensors(shard))
            return opened[id(shard)](name)

        yield {name: shard.tensors[name] for name, shard in shard_of.items()}, read


def _merged_weights(source: ExportSource) -> Weights:
    from colossal_llama.model.lora import merged_model

    assert source.adapter is not None, "only adapters are merged"
    try:
        tensors: dict[str, torch.Tensor] = merged_model(source.base, source.adapter).state_dict()
    except UserError:
        raise
    except Exception as error:  # peft, transformers and torch each raise their own
        raise UserError(f"{source.adapter} cannot be merged into {source.base}: {first_line(error)}") from error
    shapes = {name: shape_of(tensor) for name, tensor in tensors.items()}
    return _of_model(source.config, shapes, lambda name: _in_memory(tensors[name]), is_merged=True)


def _in_memory(tensor: "torch.Tensor") -> StoredTensor:
    content = bytes_of(tensor)
    return StoredTensor(shape_of(tensor), lambda offset, count: content[offset : offset + count])


def _of_model(
    config: Mapping[str, Any],
    shapes: Mapping[str, TensorShape],
    read: Callable[[str], StoredTensor],
    is_merged: bool = False,
) -> Weights:
    """Selects and orders the tensors of a causal model; a tied matrix is stored once.

    An adapter may have replaced one of two tied matrices: then both are written.

    Raises:
        UserError: the files hold two matrices that differ, and config.json ties them.
    """
    names = {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": name for name in shapes}
    kept = [name for name, _ in expected_tensors(config) if name in names]
    tied = bool(config.get("tie_word_embeddings"))
    if tied and OUTPUT_MATRIX in kept:
        tied = _are_equal(read(names[INPUT_MATRIX]), lambda: read(names[OUTPUT_MATRIX]))
        if tied:
            kept.remove(OUTPUT_MATRIX)
        elif is_merged:
            log_rank_zero(f"the adapter has changed a tied matrix: {OUTPUT_MATRIX} is written, too, not tied")
        else:
            raise UserError(
                f"config.json ties {OUTPUT_MATRIX} to {INPUT_MATRIX} (tie_word_embeddings), and the weight files hold "
                "both with other values: programs disagree on which is meant; set tie_word_embeddings to false, or "
                "remove the tensor that is wrong"
            )
    return Weights(
        {name: shapes[names[name]] for name in kept},
        lambda name: read(names[name]),
        tuple(stored for name, stored in names.items() if name not in kept and name != OUTPUT_MATRIX),
        tied,
    )


def _are_equal(one: StoredTensor, other: Callable[[], StoredTensor]) -> bool:
    """Compares two tensors by their checksums, as each may be in a file of its own."""
    return _digest(one) == _digest(other())


def _digest(stored: StoredTensor) -> tuple[TensorShape, str]:
    import xxhash

    builder = xxhash.xxh3_128()
    for block in stored.blocks():
        builder.update(np.ascontiguousarray(block).view(np.uint8).data)
    return stored.shape, builder.hexdigest()
