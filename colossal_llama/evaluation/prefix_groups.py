"""Groups of prompts that begin alike, whose common prefix is computed once; torch-free.

Sorted by their tokens, prompts that share a prefix stand together. The lengths of the prefixes that
neighbours share make a tree of intervals:

    common prefix   700  700   300  700  700
    prompts        a    b    c    d    e    f      {a…f} share 300, {a b c} and {d e f} 700

An interval becomes a group of its own where computing its longer prefix once saves enough tokens.
The others stay with the interval around them. Examples that are dropped from long prompts so give
groups of shorter prefixes, each of which is the beginning of the next.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences that share a prefix.

    Attributes:
        prefix: the tokens that all begin with; at least one more follows in each.
        members: indices of the sequences, longest first.
    """

    prefix: tuple[int, ...]
    members: tuple[int, ...]


def prefix_groups(sequences: Sequence[Sequence[int]], min_saved_tokens: int) -> list[PrefixGroup]:
    """Divides sequences into groups; a group's prefix comes before longer ones that continue it.

    Args:
        sequences: of tokens, each of one at least.
        min_saved_tokens: that a longer prefix must save to have a group of its own.
    """
    if not sequences:
        return []
    order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
    ordered = [sequences[index] for index in order]
    common = [_common_tokens(ordered[at], ordered[at + 1]) for at in range(len(ordered) - 1)]
    prefix_tokens = [min(common, default=0)]  # by group; the first has what all have in common
    group_at = [0] * len(ordered)
    for tokens, begin, end in reversed(list(_intervals(common))):  # the outer before the inner
        saved = (end - begin - 1) * (tokens - prefix_tokens[group_at[begin]])
        if saved >= min_saved_tokens:
            group_at[begin:end] = [len(prefix_tokens)] * (end - begin)
            prefix_tokens.append(tokens)
    members: dict[int, list[int]] = {}
    for at, group in enumerate(group_at):
        members.setdefault(group, []).append(at)
    return sorted(
        (_group(ordered, order, prefix_tokens[group], places) for group, places in members.items()),
        key=lambda group: group.prefix,
    )


def token_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[slice]:
    """Divides sequences in their order into batches of at most so many tokens, one at least."""
    begin = tokens = 0
    for at, length in enumerate(lengths):
        if at > begin and tokens + length > tokens_per_batch:
            yield slice(begin, at)
            begin, tokens = at, 0
        tokens += length
    if begin < len(lengths):
        yield slice(begin, len(lengths))


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    limit = min(len(one), len(other))
    return bisect_left(range(limit), True, key=lambda at: one[: at + 1] != other[: at + 1])


def _common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """As `common_tokens`; each keeps one token at least, after which the model is asked."""
    return min(common_tokens(one, other), len(one) - 1, len(other) - 1)


def _intervals(common: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Maximal intervals of neighbours: (tokens in common, begin, end), the inner ones first."""
    open_ones: list[tuple[int, int]] = []  # (tokens in common, begin), growing
    for at, tokens in enumerate([*common, -1]):
        begin = at
        while open_ones and open_ones[-1][0] > tokens:
            inner, begin = open_ones.pop()
            yield inner, begin, at + 1
        if not open_ones or open_ones[-1][0] < tokens:
            open_ones.append((tokens, begin))


def _group(
    ordered: Sequence[Sequence[int]], order: Sequence[int], prefix_tokens: int, places: Sequence[int]
) -> PrefixGroup:
    """The group of the sequences at these places of the order."""
    longest_first = sorted(places, key=lambda at: (-len(ordered[at]), at))
    return PrefixGroup(tuple(ordered[places[0]][:prefix_tokens]), tuple(order[at] for at in longest_first))
