"""Answers in generated texts."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.evaluation.answers import chosen_letter, is_same_number, is_target, last_number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        (" (B) because A is wrong", "B"),
        ("The answer is (C)\n\nQuestion: A", "C"),
        ("Because: D.", "D"),  # the B has a lower-case letter behind it
        ("vitaminA, so C", "C"),
        ("答案是B。", "B"),
        ("D\n\n问题： A", "D"),
        ("E or F", None),
        ("abcd", None),
        ("", None),
        ("AB", "A"),
    ],
)
def test_a_letter_stands_alone(text, letter):
    assert chosen_letter(text, ("A", "B", "C", "D")) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 + 6 = 12\nThe answer is 12.", "12"),
        ("The answer is 3. No, the answer is $1,234.50 in 7 days", "1234.50"),
        ("so 5 and then 18 eggs", "18"),
        ("The answer is unknown; 4 or 9", "4"),
        ("9 is what I found. The answer is clear", "9"),
        ("The Answer Is -7", "-7"),
        ("It is -$5 then", "-5"),
        ("It is $-5 then", "-5"),
        ("10-3", "3"),
        ("the answer is −2", "-2"),
        ("1,2,3", "3"),
        ("1,234,567 people", "1234567"),
        ("about .5", ".5"),
        ("no number", None),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert last_number(text) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_a_written_number_is_read(number):
    found = last_number(f"First 17. The answer is {number:,}.")
    assert found is not None
    assert Decimal(found) == number
    assert is_same_number(found, str(number))


def test_numbers_are_compared_by_value():
    assert is_same_number("70.00", "70")
    assert is_same_number("1200", "1,200")
    assert not is_same_number("70.5", "70")
    assert not is_same_number(None, "70")


@pytest.mark.parametrize(
    ("text", "target", "is_right"),
    [
        (" Paris, of course", "Paris", True),
        ("Parisian", "Paris", False),
        ("42", "4", False),
        ("3.5", "3", False),
        ("3. Then", "3", True),
        ("3, 4", "3", True),
        ("北京是首都", "北京", True),
        ("Москва.", "Москва", True),
        ("Москвариум", "Москва", False),
        ("", "x", False),
        ("x", "", False),
    ],
)
def test_a_target_begins_the_text_and_ends_with_a_word(text, target, is_right):
    assert is_target(text, target) == is_right
