"""Groups share what they say, save what they promise, and hold every sequence once."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.evaluation.prefix_groups import common_tokens, prefix_groups, token_batches


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=30),
    st.integers(1, 20),
)
def test_groups_hold_every_sequence_once_behind_its_own_prefix(sequences, min_saved):
    groups = prefix_groups(sequences, min_saved)
    assert sorted(member for group in groups for member in group.members) == list(range(len(sequences)))
    for group in groups:
        lengths = [len(sequences[member]) for member in group.members]
        assert lengths == sorted(lengths, reverse=True)
        assert min(lengths) > len(group.prefix)
        assert all(tuple(sequences[member][: len(group.prefix)]) == group.prefix for member in group.members)


def test_trimmed_prefixes_are_groups_of_which_each_continues_the_one_before():
    source = random.Random(0)
    few_shot = [source.randrange(1000) for _ in range(700)]
    lengths = [700] * 40 + [300] * 10 + [100] * 10
    prompts = [few_shot[:length] + [1000 + source.randrange(1000) for _ in range(30)] for length in lengths]
    other = [[2000 + number] * 20 for number in range(3)]
    groups = prefix_groups([*prompts, *other], 512)
    assert [(len(group.prefix), len(group.members)) for group in groups] == [(0, 3), (100, 10), (300, 10), (700, 40)]


def test_a_prefix_that_saves_little_is_no_group():
    alike = [[1, 2, 3, number] for number in range(100)]
    assert [len(group.prefix) for group in prefix_groups([*alike, [1, 5]], 198)] == [1, 3]
    assert [len(group.prefix) for group in prefix_groups([*alike, [1, 5]], 199)] == [1]


def test_the_prefix_of_all_is_shared_however_little_it_saves():
    assert [group.prefix for group in prefix_groups([[1, 2, 3], [1, 2, 4]], 10**9)] == [(1, 2)]
    assert [group.prefix for group in prefix_groups([[1, 2, 3]], 1)] == [()]
    assert prefix_groups([], 1) == []


def test_sequences_of_any_nesting_are_divided_in_little_time():
    nested = [[1] * length for length in range(1, 3000)]
    assert sum(len(group.members) for group in prefix_groups(nested, 512)) == len(nested)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_batches_are_all_sequences_in_order_within_the_limit(lengths, limit):
    batches = [lengths[batch] for batch in token_batches(lengths, limit)]
    assert [length for batch in batches for length in batch] == lengths
    assert all(len(batch) == 1 or 0 < sum(batch) <= limit for batch in batches)


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_common_tokens_are_counted_to_the_first_difference(one, other):
    expected = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    assert common_tokens(one, other) == (min(len(one), len(other)) if expected is None else expected)
