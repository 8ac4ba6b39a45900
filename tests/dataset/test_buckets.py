"""Every bucket has the whole mixture."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare.buckets import assign_bins, fill_last_rows


@given(categories=st.lists(st.integers(0, 4), max_size=200), num_bins=st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_bins_differ_by_at_most_one_document_in_every_category_and_in_total(categories, num_bins):
    categories = np.array(categories, np.int32)
    bins = assign_bins(categories, num_bins)
    assert len(bins) == len(categories)
    for chosen in [np.ones(len(categories), bool), *(categories == category for category in range(5))]:
        sizes = np.bincount(bins[chosen], minlength=num_bins)
        assert len(sizes) == num_bins
        assert sizes.max() - sizes.min() <= 1


@given(
    lengths=st.lists(st.integers(1, 90), min_size=100, max_size=400),
    num_bins=st.integers(1, 6),
    num_categories=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_filling_the_last_rows_keeps_the_mixture_and_leaves_less_room(lengths, num_bins, num_categories):
    lengths = np.array(lengths)
    categories = (np.arange(len(lengths)) * 7 % num_categories).astype(np.int32)
    dealt = assign_bins(categories, num_bins)
    filled = fill_last_rows(dealt, categories, lengths, num_bins, 100)
    for category in range(num_categories):
        counts = [np.bincount(bins[categories == category], minlength=num_bins).tolist() for bins in (dealt, filled)]
        assert counts[0] == counts[1]
    totals = np.bincount(dealt, weights=lengths, minlength=num_bins)
    if num_bins > 1 and num_categories == 1 and totals.min() > 2000:  # enough documents to find a pair in every bin
        room = -np.bincount(filled, weights=lengths, minlength=num_bins)[:-1] % 100
        assert room.max() <= 20
