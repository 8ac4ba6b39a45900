"""Packing and splitting: nothing lost, nothing doubled, no row too long, every segment able to hold a target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.document_splitting import CutScores, cut_positions
from colossal_llama.dataset.splicing import SPLICINGS, shuffle_rows, splice_best_fit, splice_greedy

LENGTHS = st.lists(st.integers(1, 64), max_size=60)


@pytest.mark.parametrize("splice", SPLICINGS.values(), ids=SPLICINGS)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_every_segment_is_in_exactly_one_row_and_no_row_is_too_long(splice, lengths, seed):
    rows = splice(lengths, 64)
    shuffled = shuffle_rows(rows, (seed, 0))
    for result in (rows, shuffled):
        assert sorted(result.items.tolist()) == list(range(len(lengths)))
        for number in range(len(result)):
            assert 1 <= sum(lengths[segment] for segment in result.row(number)) <= 64
    as_sets = [{tuple(result.row(number)) for number in range(len(result))} for result in (rows, shuffled)]
    assert as_sets[0] == as_sets[1]


@given(lengths=LENGTHS)
@settings(max_examples=200, deadline=None)
def test_best_fit_takes_the_fullest_row_with_room(lengths):
    """Against the definition, followed step by step."""
    rooms: list[int] = []
    expected: list[list[int]] = []
    for segment in sorted(range(len(lengths)), key=lambda segment: (-lengths[segment], segment)):
        fitting = [room for room in rooms if room >= lengths[segment]]
        if fitting:
            # among equally full rows the one that came to this fill last: only the fill matters for
            # the count of rows
            row = rooms.index(min(fitting))
        else:
            rooms.append(64)
            expected.append([])
            row = len(rooms) - 1
        rooms[row] -= lengths[segment]
        expected[row].append(segment)
    rows = splice_best_fit(lengths, 64)
    fills = sorted(sum(lengths[segment] for segment in rows.row(number)) for number in range(len(rows)))
    assert fills == sorted(64 - room for room in rooms)


@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_greedy_keeps_the_order_and_opens_a_row_only_when_it_must(lengths):
    rows = splice_greedy(lengths, 64)
    assert rows.items.tolist() == list(range(len(lengths)))
    for number in range(len(rows) - 1):
        following = rows.items[rows.starts[number + 1]]
        assert sum(lengths[segment] for segment in rows.row(number)) + lengths[following] > 64


def test_a_segment_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        splice_best_fit([3, 9], 8)


PIECES = [b"", b"a", b" b", b".", b"\n", b"\n\n", "。".encode(), b"\xe4", b"\xbd", b"\xa0", b".\n\n", b" "]
SCORES = CutScores(PIECES)


@given(
    tokens=st.lists(st.integers(1, len(PIECES) - 1), min_size=1, max_size=200),
    max_length=st.integers(8, 40),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_segments_fit_and_can_all_hold_a_target(tokens, max_length, data):
    target_start = data.draw(st.integers(1, max_length // 2))
    cuts = cut_positions(np.array(tokens), max_length, SCORES, first_cut_after=target_start)
    borders = [0, *cuts, len(tokens)]
    lengths = np.diff(borders)
    assert lengths.sum() == len(tokens)
    assert lengths.max() <= max_length
    if len(tokens) <= max_length:
        assert not cuts
    else:
        assert lengths.min() >= 2
        assert cuts[0] > target_start


def _only_cut(tokens: list[bytes], max_length: int) -> bytes:
    ids = np.array([PIECES.index(piece) for piece in tokens])
    (cut,) = cut_positions(ids, max_length, SCORES)
    return b"".join(tokens[:cut])


def test_the_best_place_near_the_limit_is_taken():
    words = [b" b"] * 60
    assert _only_cut([*words[:29], b"\n", b"\n", *words[:20]], 32) == b" b" * 29 + b"\n\n"  # a paragraph
    assert (
        _only_cut([*words[:29], b".", b"a", b" b", *words[:20]], 32) == b" b" * 29 + b".a b"
    )  # 2.a is no sentence's end
    assert _only_cut([*words[:29], b".", b" b", b"a", *words[:20]], 32) == b" b" * 29 + b"."
    assert _only_cut([*words[:30], "。".encode(), b"a", *words[:20]], 32) == b" b" * 30 + "。".encode()
    assert _only_cut([b"a"] * 40, 32) == b"a" * 32  # anywhere


def test_no_gap_is_left_that_hardly_any_document_would_fill():
    for offset, expected in ((20, 1024 - 20), (5, 1024)):  # 1,024 // 64 = 16 tokens are the shortest gap
        tokens = [b" b"] * (1024 - offset - 2) + [b"\n", b"\n"] + [b" b"] * 200
        ids = np.array([PIECES.index(piece) for piece in tokens])
        assert cut_positions(ids, 1024, SCORES) == [expected]


def test_no_character_is_cut_in_two():
    character = [b"\xe4", b"\xbd", b"\xa0"]
    for max_length in range(8, 14):
        ids = np.array([PIECES.index(piece) for piece in character * 20])
        cuts = cut_positions(ids, max_length, SCORES)
        assert cuts
        assert all(cut % 3 == 0 for cut in cuts[:-1])
