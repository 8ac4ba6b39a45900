"""Benchmark (`train.py --benchmark`): the whole training step on random rows, without saving."""

import json
from pathlib import Path

import numpy as np

from colossal_llama.dataset.dummy_dataset import random_rows
from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_facts import PartFacts

WARM_UP_STEPS = 3
"""Steps left out of the medians: kernels are compiled and tuned in them."""


def random_part(rows: int, length_tokens: int, vocabulary: int) -> Part:
    """Builds a part of random full rows, in memory.

    Args:
        rows: their number.
        length_tokens: of each row.
        vocabulary: size of the tokenizer's vocabulary.
    """
    return Part(
        path=Path("random rows"),
        rows=random_rows(rows, length_tokens, vocabulary),
        facts=PartFacts(
            kind="pretrain",
            fingerprint=f"random rows {rows} {length_tokens} {vocabulary}",
            tokens=rows * length_tokens,
            max_length=length_tokens,
        ),
        categories=(),
    )


def speed(metrics_file: Path) -> dict[str, float | int | None]:
    """Takes the medians of a run's metrics over its steps after the warm-up.

    Args:
        metrics_file: the run's metrics.jsonl.

    Returns:
        Number of `steps` counted, and the medians of `tokens_per_s`, `step_s`,
        `model_flops_utilisation` and `peak_memory_gib`. A median is NaN without steps, and None
        where the device has no such figure.
    """
    entries = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    counted = [entry for entry in entries if "loss" in entry][WARM_UP_STEPS:]

    def median(name: str) -> float | None:
        values = [entry[name] for entry in counted]
        return None if None in values else float(np.median(values)) if values else float("nan")

    names = ("tokens_per_s", "step_s", "model_flops_utilisation", "peak_memory_gib")
    return {"steps": len(counted), **{name: median(name) for name in names}}


def describe(figures: dict[str, float | int | None]) -> str:
    """Formats the figures of `speed` as one line."""
    if not figures["steps"]:
        return f"no step is left after {WARM_UP_STEPS} of warm-up: raise --num_samples"
    shown = [f"{figures['tokens_per_s']:,.0f} tokens/s", f"{figures['step_s']:.3f} s a step"]
    if figures["model_flops_utilisation"] is not None:
        shown.append(f"{figures['model_flops_utilisation']:.1%} of the peak FLOPs")
    if figures["peak_memory_gib"] is not None:
        shown.append(f"{figures['peak_memory_gib']:.1f} GiB peak memory")
    return f"{', '.join(shown)} (median of {figures['steps']} steps after {WARM_UP_STEPS} of warm-up)"
