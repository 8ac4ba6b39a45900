"""Standard errors and the exact paired test, against their definitions."""

import math
import statistics
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.evaluation.statistics import PairedTest, Score, paired_test


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_the_standard_error_is_that_of_the_sample(answers):
    score = Score(sum(answers), len(answers))
    assert score.mean == pytest.approx(statistics.mean(map(int, answers)))
    expected = statistics.stdev(map(int, answers)) / math.sqrt(len(answers))
    assert score.standard_error == pytest.approx(expected, abs=1e-12)


def test_a_single_answer_has_no_standard_error():
    assert Score(1, 1).standard_error is None


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 3), (1, 7), (9, 2), (0, 12)])
def test_the_p_value_counts_all_outcomes_of_fair_coins(first, second):
    flips = first + second
    at_least_as_uneven = sum(
        abs(2 * sum(coins) - flips) >= abs(first - second) for coins in product((0, 1), repeat=flips)
    )
    assert PairedTest(100, first, second).p_value == float(Fraction(at_least_as_uneven, 2**flips))


def test_the_p_value_is_symmetric_and_falls_with_the_difference():
    values = [PairedTest(9_000, 2_000 + more, 2_000).p_value for more in (0, 10, 60, 120, 400)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
    assert PairedTest(9_000, 1_950, 2_000).p_value == PairedTest(9_000, 2_000, 1_950).p_value


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_difference_of_scores_is_that_of_the_questions_which_one_alone_has_right(answers):
    test = paired_test(answers)
    firsts, seconds = zip(*answers, strict=True)
    assert test.difference == pytest.approx(sum(firsts) / len(firsts) - sum(seconds) / len(seconds))
    assert test.questions == len(answers)
