"""Figures of a text's lines: their length, beginnings, ends and repetitions."""

import numpy as np

from colossal_llama.cleaning.character_classes import SPACE, TERMINAL
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.rules.character_figures import Figures, shares
from colossal_llama.cleaning.rules.repeated import find_occurrences
from colossal_llama.cleaning.text_batch import IDEOGRAPHIC, RUN_ON, Spans, TextBatch

_BULLETS = np.array([ord(mark) for mark in "•‣▪▫●○■□◆◇►▶▷·・※★☆"], np.uint32)
_MARKS_BEFORE_SPACE = np.array([ord(mark) for mark in "-*+–"], np.uint32)
_CLOSING = np.array([ord(mark) for mark in "\"'”’»)]}）］】〉》」』*_"], np.uint32)
_CLOSING_MARKS = 3
"""Closing quotes and brackets that may follow the end of a sentence: `。**」）`."""


def line_length(batch: TextBatch, settings: RuleSettings) -> Figures:
    """Mean length of lines, and share of short ones."""
    values = settings["line_length"].values
    is_ideographic = batch.kinds == IDEOGRAPHIC
    lines = batch.lines
    means = shares(lines.sums(lines.lengths), lines.counts)
    shortest = np.where(is_ideographic, values["short_line_ideographs"], values["short_line"])
    return {
        "mean_line_length": np.where(is_ideographic, np.nan, means),
        "mean_line_ideographs": np.where(is_ideographic, means, np.nan),
        "short_lines": shares(lines.sums(lines.lengths <= shortest[lines.texts]), lines.counts),
    }


def line_ends(batch: TextBatch, _: RuleSettings) -> Figures:
    """Shares of lines that begin with a bullet, end with an ellipsis or a terminal mark."""
    lines = batch.lines
    return {
        "list_lines": shares(lines.sums(_begins_item(batch)), lines.counts),
        "ellipsis_lines": shares(lines.sums(_ends_with_ellipsis(batch)), lines.counts),
        "terminal_lines": np.where(
            batch.kinds == RUN_ON, np.nan, shares(lines.sums(_ends_sentence(batch)), lines.counts)
        ),
    }


def _begins_item(batch: TextBatch) -> np.ndarray:
    starts = batch.lines.starts
    codes = batch.codes[starts]
    is_before_space = (batch.classes[starts + 1] & SPACE) != 0  # a newline follows each text
    return np.isin(codes, _BULLETS) | (np.isin(codes, _MARKS_BEFORE_SPACE) & is_before_space)


def _ends_with_ellipsis(batch: TextBatch) -> np.ndarray:
    lines = batch.lines
    last = batch.codes[lines.ends - 1]
    is_repeated = np.isin(last, np.array([ord("."), ord("。")], np.uint32)) & (lines.lengths >= 3)
    for distance in (2, 3):
        is_repeated &= batch.codes[np.maximum(lines.ends - distance, 0)] == last
    return (last == ord("…")) | is_repeated


def _ends_sentence(batch: TextBatch) -> np.ndarray:
    lines = batch.lines
    last = lines.ends - 1
    for _ in range(_CLOSING_MARKS):
        last = last - (np.isin(batch.codes[last], _CLOSING) & (last > lines.starts))
    return (batch.classes[last] & TERMINAL) != 0


def line_repetition(batch: TextBatch, _: RuleSettings) -> Figures:
    """Shares of lines and paragraphs that have occurred before, and of the characters in them.

    Those without a word do not count: rules, fences of code and lone brackets are syntax.
    """
    figures: Figures = {}
    for name, spans in (("line", batch.lines), ("paragraph", batch.paragraphs)):
        spans = spans.only(_has_words(batch, spans))
        is_repeated = _is_repeated(batch, spans)
        figures[f"duplicate_{name}s"] = shares(spans.sums(is_repeated), spans.counts)
        figures[f"duplicate_{name}_characters"] = shares(
            spans.sums(is_repeated * spans.lengths), spans.sums(spans.lengths)
        )
    return figures


def _has_words(batch: TextBatch, spans: Spans) -> np.ndarray:
    starts = batch.words.starts
    return np.searchsorted(starts, spans.ends) > np.searchsorted(starts, spans.starts)


def _is_repeated(batch: TextBatch, spans: Spans) -> np.ndarray:
    is_repeated = np.zeros(len(spans.starts), bool)
    hashes = batch.hashes(spans)
    is_repeated[find_occurrences(hashes, np.arange(len(hashes)), spans.texts).repeated] = True
    return is_repeated
