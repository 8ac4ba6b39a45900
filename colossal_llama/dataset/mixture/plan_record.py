"""Records what a plan of the parts holds: tokens, epochs and shares by category, group and bucket.

It is what `--plan_only` prints and draws, and what the manifest keeps. Tokens are those of the
parts: after tokenization, with BOS, EOS and the words of a chat format, without what was cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.dataset.mixture.targets import Targets

TOLERATED_SHARE = 0.001
"""Largest difference between a share that is asked for and the one reached that needs no reason."""


@dataclass(frozen=True)
class CategoryFacts:
    """Documents of a preparation, counted by category.

    Attributes:
        names: of the categories.
        groups: of each category, None without one.
        documents: (categories,) usable documents.
        tokens: (categories,) their tokens.
        longest: (categories,) tokens of the longest.
    """

    names: Sequence[str]
    groups: Sequence[str | None]
    documents: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray


@dataclass(frozen=True)
class ChosenFacts:
    """Documents of a plan, counted by category.

    Attributes:
        bucket_tokens: (categories, buckets) tokens in each part.
        documents: (categories,) chosen documents, a repeated one as often as it is there.
        left_out_documents: (categories,) documents that are in no part.
        left_out_tokens: (categories,) their tokens.
    """

    bucket_tokens: np.ndarray
    documents: np.ndarray
    left_out_documents: np.ndarray
    left_out_tokens: np.ndarray


def plan_record(facts: CategoryFacts, chosen: ChosenFacts, targets: Targets | None) -> dict:
    """Builds the record of a plan.

    Args:
        facts: of the documents that there are.
        chosen: of those in the plan.
        targets: that a mixture asks for; None without one.
    """
    reached = chosen.bucket_tokens
    requested = _requested(targets)
    tokens = reached.sum(axis=1)
    total = int(tokens.sum())
    categories = {}
    for number, name in enumerate(facts.names):
        available = int(facts.tokens[number])
        entry = {
            "group": facts.groups[number],
            "documents": int(facts.documents[number]),
            "available_tokens": available,
            "chosen_documents": int(chosen.documents[number]),
            "tokens": int(tokens[number]),
            "share": _ratio(tokens[number], total),
            "epochs": _ratio(tokens[number], available),
            "left_out_documents": int(chosen.left_out_documents[number]),
            "left_out_tokens": int(chosen.left_out_tokens[number]),
            "bucket_tokens": reached[number].tolist(),
        }
        if targets is not None and requested is not None:
            entry["requested_tokens"] = targets.tokens[number]
            entry["requested_share"] = _ratio(targets.tokens[number], sum(targets.tokens))
            entry["requested_bucket_tokens"] = requested[number].tolist()
        categories[name] = entry
    record = {"total_tokens": total, "bucket_tokens": reached.sum(axis=0).tolist(), "categories": categories}
    record["groups"] = _groups(categories, total)
    if targets is not None and requested is not None:
        record["total_decided_by"] = targets.decided_by
        record["deviations"] = _deviations(facts, reached, requested, targets)
    return record


def _requested(targets: Targets | None) -> np.ndarray | None:
    """(categories, buckets) tokens that are asked for."""
    if targets is None:
        return None
    ends = np.stack([targets.bucket_ends(number) for number in range(len(targets.tokens))])
    return np.diff(ends, axis=1, prepend=0)


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0


def _groups(categories: dict[str, dict], total: int) -> dict[str, dict]:
    """Sums of the categories of each group, in the order of their names."""
    groups: dict[str, dict] = {}
    for name in sorted({entry["group"] for entry in categories.values() if entry["group"] is not None}):
        members = [entry for entry in categories.values() if entry["group"] == name]
        tokens = sum(entry["tokens"] for entry in members)
        groups[name] = {
            "categories": [category for category, entry in categories.items() if entry["group"] == name],
            "tokens": tokens,
            "share": _ratio(tokens, total),
            "epochs": _ratio(tokens, sum(entry["available_tokens"] for entry in members)),
            "bucket_tokens": np.sum([entry["bucket_tokens"] for entry in members], axis=0).tolist(),
        }
        if "requested_tokens" in members[0]:
            requested = sum(entry["requested_tokens"] for entry in members)
            in_all = sum(entry["requested_tokens"] for entry in categories.values())
            groups[name] |= {"requested_tokens": requested, "requested_share": _ratio(requested, in_all)}
    return groups


def _deviations(facts: CategoryFacts, reached: np.ndarray, requested: np.ndarray, targets: Targets) -> list[str]:
    """Says which shares and numbers of tokens are not met, how far they are off, and why."""
    members: dict[tuple[int, ...], str] = {(number,): name for number, name in enumerate(facts.names)}
    for group in sorted({group for group in facts.groups if group is not None}):
        numbers = tuple(number for number, found in enumerate(facts.groups) if found == group)
        members.setdefault(numbers, f"group {group}")
    for name, joint in targets.joint_amounts.items():
        members.setdefault(tuple(joint), name)
    messages = [_share_deviation(name, facts, list(numbers), reached, requested) for numbers, name in members.items()]
    return [message for message in (*messages, _size_deviation(reached, requested)) if message]


def _share_deviation(
    name: str, facts: CategoryFacts, members: list[int], reached: np.ndarray, requested: np.ndarray
) -> str:
    """Says how far a category, or several together, are off their shares; empty if they are not."""

    def shares(tokens: np.ndarray) -> np.ndarray:
        """Share of the members in every bucket, and in all."""
        with_all = np.concatenate([tokens, tokens.sum(axis=1, keepdims=True)], axis=1)
        return _shares(with_all)[members].sum(axis=0)

    off = np.abs(shares(reached) - shares(requested))
    if off.max() <= TOLERATED_SHARE:
        return ""
    got, asked = reached[members].sum(axis=0), requested[members].sum(axis=0)
    own_error = (np.abs(got - asked) / np.maximum(requested.sum(axis=0), 1)).max()
    reason = (
        f"few or long documents: {int(facts.documents[members].sum()):,} of up to "
        f"{int(facts.longest[members].max()):,} tokens, and a bucket is to have {short_number(asked.mean())} tokens "
        "of them"
        if own_error > TOLERATED_SHARE / 2
        else "other categories miss theirs there, and with them the bucket's size"
    )
    overall_part = f"; overall {100 * off[-1]:.2f}" if off[-1] > TOLERATED_SHARE else ""
    buckets = int(np.count_nonzero(off[:-1] > TOLERATED_SHARE))
    return (
        f"{name}: up to {100 * off[:-1].max():.2f} points off its share in {buckets:,} of {reached.shape[1]:,} "
        f"buckets{overall_part} ({reason})"
    )


def _size_deviation(reached: np.ndarray, requested: np.ndarray) -> str:
    """Says how far the tokens of the buckets, or of all, are from those asked for; or nothing."""
    got, asked = reached.sum(axis=0), requested.sum(axis=0)
    off_buckets = int(np.count_nonzero(np.abs(got - asked) > TOLERATED_SHARE * asked))
    total, asked_total = int(got.sum()), int(asked.sum())
    if not off_buckets and abs(total - asked_total) <= TOLERATED_SHARE * asked_total:
        return ""
    return (
        f"tokens of all categories: {total:,} of {asked_total:,}, and {got.min():,} to {got.max():,} in a bucket that "
        f"is to have {short_number(asked.mean())}, in {off_buckets:,} of {len(got):,} buckets (documents are taken "
        "whole)"
    )


def _shares(tokens: np.ndarray) -> np.ndarray:
    """Share of each category in the tokens of each bucket; 0 in an empty one."""
    return tokens / np.maximum(tokens.sum(axis=0, keepdims=True), 1)
