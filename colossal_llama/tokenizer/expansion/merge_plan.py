"""Plans the merges that make new pieces of a BPE vocabulary reachable.

BPE (Sennrich et al., https://arxiv.org/abs/1508.07909) splits a text into small symbols. Then it
merges the adjacent pair of best merge rank whose concatenation is a piece, again and again. A piece
that no such sequence of merges builds is unreachable: no text ever gives its id.

Every new merge has a lower priority than every old one. Encoding is then the old encoding followed
by new merges over its tokens. Text without a new piece keeps its old ids, and a new piece is a
sequence of the source's tokens:

    piece 意大利                          source tokens 意 大 利
    requested: 意大利 only                意 大 利   no pair is a piece: 意大利 is unreachable
    intermediate piece 大利 added         意 大 利  →  意 大利  →  意大利

Scaffold-BPE (https://arxiv.org/abs/2404.17808) calls intermediate pieces scaffold tokens.

The merges inside a piece's span do not depend on the text around it, as long as no merge crosses
the span's ends. So a piece is reachable if and only if its own source tokens, alone, are merged
into it (`apply_merges`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from math import fsum, inf

SourceTokens = tuple[str, ...]
"""A piece as a sequence of the source vocabulary's tokens."""

_RANK_STEP = 2.0**-20  # ranks are whole numbers until a piece is moved between two of them
# Shared intermediates are searched for pieces of at most so many source tokens: the time of the
# search grows with the fourth power. Longer ones (200 tokens took hours) are built pair by pair.
_MAX_SEARCHED_TOKENS = 16
# More than the cost of any real tree: chosen where nothing else is possible, then refused by the
# caller.
_FORBIDDEN_COST = 10_000


@dataclass(frozen=True)
class MergePlan:
    """New pieces and merges by which each requested piece is reachable.

    Attributes:
        order: new pieces of two or more source tokens, requested and intermediate ones, by merge
            rank.
        intermediates: pieces that were not requested, but are needed to build requested ones.
        merge_pairs: piece → the two symbols whose merge makes it. There is only one such pair: see
            `apply_merges`.
    """

    order: tuple[str, ...]
    intermediates: tuple[str, ...]
    merge_pairs: Mapping[str, tuple[str, str]]


def plan_merges(
    requested: Mapping[str, SourceTokens],
    source_ranks: Mapping[str, float],
    forbidden: Collection[str] = (),
) -> MergePlan:
    """Chooses intermediate pieces, few by a greedy search, and merge ranks that reach every piece.

    Requested pieces keep their order (first = best rank), because a user lists or learns the
    frequent ones first. The few whose rank makes another piece unreachable are moved. Intermediate
    pieces rank last: they apply only where nothing else does, and so change the least.

    Args:
        requested: new piece → its source tokens. Pieces of one source token need no merge and are
            left out.
        source_ranks: pieces of the source that *any* pair with that concatenation makes
            (sentencepiece), with negative ranks; empty if the source lists its merges pair by pair
            (byte-level BPE).
        forbidden: strings that must not become intermediate pieces.
    """
    forbidden = frozenset(forbidden)
    pieces = {piece: tokens for piece, tokens in requested.items() if len(tokens) > 1}
    short = {piece: tokens for piece, tokens in pieces.items() if len(tokens) <= _MAX_SEARCHED_TOKENS}
    intermediates = _choose_intermediates(short, source_ranks, forbidden)
    rank: dict[str, float] = dict(source_ranks)
    rank.update((piece, float(number)) for number, piece in enumerate([*pieces, *intermediates]))

    _move_early_merges(short, rank, source_ranks)
    intermediates.update(_add_intermediates_for_unreachable(short, rank, forbidden))
    _drop_unneeded_intermediates(intermediates, short, rank)
    for piece, tokens in pieces.items():
        if piece not in short:
            intermediates.update(_add_intermediates_pair_by_pair(tokens, rank, forbidden))

    pieces.update(intermediates)
    merge_pairs = {
        piece: tokens if len(tokens) == 2 else apply_merges(tokens, rank)[-1] for piece, tokens in pieces.items()
    }
    return MergePlan(tuple(sorted(pieces, key=rank.__getitem__)), tuple(intermediates), merge_pairs)


def apply_merges(tokens: Sequence[str], rank: Mapping[str, float]) -> list[tuple[str, str]]:
    """Lists the merges that BPE applies to a sequence of symbols, in order.

    The lowest rank comes first, among equal ranks the leftmost pair. The merges inside a span
    depend on the span alone. Hence a piece is always made from the same two symbols, whatever the
    text around it.
    """
    symbols = list(tokens)
    ranks = _pair_ranks(symbols, rank)
    merges = []
    while ranks and (best := min(ranks)) < inf:
        merges.append(_merge_pair(symbols, ranks, ranks.index(best), rank))
    return merges


def _pair_ranks(symbols: Sequence[str], rank: Mapping[str, float]) -> list[float]:
    """Lists the rank of each pair of adjacent symbols; infinite where their join is no piece."""
    return [rank.get(left + right, inf) for left, right in pairwise(symbols)]


def _merge_pair(symbols: list[str], ranks: list[float], position: int, rank: Mapping[str, float]) -> tuple[str, str]:
    """Joins the symbols at a position and the next, and updates the ranks of the pairs around."""
    left, right = symbols[position : position + 2]
    symbols[position : position + 2] = [left + right]
    around = symbols[max(0, position - 1) : position + 2]
    ranks[max(0, position - 1) : position + 2] = _pair_ranks(around, rank)
    return left, right


def is_reachable(tokens: Sequence[str], rank: Mapping[str, float]) -> bool:
    """True when BPE merges all tokens into one symbol."""
    return len(apply_merges(tokens, rank)) == len(tokens) - 1


def _choose_intermediates(
    pieces: Mapping[str, SourceTokens], source_pieces: Collection[str], forbidden: frozenset[str]
) -> dict[str, SourceTokens]:
    """Chooses intermediate pieces for those that no merges build, whatever the ranks.

    Such a piece needs a binary merge tree over its source tokens; the inner nodes that are no
    pieces are missing. Each round adds the string that is missing in the cheapest trees of most
    pieces, until every piece has its tree.
    """
    available = {*pieces, *source_pieces}
    missing = {}
    queue = _CandidateQueue()
    for piece, tokens in pieces.items():
        if len(tokens) > 2 and not _splits_in_two(tokens, available):
            missing[piece] = _cheapest_merge_trees(tokens, available, forbidden)
            queue.add(piece, *missing[piece])
    intermediates: dict[str, SourceTokens] = {}
    while missing:
        best, supported = queue.pop_best()
        intermediates[best] = missing[supported[0]][1][best]
        available.add(best)
        for piece in supported:
            _, candidates = missing.pop(piece)
            queue.remove(piece, candidates)
            cost, candidates = _cheapest_merge_trees(pieces[piece], available, forbidden)
            if cost:
                missing[piece] = (cost, candidates)
                queue.add(piece, cost, candidates)
    return intermediates


class _CandidateQueue:
    """A priority queue of candidates for intermediate pieces.

    A candidate's score is the sum over the pieces it helps of 1 / (intermediates they miss).
    Outdated entries stay in the heap and are dropped when they come to its head. (Rescoring all
    candidates in every round made 20,000 pieces without any sub-pieces take minutes.)
    """

    def __init__(self):
        self._contributions: dict[str, dict[str, float]] = {}  # candidate → piece → its contribution
        self._heap: list[tuple[float, int, str]] = []

    def add(self, piece: str, cost: int, candidates: Mapping[str, SourceTokens]) -> None:
        """Adds a piece that misses `cost` intermediates, the candidates for which are given."""
        for candidate, tokens in candidates.items():
            self._contributions.setdefault(candidate, {})[piece] = 1 / cost
            heappush(self._heap, (-self._score(candidate), len(tokens), candidate))

    def remove(self, piece: str, candidates: Mapping[str, SourceTokens]) -> None:
        """Removes a piece's contribution to the candidates."""
        for candidate, tokens in candidates.items():
            del self._contributions[candidate][piece]
            heappush(self._heap, (-self._score(candidate), len(tokens), candidate))

    def pop_best(self) -> tuple[str, list[str]]:
        """Returns the candidate of the highest score, and the pieces it helps.

        Among equal scores the shortest candidate comes first, then the first by code points.
        """
        while True:
            score, _, candidate = heappop(self._heap)
            if score < 0 and -score == self._score(candidate):
                return candidate, list(self._contributions[candidate])

    def _score(self, candidate: str) -> float:
        return fsum(self._contributions[candidate].values())


def _splits_in_two(tokens: SourceTokens, available: Collection[str]) -> bool:
    ends = range(1, len(tokens))
    left_part = {end: "".join(tokens[:end]) for end in ends}
    return any(
        (end == 1 or left_part[end] in available) and (end == len(tokens) - 1 or "".join(tokens[end:]) in available)
        for end in ends
    )


def _cheapest_merge_trees(
    tokens: SourceTokens, available: Collection[str], forbidden: frozenset[str]
) -> tuple[int, dict[str, SourceTokens]]:
    """Finds the binary merge trees over the tokens in which the fewest inner nodes are missing.

    Returns:
        (cost, candidates): the number of missing nodes, and the strings (with their source tokens)
        that are missing in one of the cheapest trees.
    """
    length = len(tokens)
    cost: dict[tuple[int, int], int] = {(start, start + 1): 0 for start in range(length)}
    node_cost: dict[tuple[int, int], int] = dict(cost)
    for width in range(2, length + 1):
        for start in range(length - width + 1):
            end = start + width
            text = "".join(tokens[start:end])
            own = 0 if width == length or text in available else _FORBIDDEN_COST if text in forbidden else 1
            node_cost[start, end] = own
            cost[start, end] = own + min(cost[start, cut] + cost[cut, end] for cut in range(start + 1, end))
    candidates: dict[str, SourceTokens] = {}
    visited = set()
    stack = [(0, length)]
    while stack:
        start, end = span = stack.pop()
        if span in visited or end - start == 1:
            continue
        visited.add(span)
        if node_cost[span]:
            candidates["".join(tokens[start:end])] = tokens[start:end]
        for cut in range(start + 1, end):
            if cost[start, cut] + cost[cut, end] == cost[span] - node_cost[span]:
                stack += [(start, cut), (cut, end)]
    return cost[0, length], candidates


def _move_early_merges(
    pieces: Mapping[str, SourceTokens], rank: dict[str, float], source_pieces: Collection[str]
) -> None:
    """Changes `rank` so that fewer pieces are unreachable because a sub-piece merges too early.

        piece ABCD, sub-pieces BC, AB, CD in this order    A BC D   nothing merges any more
        BC moved behind AB                                 AB CD  →  ABCD

    A move is kept only if it leaves fewer unreachable pieces among those that contain the moved
    one.
    """
    unreachable = [piece for piece, tokens in pieces.items() if len(tokens) > 2 and not is_reachable(tokens, rank)]
    if not unreachable:
        return
    taken = set(rank.values())
    merged = {"".join(merge) for piece in unreachable for merge in apply_merges(pieces[piece], rank)}
    containing = _pieces_by_sub_piece(pieces, merged)
    for piece in unreachable:
        tokens = pieces[piece]
        if is_reachable(tokens, rank):
            continue
        movable = ["".join(merge) for merge in apply_merges(tokens, rank)]
        movable = [sub_piece for sub_piece in movable if sub_piece not in source_pieces]
        others = [sub_piece for sub_piece in _sub_pieces(tokens) if sub_piece in pieces]
        for sub_piece in movable:
            affected = [pieces[other] for other in containing.get(sub_piece, [piece])]
            if _move_behind_another(sub_piece, others, affected, rank, taken):
                break


def _move_behind_another(
    piece: str,
    others: Sequence[str],
    affected: Sequence[SourceTokens],
    rank: dict[str, float],
    taken: set[float],
) -> bool:
    """Moves a piece behind the first of the others for which more of the affected are reachable.

    Args:
        piece: the piece to move.
        others: candidates for its predecessor in rank.
        affected: source tokens of the pieces that contain it.
        rank: changed if the piece is moved.
        taken: all ranks in use; extended if the piece is moved.

    Returns:
        True when the piece was moved.
    """
    before = rank[piece]
    unreachable_before = sum(not is_reachable(tokens, rank) for tokens in affected)
    for other in others:
        if rank[other] <= before:
            continue
        rank[piece] = _free_rank_after(rank[other], taken)
        if sum(not is_reachable(tokens, rank) for tokens in affected) < unreachable_before:
            taken.add(rank[piece])
            return True
        rank[piece] = before
    return False


def _free_rank_after(rank: float, taken: set[float]) -> float:
    rank += _RANK_STEP
    while rank in taken:
        rank += _RANK_STEP
    return rank


def _sub_pieces(tokens: SourceTokens) -> list[str]:
    """Lists all proper spans of two or more tokens, as strings."""
    length = len(tokens)
    spans = ((start, end) for start in range(length) for end in range(start + 2, length + 1))
    return ["".join(tokens[start:end]) for start, end in spans if end - start < length]


def _pieces_by_sub_piece(pieces: Mapping[str, SourceTokens], sub_pieces: Collection[str]) -> dict[str, list[str]]:
    """Maps each given string to the pieces that contain it as a span of their source tokens."""
    found: dict[str, list[str]] = {sub_piece: [] for sub_piece in sub_pieces}
    for piece, tokens in pieces.items():
        for sub_piece in set(_sub_pieces(tokens)):
            if sub_piece in found:
                found[sub_piece].append(piece)
    return found


def _add_intermediates_for_unreachable(
    pieces: Mapping[str, SourceTokens], rank: dict[str, float], forbidden: frozenset[str]
) -> dict[str, SourceTokens]:
    """Adds intermediate pieces built from the symbols at which an unreachable piece stops merging.

    They are ranked last, so that they cannot make a reachable piece unreachable.
    """
    intermediates: dict[str, SourceTokens] = {}
    last = max(rank.values(), default=0.0)
    for tokens in pieces.values():
        while len(tokens) > 2 and not is_reachable(tokens, rank):
            intermediate, parts = _next_intermediate(tokens, rank, forbidden)
            intermediates[intermediate] = parts
            last += 1.0
            rank[intermediate] = last
    return intermediates


def _add_intermediates_pair_by_pair(
    tokens: SourceTokens, rank: dict[str, float], forbidden: frozenset[str]
) -> dict[str, SourceTokens]:
    """Adds the intermediate pieces of a long piece, in a time that grows with the second power.

    Wherever its merges stop, the two shortest adjacent symbols become an intermediate piece. So
    most intermediates stay short. Each is ranked last, as in `_add_intermediates_for_unreachable`.
    """
    intermediates: dict[str, SourceTokens] = {}
    last = max(rank.values(), default=0.0)
    symbols, widths = list(tokens), [1] * len(tokens)
    ranks = _pair_ranks(symbols, rank)
    while ranks:
        if (best := min(ranks)) == inf:
            pair_widths = list(map(sum, pairwise(widths)))
            by_width = sorted(range(len(ranks)), key=pair_widths.__getitem__)
            allowed = (place for place in by_width if symbols[place] + symbols[place + 1] not in forbidden)
            position = next(allowed, by_width[0])
            start = sum(widths[:position])
            intermediate = symbols[position] + symbols[position + 1]
            intermediates[intermediate] = tokens[start : start + pair_widths[position]]
            last += 1.0
            rank[intermediate] = last
            ranks = _pair_ranks(symbols, rank)
            continue
        position = ranks.index(best)
        _merge_pair(symbols, ranks, position, rank)
        widths[position : position + 2] = [sum(widths[position : position + 2])]
    return intermediates


def _next_intermediate(
    tokens: SourceTokens, rank: Mapping[str, float], forbidden: frozenset[str]
) -> tuple[str, SourceTokens]:
    """Chooses an intermediate piece, with its source tokens, over the final symbols."""
    symbols = _final_symbols(tokens, rank)
    texts = tuple("".join(symbol) for symbol in symbols)
    _, candidates = _cheapest_merge_trees(texts, rank, forbidden)
    best = min(candidates, key=lambda candidate: (candidate in forbidden, len(candidates[candidate]), len(candidate)))
    width = len(candidates[best])
    start = next(start for start in range(len(symbols)) if texts[start : start + width] == candidates[best])
    return best, tuple(token for symbol in symbols[start : start + width] for token in symbol)


def _final_symbols(tokens: SourceTokens, rank: Mapping[str, float]) -> list[SourceTokens]:
    """Lists the symbols, each as its source tokens, that remain when no merge applies any more."""
    symbols: list[SourceTokens] = [(token,) for token in tokens]
    for merge in apply_merges(tokens, rank):
        pairs = [("".join(left), "".join(right)) for left, right in pairwise(symbols)]
        position = pairs.index(merge)
        symbols[position : position + 2] = [symbols[position] + symbols[position + 1]]
    return symbols


def _drop_unneeded_intermediates(
    intermediates: dict[str, SourceTokens], pieces: Mapping[str, SourceTokens], rank: dict[str, float]
) -> None:
    """Removes the intermediates without which every piece stays reachable, here and from `rank`.

    The greedy choice leaves some: a later one can do an earlier one's work, and one that occurs
    twice in a piece (aa in aaaa) was counted twice.
    """
    containing = _pieces_by_sub_piece(pieces, intermediates)
    dropped = True
    while dropped:  # without one of them, another one may have become unneeded
        dropped = False
        for intermediate in reversed(list(intermediates)):
            former_rank = rank.pop(intermediate)
            if all(is_reachable(pieces[piece], rank) for piece in containing[intermediate]):
                del intermediates[intermediate]
                dropped = True
            else:
                rank[intermediate] = former_rank
