"""Plans the merges that lead to new pieces of a BPE vocabulary: which extra pieces they need, and in which order they apply.

How a BPE tokenizer reaches a piece: the text starts as small symbols, and the best-ranked pair of
neighbours whose concatenation is a piece is merged, again and again. A piece that no such chain
builds is dead: no text ever gives its id.

Every new merge is ranked below every old one. Encoding is then the old encoding followed by new
merges over its tokens, so that text without a new piece keeps its old ids, and a new piece is a
sequence of old tokens, here called its segments:

    piece   意大利          segments 意 大 利
    pieces asked for: 意大利 only        意 大 利   no pair is a piece: 意大利 is dead
    bridge 大利 added                    意 大 利  →  意 大利  →  意大利

What happens inside a piece's span does not depend on the text around it as long as no merge crosses
the span's ends, so a piece is reachable if and only if its own segments, alone, are merged into it
(`derive`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from math import fsum

Segments = tuple[str, ...]

_RANK_STEP = 2.0**-20  # ranks are whole numbers until a piece is moved between two of them

_FORBIDDEN_COST = 10_000  # more than any real tree's: taken if there is no other way, and then refused by the caller


@dataclass(frozen=True)
class MergePlan:
    """What has to be added to a vocabulary so that each asked piece is reachable.

    Attributes:
        order: the new pieces of two or more segments, asked ones and bridges, first merged first.
        bridges: the pieces that nobody asked for and some asked piece needs, in the order they were found.
        splits: for each piece of `order`, the two symbols whose merge makes it. There is only one such pair: see `derive`.
    """

    order: tuple[str, ...]
    bridges: tuple[str, ...]
    splits: Mapping[str, tuple[str, str]]


def plan_merges(
    asked: Mapping[str, Segments],
    known_rank: Mapping[str, float],
    forbidden: Collection[str] = (),
) -> MergePlan:
    """Chooses bridges, as few as a greedy search finds, and an order of merges that leaves no piece dead.

    The asked pieces keep the order they are given in (first = strongest), because a user lists or
    learns the frequent ones first; the few whose place makes another piece unreachable are moved.
    Bridges come last of all: they apply only where nothing else does, and so change the least.

    Args:
        asked: new piece → its segments in the source vocabulary. Pieces of one segment need no
            merge and are left out.
        known_rank: pieces of the source that *any* pair with the right concatenation makes
            (sentencepiece), with their negative ranks; empty if the source lists its pairs one by
            one (byte-level BPE).
        forbidden: strings that must not become bridges.
    """
    pieces = {piece: segments for piece, segments in asked.items() if len(segments) > 1}
    bridges = _choose_bridges(pieces, known_rank, frozenset(forbidden))
    rank: dict[str, float] = dict(known_rank)
    rank.update((piece, float(place)) for place, piece in enumerate([*pieces, *bridges]))

    _move_blocking_pieces(pieces, rank, known_rank)
    bridges.update(_bridge_what_is_still_dead(pieces, rank, frozenset(forbidden)))
    _drop_needless_bridges(bridges, pieces, rank)

    pieces.update(bridges)
    splits = {
        piece: segments if len(segments) == 2 else derive(segments, rank)[-1] for piece, segments in pieces.items()
    }
    return MergePlan(tuple(sorted(pieces, key=rank.__getitem__)), tuple(bridges), splits)


def derive(segments: Sequence[str], rank: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges, in order, that BPE applies to a sequence of symbols: lowest rank first, leftmost first among equals.

    The sequence of merges inside a span depends on the span alone, hence a piece is always made
    from the same two symbols, whatever the text around it.
    """
    symbols = list(segments)
    merges = []
    while len(symbols) > 1:
        best = None
        for place, (left, right) in enumerate(pairwise(symbols)):
            candidate = rank.get(left + right)
            if candidate is not None and (best is None or candidate < best[0]):
                best = (candidate, place)
        if best is None:
            break
        place = best[1]
        merges.append((symbols[place], symbols[place + 1]))
        symbols[place : place + 2] = ["".join(merges[-1])]
    return merges


def is_reachable(segments: Sequence[str], rank: Mapping[str, float]) -> bool:
    """Whether BPE merges all the segments into one symbol."""
    return len(derive(segments, rank)) == len(segments) - 1


def _choose_bridges(
    pieces: Mapping[str, Segments], known: Collection[str], forbidden: frozenset[str]
) -> dict[str, Segments]:
    """The extra pieces without which some piece has no chain of merges at all, whatever the order.

    Such a piece takes a binary tree over its segments; the inner nodes that are no pieces are what
    it lacks. Each round adds the string that is lacking in the cheapest trees of most pieces, until
    every piece has its tree.
    """
    available = {*pieces, *known}
    lacking = {}
    election = _Election()
    for piece, segments in pieces.items():
        if len(segments) > 2 and not _splits_in_two(segments, available):
            lacking[piece] = _cheapest_trees(segments, available, forbidden)
            election.vote(piece, *lacking[piece])
    bridges: dict[str, Segments] = {}
    while lacking:
        bridge, voters = election.winner()
        bridges[bridge] = lacking[voters[0]][1][bridge]
        available.add(bridge)
        for piece in voters:
            _, candidates = lacking.pop(piece)
            election.withdraw(piece, candidates)
            cost, candidates = _cheapest_trees(pieces[piece], available, forbidden)
            if cost:
                lacking[piece] = (cost, candidates)
                election.vote(piece, cost, candidates)
    return bridges


class _Election:
    """Counts how many pieces each candidate for a bridge would help, the nearer to completion the more.

    The queue holds outdated entries, too; they are dropped when they come to its head. (Counting
    anew in every round made 20,000 pieces without any sub-pieces take minutes.)
    """

    def __init__(self):
        self._voters: dict[str, dict[str, float]] = {}
        self._queue: list[tuple[float, int, str]] = []

    def vote(self, piece: str, cost: int, candidates: Mapping[str, Segments]) -> None:
        """A piece that lacks `cost` bridges votes for all that are in one of its cheapest trees."""
        for candidate, segments in candidates.items():
            self._voters.setdefault(candidate, {})[piece] = 1 / cost
            heappush(self._queue, (-self._weight(candidate), len(segments), candidate))

    def withdraw(self, piece: str, candidates: Mapping[str, Segments]) -> None:
        """Takes these votes back."""
        for candidate, segments in candidates.items():
            del self._voters[candidate][piece]
            heappush(self._queue, (-self._weight(candidate), len(segments), candidate))

    def winner(self) -> tuple[str, list[str]]:
        """The candidate with the greatest weight (the shortest, then the first in the alphabet, among equals), and its voters."""
        while True:
            weight, _, candidate = heappop(self._queue)
            if weight < 0 and -weight == self._weight(candidate):
                return candidate, list(self._voters[candidate])

    def _weight(self, candidate: str) -> float:
        return fsum(self._voters[candidate].values())


def _splits_in_two(segments: Segments, available: Collection[str]) -> bool:
    ends = range(1, len(segments))
    one = {end: "".join(segments[:end]) for end in ends}
    return any(
        (end == 1 or one[end] in available) and (end == len(segments) - 1 or "".join(segments[end:]) in available)
        for end in ends
    )


def _cheapest_trees(
    segments: Segments, available: Collection[str], forbidden: frozenset[str]
) -> tuple[int, dict[str, Segments]]:
    """How many inner nodes of a binary tree over the segments are not available at least, and all nodes of that kind.

    Returns:
        (cost, candidates): the number, and the strings (with their segments) that one of the
            cheapest trees lacks.
    """
    length = len(segments)
    cost: dict[tuple[int, int], int] = {(start, start + 1): 0 for start in range(length)}
    node: dict[tuple[int, int], int] = dict(cost)
    for width in range(2, length + 1):
        for start in range(length - width + 1):
            end = start + width
            text = "".join(segments[start:end])
            own = 0 if width == length or text in available else _FORBIDDEN_COST if text in forbidden else 1
            node[start, end] = own
            cost[start, end] = own + min(cost[start, cut] + cost[cut, end] for cut in range(start + 1, end))
    candidates: dict[str, Segments] = {}
    visited = set()
    waiting = [(0, length)]
    while waiting:
        start, end = span = waiting.pop()
        if span in visited or end - start == 1:
            continue
        visited.add(span)
        if node[span]:
            candidates["".join(segments[start:end])] = segments[start:end]
        for cut in range(start + 1, end):
            if cost[start, cut] + cost[cut, end] == cost[span] - node[span]:
                waiting += [(start, cut), (cut, end)]
    return cost[0, length], candidates


def _move_blocking_pieces(pieces: Mapping[str, Segments], rank: dict[str, float], known: Collection[str]) -> None:
    """Changes `rank` so that fewer pieces are dead because a sub-piece is merged too early.

        piece ABCD, sub-pieces BC, AB, CD in this order:     A BC D   stuck;     BC moved behind AB:     AB CD  →  ABCD

    A move is kept only if it leaves fewer dead pieces among those that contain the moved one.
    """
    dead = [piece for piece, segments in pieces.items() if len(segments) > 2 and not is_reachable(segments, rank)]
    if not dead:
        return
    taken = set(rank.values())
    containing = _pieces_by_sub_piece(pieces, {"".join(m) for piece in dead for m in derive(pieces[piece], rank)})
    for piece in dead:
        segments = pieces[piece]
        if is_reachable(segments, rank):
            continue
        blockers = ["".join(merge) for merge in derive(segments, rank)]
        blockers = [blocker for blocker in blockers if blocker not in known]
        rivals = [sub_piece for sub_piece in _sub_pieces(segments) if sub_piece in pieces]
        for blocker in blockers:
            concerned = containing.get(blocker, [piece])
            before = rank[blocker]
            dead_before = sum(not is_reachable(pieces[other], rank) for other in concerned)
            for rival in rivals:
                if rank[rival] <= before:
                    continue
                rank[blocker] = _just_after(rank[rival], taken)
                if sum(not is_reachable(pieces[other], rank) for other in concerned) < dead_before:
                    break
                rank[blocker] = before
            if rank[blocker] != before:
                taken.add(rank[blocker])
                break


def _just_after(place: float, taken: set[float]) -> float:
    """A rank slightly behind `place` that nothing has."""
    place += _RANK_STEP
    while place in taken:
        place += _RANK_STEP
    return place


def _sub_pieces(segments: Segments) -> list[str]:
    """All proper spans of two or more segments, as strings."""
    length = len(segments)
    spans = ((start, end) for start in range(length) for end in range(start + 2, length + 1))
    return ["".join(segments[start:end]) for start, end in spans if end - start < length]


def _pieces_by_sub_piece(pieces: Mapping[str, Segments], wanted: Collection[str]) -> dict[str, list[str]]:
    """For each wanted string, the pieces that have it as a span of their segments."""
    found: dict[str, list[str]] = {sub_piece: [] for sub_piece in wanted}
    for piece, segments in pieces.items():
        for sub_piece in set(_sub_pieces(segments)):
            if sub_piece in found:
                found[sub_piece].append(piece)
    return found


def _bridge_what_is_still_dead(
    pieces: Mapping[str, Segments], rank: dict[str, float], forbidden: frozenset[str]
) -> dict[str, Segments]:
    """Bridges from the symbols where a dead piece is stuck. Ranked last, they cannot disturb a piece that is reachable."""
    bridges: dict[str, Segments] = {}
    last = max(rank.values(), default=0.0)
    for segments in pieces.values():
        while len(segments) > 2 and not is_reachable(segments, rank):
            bridge, parts = _next_bridge(segments, rank, forbidden)
            bridges[bridge] = parts
            last += 1.0
            rank[bridge] = last
    return bridges


def _drop_needless_bridges(
    bridges: dict[str, Segments], pieces: Mapping[str, Segments], rank: dict[str, float]
) -> None:
    """Removes the bridges without which every piece is still reachable, from `bridges` and from `rank`.

    The greedy choice leaves some: a later bridge can do an earlier one's work, and a bridge that
    occurs twice in one piece (aa in aaaa) was counted twice.
    """
    containing = _pieces_by_sub_piece(pieces, bridges)
    dropped = True
    while dropped:  # without one bridge, another one may have become needless
        dropped = False
        for bridge in reversed(list(bridges)):
            place = rank.pop(bridge)
            if all(is_reachable(pieces[piece], rank) for piece in containing[bridge]):
                del bridges[bridge]
                dropped = True
            else:
                rank[bridge] = place


def _next_bridge(segments: Segments, rank: Mapping[str, float], forbidden: frozenset[str]) -> tuple[str, Segments]:
    """The first bridge, with its segments, on the cheapest way from the symbols where a piece is stuck to the piece."""
    stuck = _stuck_symbols(segments, rank)
    texts = tuple("".join(symbol) for symbol in stuck)
    _, candidates = _cheapest_trees(texts, rank, forbidden)
    bridge = min(candidates, key=lambda candidate: (candidate in forbidden, len(candidates[candidate]), len(candidate)))
    width = len(candidates[bridge])
    start = next(start for start in range(len(stuck)) if texts[start : start + width] == candidates[bridge])
    return bridge, tuple(segment for symbol in stuck[start : start + width] for segment in symbol)


def _stuck_symbols(segments: Segments, rank: Mapping[str, float]) -> list[Segments]:
    """The symbols, each as its segments, that remain when no merge applies any more."""
    symbols: list[Segments] = [(segment,) for segment in segments]
    for merge in derive(segments, rank):
        pairs = [("".join(left), "".join(right)) for left, right in pairwise(symbols)]
        place = pairs.index(merge)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return symbols
