"""Runs that benchmarks/real_model.py compares, their budgets, and what their curves say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FROZEN_SHARE = 4 / 6
"""Of a training step's FLOPs where all weights but embeddings are frozen: they get no gradient."""
_FORWARD_SHARE = 2 / 6


@dataclass(frozen=True)
class Run:
    """A way to train.

    Attributes:
        name: of the run.
        vocabulary: `source`, `learned`, or `generic`: pieces that were not learned on the corpus.
        start: `source`, or how init_model.py fills the new rows.
        new_row_lr_ratio: peak learning rate of the new rows over that of all others.
        rows_first: share of the FLOPs in which the new rows alone are trained, at first.
    """

    name: str
    vocabulary: str
    start: str
    new_row_lr_ratio: float = 1.0
    rows_first: float = 0.0


UNEXPANDED = Run("unexpanded", "source", "source")
RUNS = {
    run.name: run
    for run in (
        UNEXPANDED,
        Run("mean", "learned", "mean"),
        Run("mean_x10", "learned", "mean", new_row_lr_ratio=10.0),
        Run("distilled_x10", "learned", "distilled", new_row_lr_ratio=10.0),
        Run("generic", "generic", "mean"),
        Run("rows_first", "learned", "mean", rows_first=0.05),
    )
}


@dataclass(frozen=True)
class Price:
    """Price of a step.

    Attributes:
        flops_per_token: of training all weights.
        tokens_per_step: mean over the prepared rows.
        bytes_per_token: mean over the training texts.
    """

    flops_per_token: float
    tokens_per_step: float
    bytes_per_token: float

    def flops(self, steps: float, share: float = 1.0) -> float:
        """FLOPs of some steps; `share` of a whole step's."""
        return steps * self.tokens_per_step * self.flops_per_token * share

    def steps_for(self, flops: float, share: float = 1.0) -> int:
        """The most steps that cost no more than `flops`, at least one.

        >>> price = Price(flops_per_token=6.0, tokens_per_step=100.0, bytes_per_token=4.0)
        >>> price.steps_for(1900.0), price.steps_for(1900.0, share=0.5)
        (3, 6)
        """
        return max(1, int(flops / self.flops(1, share) + 1e-9))


def distillation_flops(tokens: float, source: Price, expanded: Price) -> float:
    """FLOPs of a distillation of `tokens` tokens of the expanded tokenizer.

    The frozen model runs forward and backward to its rows, the source model forward, on the same
    text in its own tokens.

    >>> source, expanded = Price(60.0, 100.0, 2.0), Price(66.0, 100.0, 3.0)
    >>> distillation_flops(10.0, source, expanded)  # 10 x 66 x 4/6 + 15 x 60 x 2/6
    740.0
    """
    source_tokens = tokens * expanded.bytes_per_token / source.bytes_per_token
    return tokens * expanded.flops_per_token * FROZEN_SHARE + source_tokens * source.flops_per_token * _FORWARD_SHARE


@dataclass(frozen=True)
class Point:
    """Validation during a run: what had been spent, and nats per byte by category."""

    step: float
    flops: float
    text_bytes: float
    losses: Mapping[str, float]


def curve_of(
    entries: Sequence[Mapping[str, Any]], price: Price, nats_per_loss: Mapping[str, float], before: Point, share: float
) -> list[Point]:
    """Reads the validations in the metrics of a run.

    Args:
        entries: of metrics.jsonl.
        price: of a step.
        nats_per_loss: held-out tokens per byte by category, by which a loss is nats per byte.
        before: what the run began with.
        share: of a whole step's FLOPs.

    >>> entry = {"step": 2, "tokens_seen": 100, "eval_loss_by_category": {"a": 3.0, "b": None}}
    >>> begun, price = Point(1, 5.0, 7.0, {}), Price(6.0, 50.0, 4.0)
    >>> curve_of([{"step": 1}, entry], price, {"a": 0.5, "b": 0.5}, begun, 1.0)
    [Point(step=3, flops=605.0, text_bytes=407.0, losses={'a': 1.5})]
    """
    return [
        Point(
            before.step + entry["step"],
            before.flops + entry["tokens_seen"] * price.flops_per_token * share,
            before.text_bytes + entry["tokens_seen"] * price.bytes_per_token,
            {
                name: loss * nats_per_loss[name]
                for name, loss in entry["eval_loss_by_category"].items()
                if loss is not None
            },
        )
        for entry in entries
        if entry.get("eval_loss_by_category")
    ]


def first_at(curve: Sequence[Point], category: str, loss: float) -> Point | None:
    """First point where a curve is as low as a loss, between two validations; None if it never is.

    >>> curve = [Point(1, 10, 100, {"a": 3.0}), Point(2, 20, 200, {"a": 1.0})]
    >>> first_at(curve, "a", 2.5).flops, first_at(curve, "a", 0.5)
    (12.5, None)
    """
    if curve and curve[0].losses[category] <= loss:
        return curve[0]
    for left, right in pairwise(curve):
        if right.losses[category] <= loss:
            high, low = left.losses[category], right.losses[category]
            return _between(left, right, (high - loss) / (high - low))
    return None


def at_text(curve: Sequence[Point], text_bytes: float) -> Point | None:
    """Point of a curve where it had read so much text, between two validations; None if outside it.

    >>> curve = [Point(1, 10, 100, {"a": 3.0}), Point(2, 20, 200, {"a": 1.0})]
    >>> at_text(curve, 150.0).losses, at_text(curve, 300.0)
    ({'a': 2.0}, None)
    """
    for left, right in pairwise(curve):
        if left.text_bytes <= text_bytes <= right.text_bytes:
            return _between(left, right, (text_bytes - left.text_bytes) / (right.text_bytes - left.text_bytes))
    return None


def _between(left: Point, right: Point, share: float) -> Point:
    def mixed(first: float, second: float) -> float:
        return first + share * (second - first)

    return Point(
        mixed(left.step, right.step),
        mixed(left.flops, right.flops),
        mixed(left.text_bytes, right.text_bytes),
        {name: mixed(loss, right.losses[name]) for name, loss in left.losses.items()},
    )
