"""Tensors of a causal model in its weight files: opened by name, and by the names of the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import xxhash

from colossal_llama.model.weights.llama_tensors import expected_tensors
from colossal_llama.model.weights.stored_tensors import StoredTensor, TensorShape
from colossal_llama.model.weights.weight_files import WeightShard, open_tensors

INPUT_MATRIX, OUTPUT_MATRIX = "model.embed_tokens.weight", "lm_head.weight"
Read = Callable[[str], StoredTensor]
"""Opens a tensor by its name."""


@contextmanager
def open_files(shards: Iterable[WeightShard]) -> Iterator[tuple[dict[str, TensorShape], Read]]:
    """Yields the shapes of all tensors and a function that opens one; one file is open."""
    shard_of = {name: shard for shard in shards for name in shard.tensors}
    with ExitStack() as stack:
        opened: dict[int, Read] = {}

        def read(name: str) -> StoredTensor:
            """Opens a tensor, and closes the file of the one before if it is another."""
            shard = shard_of[name]
            if id(shard) not in opened:
                stack.close()
                opened.clear()
                opened[id(shard)] = stack.enter_context(open_tensors(shard))
            return opened[id(shard)](name)

        yield {name: shard.tensors[name] for name, shard in shard_of.items()}, read


def stored_names(config: Mapping[str, Any], found: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Maps the names of a model's tensors, in its order, to those of its files.

    Files of a model that was saved without its output layer lack the first part of the names.

    Returns:
        The names, and those of stored tensors that are no part of the model.
    """
    names = {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": name for name in found}
    known = {name: names[name] for name, _ in expected_tensors(config) if name in names}
    return known, [stored for name, stored in names.items() if name not in known]


def are_equal(one: StoredTensor, other: Callable[[], StoredTensor]) -> bool:
    """Compares two tensors by their checksums, as each may be in a file of its own."""
    return _digest(one) == _digest(other())


def _digest(stored: StoredTensor) -> tuple[TensorShape, str]:
    builder = xxhash.xxh3_128()
    for block in stored.blocks():
        builder.update(np.ascontiguousarray(block).view(np.uint8).data)
    return stored.shape, builder.hexdigest()
