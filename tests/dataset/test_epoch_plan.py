"""The plan of an epoch: every sample once, rows that fit, parts in order, the same when resumed."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.dataset.epoch_plan import fill_ratio, plan_epoch, sample_order

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5)


@given(sizes, st.integers(0, 5), st.integers(0, 3), st.sampled_from(["bucket", "global", "none"]))
def test_an_epoch_visits_every_row_once(part_sizes, seed, epoch, shuffle):
    order = sample_order(part_sizes, seed, epoch, shuffle)
    assert sorted(order) == list(range(sum(part_sizes)))
    assert (order == sample_order(part_sizes, seed, epoch, shuffle)).all()


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_buckets_follow_each_other_in_order(part_sizes, seed, epoch):
    order = sample_order(part_sizes, seed, epoch, "bucket")
    bounds = np.cumsum([0, *part_sizes])
    for begin, end in itertools.pairwise(bounds):
        assert set(order[begin:end]) == set(range(begin, end))


def test_epochs_and_seeds_shuffle_differently():
    orders = {tuple(sample_order([50, 50], seed, epoch)) for seed in range(2) for epoch in range(2)}
    assert len(orders) == 4


part_lengths = st.lists(st.lists(st.integers(1, 30), max_size=40).map(np.array), min_size=1, max_size=4)


@given(
    part_lengths,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["bucket", "global", "none"]),
    st.sampled_from([None, 30, 64]),
)
def test_every_sample_is_in_exactly_one_row_that_fits(lengths, seed, epoch, shuffle, row_length):
    lengths = [part.astype(np.int64) for part in lengths]
    plan = plan_epoch(lengths, seed, epoch, shuffle, row_length)
    flat = np.concatenate(lengths)
    assert sorted(plan.items.tolist()) == list(range(len(flat)))
    rows = [plan.row(number) for number in range(len(plan))]
    assert all(len(row) for row in rows)
    if row_length is None:
        assert all(len(row) == 1 for row in rows)
    else:
        assert all(flat[row].sum() <= row_length for row in rows)
    again = plan_epoch(lengths, seed, epoch, shuffle, row_length)
    assert (again.items == plan.items).all()
    assert (again.starts == plan.starts).all()


@given(part_lengths, st.integers(0, 3))
def test_packed_rows_stay_in_their_bucket_and_buckets_in_order(lengths, seed):
    lengths = [part.astype(np.int64) for part in lengths]
    plan = plan_epoch(lengths, seed, 0, "bucket", 64)
    part_of = np.repeat(np.arange(len(lengths)), [len(part) for part in lengths])
    parts = [set(part_of[plan.row(number)].tolist()) for number in range(len(plan))]
    assert all(len(part) == 1 for part in parts)
    assert sorted(parts, key=min) == parts


def test_rows_of_many_short_samples_are_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 400, 2000)
    assert fill_ratio(plan_epoch([lengths], 0, 0, "bucket", 4096), lengths, 4096) > 0.99


def test_without_shuffling_the_order_is_kept():
    lengths = np.array([3, 9, 2, 8, 5, 7])
    plan = plan_epoch([lengths], 0, 0, "none", 12)
    assert plan.items.tolist() == list(range(6))


def test_epochs_pack_differently():
    lengths = np.full(50, 10)
    rows = [
        {tuple(sorted(plan.row(n).tolist())) for n in range(len(plan))}
        for plan in (plan_epoch([lengths], 0, e, "bucket", 64) for e in (0, 1))
    ]
    assert rows[0] != rows[1]
