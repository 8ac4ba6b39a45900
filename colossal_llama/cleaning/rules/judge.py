"""Judges the texts of a batch by all rules about single documents, in a fixed order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.rules import character_figures, line_figures
from colossal_llama.cleaning.rules.character_figures import Figures
from colossal_llama.cleaning.rules.ngram_figures import ngram_repetition
from colossal_llama.cleaning.text_batch import TextBatch, make_batch

_MEASURES: Mapping[str, Callable[[TextBatch, RuleSettings], Figures]] = {
    "length": character_figures.length,
    "letters": character_figures.letters,
    "han": character_figures.han,
    "digits": character_figures.digits,
    "symbols": character_figures.symbols,
    "word_length": character_figures.word_length,
    "stop_words": character_figures.stop_words,
    "line_length": line_figures.line_length,
    "line_ends": line_figures.line_ends,
    "line_repetition": line_figures.line_repetition,
    "ngram_repetition": ngram_repetition,
}
DOCUMENT_RULES = tuple(_MEASURES)
"""Rules about single documents, in the order in which they are asked."""
_LIMITS = ("min", "max")
_BATCH_CHARACTERS = 1 << 18
"""The arrays of larger batches are new pages from the kernel each time: 10 ns a byte more."""


def measure(batch: TextBatch, settings: RuleSettings) -> dict[str, np.ndarray]:
    """Measures all figures of all rules, whether they are on or off.

    Returns:
        Figures by `RULE.FIGURE`, float64[texts]; NaN where a text has no such figure.
    """
    return {
        f"{rule}.{name}": np.asarray(figure, np.float64)
        for rule, measure_rule in _MEASURES.items()
        for name, figure in measure_rule(batch, settings).items()
    }


def judge_texts(texts: Iterable[str], settings: RuleSettings) -> list[Verdict | None]:
    """Judges texts, in batches of the best size; see `judge`.

    A very long text has a batch of its own: too long, it is dropped before more is measured.
    """
    verdicts: list[Verdict | None] = []
    batch: list[str] = []
    characters = 0
    for text in texts:
        if characters + len(text) > _BATCH_CHARACTERS:
            verdicts += judge(make_batch(batch), settings)
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    return verdicts + judge(make_batch(batch), settings)


def judge(batch: TextBatch, settings: RuleSettings) -> list[Verdict | None]:
    """Judges each text: the first limit that it breaks, or None.

    Rules are asked in the order of `DOCUMENT_RULES`, limits in that of `rules.yaml`. The n-grams,
    which take most of the time, are measured where no other rule has decided.
    """
    verdicts: list[Verdict | None] = [None] * len(batch.texts)
    is_open = np.ones(len(batch.texts), bool)
    for rule in DOCUMENT_RULES:
        if not settings[rule].on or not is_open.any():
            continue
        if rule == "ngram_repetition":
            figures = ngram_repetition(batch, settings, wanted=is_open)
        else:
            figures = _MEASURES[rule](batch, settings)
        for text, verdict in _broken_limits(rule, figures, settings[rule].values, is_open):
            verdicts[text] = verdict
            is_open[text] = False
    return verdicts


def _broken_limits(
    rule: str, figures: Figures, values: Mapping[str, Any], is_open: np.ndarray
) -> Iterator[tuple[int, Verdict]]:
    for key, limit in values.items():
        bound, _, name = key.partition("_")
        if bound not in _LIMITS or name not in figures:
            continue
        figure = figures[name]
        is_broken = figure < limit if bound == "min" else figure > limit  # NaN breaks no limit
        for text in np.flatnonzero(is_open & is_broken):
            yield int(text), Verdict(rule, float(figure[text]), f"{key} {limit}")
