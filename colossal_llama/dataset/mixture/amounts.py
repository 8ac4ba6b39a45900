"""Amounts as people write them: shares, numbers of tokens, epochs. All are exact fractions."""

import argparse
import re
from fractions import Fraction

MOST_TOKENS = 10**15
"""More than anybody has; products of it with a number of buckets stay whole in 64 bits."""
MOST_EPOCHS = 10**6
_NUMBER = re.compile(r"\d+(_\d+)*(\.\d+)?|\.\d+", re.ASCII)
_RATIO = re.compile(r"(\d+)/(\d+)", re.ASCII)
_TOKENS = re.compile(
    r"(?P<number>\d+(_\d+)*(\.\d+)?|\.\d+)(e\+?(?P<power>\d{1,2}))? ?(?P<unit>[KMBT]?)", re.ASCII | re.I
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LONGEST_TEXT = 40  # a fraction of a million digits takes minutes


def parse_share(text: str) -> Fraction:
    """Converts `25%`, `0.25` or `1/4` to a share.

    Raises:
        ValueError: with what is wrong and how a share is written.
    """
    is_percent = text.endswith("%")
    number, ratio = text.removesuffix("%").strip(), _RATIO.fullmatch(text)
    if len(text) <= _LONGEST_TEXT and ratio and int(ratio[2]):
        share = Fraction(int(ratio[1]), int(ratio[2]))
    elif len(text) <= _LONGEST_TEXT and _NUMBER.fullmatch(number):
        share = Fraction(number.replace("_", "")) / (100 if is_percent else 1)
    else:
        raise ValueError(f"{text!r} is no share: write 25%, 0.25 or 1/4")
    if share > 1:
        hint = f": write {text}%" if not is_percent and share <= 100 else ""
        raise ValueError(f"{text!r} is more than all tokens{hint}")
    return share


def parse_tokens(text: str) -> int:
    """Converts `1.5B`, `300M`, `20k`, `1e9` or `1_000_000` to a number of tokens.

    Raises:
        ValueError: with what is wrong and how a number of tokens is written.
    """
    match = _TOKENS.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(f"{text!r} is not a number of tokens: write 1.5B, 300M, 20k or 1000000")
    tokens = Fraction(match["number"].replace("_", "")) * 10 ** int(match["power"] or 0) * _UNITS[match["unit"].upper()]
    if tokens.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of tokens")
    if tokens > MOST_TOKENS:
        raise ValueError(f"{text!r} is more than {MOST_TOKENS:,} tokens")
    return int(tokens)


def parse_epochs(text: str) -> Fraction:
    """Converts `2` or `1.5` to a number of epochs.

    Raises:
        ValueError: with what is wrong and how it is written.
    """
    if len(text) > _LONGEST_TEXT or not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of epochs: write 2 or 1.5")
    if (epochs := Fraction(text.replace("_", ""))) > MOST_EPOCHS:
        raise ValueError(f"{text!r} are more than {MOST_EPOCHS:,} epochs")
    return epochs


def total_tokens_argument(text: str) -> int:
    """Returns the number of tokens of `--total_tokens` (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: the text is none, or 0.
    """
    try:
        tokens = parse_tokens(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not tokens:
        raise argparse.ArgumentTypeError("0 tokens are no data")
    return tokens


def repeats_argument(text: str) -> Fraction:
    """Returns the number of epochs of `--max_repeats`, at least 1 (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: the text is none, or less than 1.
    """
    try:
        epochs = parse_epochs(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if epochs < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1: a category that is seen once has one epoch")
    return epochs


def percent(share: Fraction) -> str:
    """Formats a share in percent, with as many decimals as it needs, at most 4.

    >>> percent(Fraction(1, 4)), percent(Fraction(1, 3)), percent(Fraction(999, 1000))
    ('25%', '33.3333%', '99.9%')
    """
    return f"{float(100 * share):.4f}".rstrip("0").rstrip(".") + "%"


def short_number(number: float | Fraction) -> str:
    """Formats a count in a few characters.

    >>> [short_number(number) for number in (950, 12_345, 8_500_000_000)]
    ['950', '12.3K', '8.5B']
    """
    number = float(number)
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:,.0f}{unit}"
    return f"{number:,.0f}"
