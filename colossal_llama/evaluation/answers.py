"""Answers in generated texts: a letter, a number. Imports no torch."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(
    r"((?<![\w)])[-−](?=[$0-9.]))?\$?([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
"""A number with its sign, which `10-3` has none of, and thousands separators."""
_ANSWER_IS = re.compile(r"answer is", re.IGNORECASE)


def chosen_letter(text: str, letters: Sequence[str]) -> str | None:
    """Returns the first capital letter among the choices that begins no word; None without one.

    No lower-case letter stands directly before or behind it.

    >>> chosen_letter("An answer: (C)", ["A", "B", "C", "D"])
    'C'
    """
    match = re.search(f"(?<![a-z])[{re.escape(''.join(letters))}](?![a-z])", text)
    return match[0] if match else None


def last_number(text: str) -> str | None:
    """Returns the first number behind the last `answer is`, else the last number; None without any.

    Thousands separators and a dollar sign are taken off.

    >>> last_number("5 * 3 = 15. The answer is $1,500. So 2 more.")
    '1500'
    """
    numbers = list(_NUMBER.finditer(text))
    behind = max((match.end() for match in _ANSWER_IS.finditer(text)), default=len(text))
    match = next((number for number in numbers if number.start() >= behind), numbers[-1] if numbers else None)
    return None if match is None else f"{'-' if match[1] else ''}{match[2].replace(',', '')}"


def is_same_number(answer: str | None, label: str) -> bool:
    """Compares two numbers by value: `70.00` is `70`."""
    try:
        return answer is not None and Decimal(answer.replace(",", "")) == Decimal(label.replace(",", ""))
    except InvalidOperation:
        return False


def is_target(text: str, target: str) -> bool:
    """Tells if a generated text begins with a target, blanks around both aside.

    The target ends where a word or a number ends: `42` does not begin with `4`, nor `3.5` with `3`.
    Scripts that write no spaces have no such ends.

    >>> is_target(" Paris, of course", "Paris"), is_target("Parisian", "Paris")
    (True, False)
    >>> is_target("北京是首都", "北京")
    True
    """
    text, target = text.strip(), target.strip()
    if not target or not text.startswith(target):
        return False
    rest = text[len(target) :]
    if target[-1].isdecimal() and re.match(r"[.,]?\d", rest):
        return False
    return not (rest and _is_of_word(target[-1]) and _is_of_word(rest[0]))


def _is_of_word(sign: str) -> bool:
    """True for digits, and letters of scripts with upper and lower case."""
    return sign.isdecimal() or (sign.isalpha() and unicodedata.category(sign) != "Lo")
