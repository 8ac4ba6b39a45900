"""Weights of an export: the tensors in the model's order, from files or from a merged model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.export.source import ExportSource
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS
from colossal_llama.model.weights.model_tensors import (
    INPUT_MATRIX,
    OUTPUT_MATRIX,
    are_equal,
    open_files,
    stored_names,
)
from colossal_llama.model.weights.stored_tensors import StoredTensor, TensorShape, bytes_of, shape_of
from colossal_llama.model.weights.weight_files import (
    find_weight_files,
    first_line,
    read_shard,
)
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    import torch


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
        with open_files([read_shard(source.adapter / ADAPTER_WEIGHTS)]) as (shapes, read):
            yield Weights(dict(sorted(shapes.items())), read)
    else:
        with open_files(find_weight_files(source.base, index_may_name_more=True).shards) as (shapes, read):
            yield _of_model(source.config, shapes, read)


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
    names, left_out = stored_names(config, shapes)
    kept = list(names)
    tied = bool(config.get("tie_word_embeddings"))
    if tied and OUTPUT_MATRIX in kept:
        tied = are_equal(read(names[INPUT_MATRIX]), lambda: read(names[OUTPUT_MATRIX]))
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
        tuple(left_out),
        tied,
    )
