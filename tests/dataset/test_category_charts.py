"""Categories in charts: the largest ones apart, the others summed, every name readable."""

import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from colossal_llama.dataset.category_charts import (
    MOST_BARS,
    SHOWN_CATEGORIES,
    choose_categories,
    draw_buckets,
    draw_totals,
)


@pytest.mark.parametrize("count", [1, 2, 9, 10, SHOWN_CATEGORIES, SHOWN_CATEGORIES + 1, 400])
def test_the_largest_are_shown_and_the_others_summed(count):
    tokens = np.random.default_rng(count).permutation(count) * 10 + 1
    shown = choose_categories([f"name {number}" for number in range(count)], tokens)
    sums = shown.sums(tokens)
    assert sums.sum() == tokens.sum()
    assert len(shown.labels) == min(count, SHOWN_CATEGORIES) == len(set(shown.labels)) == len(set(shown.colours))
    own = sums[:-1] if count > SHOWN_CATEGORIES else sums
    assert own.tolist() == sorted(tokens.tolist(), reverse=True)[: len(own)]
    if count > SHOWN_CATEGORIES:
        assert shown.labels[-1] == f"{count - SHOWN_CATEGORIES + 1} others"


def test_groups_order_what_is_shown():
    shown = choose_categories(["c", "b", "a"], np.array([3, 2, 1]), ["x", None, "x"])
    assert shown.labels == ("b", "a (x)", "c (x)")
    assert shown.sums(np.array([3, 2, 1])).tolist() == [2, 1, 3]


def test_names_that_no_font_can_draw_are_numbered():
    names = ["诗词", "English", "한국어", "русский", "a$x^2$", "_hidden", "tab\there", "诗词" * 40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        shown = choose_categories(names, np.arange(len(names), 0, -1))
        with matplotlib.rc_context({"font.family": list(shown.fonts)}):
            figure = Figure(layout="constrained")
            draw_totals(figure.subplots(), shown, np.arange(len(names), 0, -1))
            figure.canvas.draw()
    assert {name for name in names if name.isascii()}.isdisjoint(shown.replaced)
    assert len(set(shown.labels)) == len(names)
    assert set(shown.replaced.values()) <= set(shown.labels)


@pytest.mark.parametrize("buckets", [1, 2, 40, MOST_BARS, MOST_BARS + 1, 5000])
@pytest.mark.parametrize("as_shares", [False, True])
def test_bars_have_the_tokens_of_their_buckets(buckets, as_shares):
    tokens = np.random.default_rng(buckets).integers(1, 100, (3, buckets))
    shown = choose_categories(["a", "b", "c"], tokens.sum(axis=1))
    axes = Figure().subplots()
    draw_buckets(axes, shown, shown.sums(tokens), as_shares)
    bars = [[patch.get_height() for patch in container] for container in axes.containers]
    assert len(bars[0]) <= MOST_BARS
    heights = np.sum(bars, axis=0)
    if as_shares:
        assert heights == pytest.approx(np.full(len(heights), 100))
    else:
        widths = np.round([patch.get_width() / (1 if len(heights) > 40 else 0.82) for patch in axes.containers[0]])
        assert (heights * widths).sum() == pytest.approx(tokens.sum())
