"""Rotary embeddings whose frequencies depend on the length of the sequence (dynamic, longrope).

transformers chooses one set of frequencies for a whole micro-batch, by its largest position. Those
of type `dynamic` also stay what the longest sequence before made them. So the loss of a document
depends on its neighbours, and of a run on where it was resumed, as soon as one is longer than the
model's original length.
"""

from typing import Any


def rope_type(config: Any) -> str:
    """Name of the scaling in config.json; `default` without one."""
    scaling = getattr(config, "rope_scaling", None)
    return str(scaling.get("type", scaling.get("rope_type"))) if isinstance(scaling, dict) else "default"


def unscaled_length_tokens(config: Any) -> int | None:
    """Length up to which all sequences have the same frequencies; None where all lengths have."""
    kind = rope_type(config)
    if kind == "longrope":
        return getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
    return config.max_position_embeddings if kind == "dynamic" else None


def varying_rope_problem(
    config: Any, shortest_tokens: int, longest_tokens: int, several_in_a_micro_batch: bool
) -> str | None:
    """Explains why documents cannot be trained with these rotary embeddings; None if they can.

    Args:
        config: of the model.
        shortest_tokens: length of the shortest document.
        longest_tokens: length of the longest document.
        several_in_a_micro_batch: True where micro-batches may hold several documents.
    """
    limit_tokens = unscaled_length_tokens(config)
    if limit_tokens is None or longest_tokens <= limit_tokens:
        return None
    kind = rope_type(config)
    if kind == "longrope" and (shortest_tokens > limit_tokens or not several_in_a_micro_batch):
        return None
    return (
        f"the model's rotary embeddings (rope_scaling of type {kind} in its config.json) have other frequencies for "
        f"documents of more than {limit_tokens:,} tokens, and the data have documents of {shortest_tokens:,} to "
        f"{longest_tokens:,}: those that share a micro-batch with a longer one would be trained with its frequencies. "
        f"Prepare the data with --max_length {limit_tokens}, or give the model a scaling of type linear, yarn or llama3"
    )
