"""Every bucket has the whole mixture."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare.buckets import assign_bins


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
