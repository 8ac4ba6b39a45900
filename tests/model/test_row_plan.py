"""Weights of rows that some models lack, and what a plan counts."""

import numpy as np
import pytest

from colossal_llama.model.merging.row_plan import Weighting, plan_rows


@pytest.mark.parametrize(
    ("weights", "has_base", "has", "expected"),
    [
        ((1.0,), True, (True, True), [0, 1]),
        ((0.5, -0.25), True, (True, True, True), [0.75, 0.5, -0.25]),
        ((0.5, -0.25), True, (True, False, True), [1.25, 0, -0.25]),  # a model that lacks a token changes nothing
        ((0.5, 2.0), True, (True, False, False), [1, 0, 0]),
        ((-1.0, 3.0), True, (False, True, False), [0, 1, 0]),  # of one model alone, whatever its weight
        ((0.0, 3.0), True, (False, True, False), [0, 1, 0]),
        ((1.0, 3.0, -2.0), True, (False, True, True, True), [0, 0.25, 0.75, 0]),
        ((-1.0, 0.0), True, (False, True, True), [0, 0.5, 0.5]),
        ((2.0, -1.0), False, (True, True), [2, -1]),
        ((2.0, -1.0), False, (False, True), [0, 1]),
        ((0.2, 0.3, 0.5), False, (True, True, False), [0.4, 0.6, 0]),
    ],
)
def test_the_weights_of_a_row_by_who_has_it(weights, has_base, has, expected):
    assert Weighting(weights, has_base).coefficients(list(has)) == pytest.approx(expected)


def test_a_plan_by_hand():
    base = {"a": 0, "b": 1, "c": 2}
    model = {"c": 0, "a": 1, "d": 3}  # id 2 has no token
    plan = plan_rows(
        {"base": base, "model": model},
        {"base": 6, "model": 4},
        {"a": 0, "b": 1, "c": 2, "d": 3},
        6,
        Weighting((0.5,), has_base=True),
    )
    # the base's padding at 3 is no row of d; at 4 and 5 the base alone has padding
    assert plan.ids.tolist() == [[0, 1, 2, -1, 4, 5], [1, -1, 0, 3, -1, -1]]
    np.testing.assert_allclose(plan.coefficients, [[0.5, 1, 0.5, 0, 1, 1], [0.5, 0, 0.5, 1, 0, 0]])
    assert plan.counts["only_in"] == {"base": 3, "model": 1}
    assert plan.counts["padding"] == 2
    assert plan.counts["combined"] == 2
    assert plan.counts["moved"] == {"base": 0, "model": 2}
    assert plan.counts["left_out"] == {"base": 0, "model": 0}
