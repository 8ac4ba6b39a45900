"""Rows of the merged embeddings: by token, which rows of which models, and with which weights.

token        base      model (w 0.7)   row of the result
▁the         278       278             0.3 * base + 0.7 * model
<|im_end|>   –         32001           model's
你好          –         –               (a third model's)
padding      by row number, where the other models have no token there
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RowPlan:
    """Rows of the embeddings of the result, of `sources` models.

    Attributes:
        ids: int64 [sources, rows]: the row of each model, -1 for none.
        coefficients: float64 [sources, rows]: 0 where there is none.
        counts: for the report, see `plan_rows`.
    """

    ids: np.ndarray
    coefficients: np.ndarray
    counts: dict[str, Any]


@dataclass(frozen=True)
class Weighting:
    """Weights of the models.

    Attributes:
        weights: one for each model, without the base.
        has_base: True where the first source is the base.
    """

    weights: tuple[float, ...]
    has_base: bool

    def coefficients(self, has: Sequence[bool]) -> list[float]:
        """Factor of each source for a tensor or a row that those in `has` have.

        base + Σ wᵢ (modelᵢ - base) is computed as (1 - Σ wᵢ) base + Σ wᵢ modelᵢ. So a weight of 1
        gives a model's bits back, where the difference of two numbers would be rounded.

        What the base lacks has no difference. It is taken from the model that has it; of several,
        it is their mean by their weights above 0, or by equal ones.
        """
        models = has[1:] if self.has_base else has
        present = [weight if here else 0.0 for weight, here in zip(self.weights, models, strict=True)]
        if self.has_base and has[0]:
            return [1 - math.fsum(present), *present]
        if self.has_base or not all(has):
            present = [max(0.0, weight) for weight in present]
            if not any(present):
                present = [float(here) for here in models]
            total = math.fsum(present)
            present = [weight / total for weight in present]
        return [0.0, *present] if self.has_base else present


def plan_rows(
    vocabularies: Mapping[str, Mapping[str, int]],
    rows: Mapping[str, int],
    target: Mapping[str, int],
    target_rows: int,
    weighting: Weighting,
) -> RowPlan:
    """Matches the rows of all models with those of the result.

    Args:
        vocabularies: token → id of each source, by its name, in the order of the arithmetic.
        rows: of the embeddings of each source.
        target: token → id of the result.
        target_rows: rows of the result's embeddings.
        weighting: of the models.
    """
    ids = np.full((len(vocabularies), target_rows), -1, np.int64)
    padding = np.ones(target_rows, bool)
    padding[list(target.values())] = False
    for number, (name, vocabulary) in enumerate(vocabularies.items()):
        for token, token_id in target.items():
            ids[number, token_id] = vocabulary.get(token, -1)
        without_token = np.ones(rows[name], bool)
        without_token[list(vocabulary.values())] = False
        common = min(target_rows, rows[name])
        same = np.flatnonzero(padding[:common] & without_token[:common])
        ids[number, same] = same
    patterns, kind_of_row, counted = np.unique(ids.T >= 0, axis=0, return_inverse=True, return_counts=True)
    by_pattern = np.array([weighting.coefficients(pattern.tolist()) for pattern in patterns])
    coefficients = by_pattern[kind_of_row.reshape(-1)].T.copy()
    counts = _counts(list(vocabularies), patterns, np.asarray(counted), weighting)
    counts |= _by_source(vocabularies, target) | {"padding": int(padding.sum()), "total": target_rows}
    return RowPlan(ids, coefficients, counts)


def _counts(names: list[str], patterns: np.ndarray, counted: np.ndarray, weighting: Weighting) -> dict[str, Any]:
    """Counts rows by what they are made of."""
    added, mean, only = 0, 0, Counter[str]()
    for pattern, number in zip(patterns.tolist(), counted.tolist(), strict=True):
        if sum(pattern) == 1:
            only[names[pattern.index(True)]] += number
        elif pattern[0] if weighting.has_base else all(pattern):
            added += number
        else:
            mean += number
    return {"combined": added, "only_in": dict(only), "mean_without_base": mean}


def _by_source(vocabularies: Mapping[str, Mapping[str, int]], target: Mapping[str, int]) -> dict[str, Any]:
    """Counts tokens of each source that have another id in the result, or none."""
    moved = {
        name: sum(token in target and target[token] != token_id for token, token_id in vocabulary.items())
        for name, vocabulary in vocabularies.items()
    }
    left_out = {name: len(vocabulary.keys() - target.keys()) for name, vocabulary in vocabularies.items()}
    return {"moved": moved, "left_out": left_out}
