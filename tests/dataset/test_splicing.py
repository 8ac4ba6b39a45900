"""Packing: nothing lost, nothing doubled, no row too long, best fit by its definition."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.splicing import SPLICINGS, shuffle_rows, splice_best_fit, splice_greedy

LENGTHS = st.lists(st.integers(1, 64), max_size=60)


@pytest.mark.parametrize("splice", SPLICINGS.values(), ids=SPLICINGS)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_every_item_is_in_exactly_one_row_and_no_row_is_too_long(splice, lengths, seed):
    rows = splice(lengths, 64)
    shuffled = shuffle_rows(rows, (seed, 0))
    for result in (rows, shuffled):
        assert sorted(result.items.tolist()) == list(range(len(lengths)))
        for number in range(len(result)):
            assert 1 <= sum(lengths[item] for item in result.row(number)) <= 64
    as_sets = [{tuple(result.row(number)) for number in range(len(result))} for result in (rows, shuffled)]
    assert as_sets[0] == as_sets[1]


@given(lengths=LENGTHS)
@settings(max_examples=200, deadline=None)
def test_best_fit_takes_the_fullest_row_with_room(lengths):
    """Against the definition, followed step by step."""
    rooms: list[int] = []
    expected: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fitting = [room for room in rooms if room >= lengths[item]]
        if fitting:
            # among equally full rows the one that came to this fill last: only the fill matters for
            # the count of rows
            row = rooms.index(min(fitting))
        else:
            rooms.append(64)
            expected.append([])
            row = len(rooms) - 1
        rooms[row] -= lengths[item]
        expected[row].append(item)
    rows = splice_best_fit(lengths, 64)
    fills = sorted(sum(lengths[item] for item in rows.row(number)) for number in range(len(rows)))
    assert fills == sorted(64 - room for room in rooms)


@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_greedy_keeps_the_order_and_opens_a_row_only_when_it_must(lengths):
    rows = splice_greedy(lengths, 64)
    assert rows.items.tolist() == list(range(len(lengths)))
    for number in range(len(rows) - 1):
        following = rows.items[rows.starts[number + 1]]
        assert sum(lengths[item] for item in rows.row(number)) + lengths[following] > 64


def test_an_item_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        splice_best_fit([3, 9], 8)
