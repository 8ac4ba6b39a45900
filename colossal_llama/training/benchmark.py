"""`train.py --benchmark`: the whole training step on random rows, without saving."""

import json
from pathlib import Path

import numpy as np

from colossal_llama.dataset.dummy_dataset import random_rows
from colossal_llama.dataset.part_reader import Part

WARM_UP_STEPS = 3
"""Left out of the figures: kernels are compiled and chosen in them."""


def random_part(rows: int, length_tokens: int, vocabulary: int) -> Part:
    """Random full rows in memory as a part.

    Args:
        rows: how many.
        length_tokens: of each.
        vocabulary: of the tokenizer.
    """
    return Part(
        path=Path("random rows"),
        rows=random_rows(rows, length_tokens, vocabulary),
        kind="pretrain",
        fingerprint=f"random rows {rows} {length_tokens} {vocabulary}",
        tokenizer_fingerprint=None,
        tokens=rows * length_tokens,
        max_length=length_tokens,
        categories=(),
    )


def speed(metrics_file: Path) -> dict[str, float | int | None]:
    """Medians over a run's steps after the warm-up.

    Args:
        metrics_file: the run's metrics.jsonl.

    Returns:
        `steps` that were counted, `tokens_per_s` and `step_s` (medians; NaN without steps),
            `model_flops_utilisation` and
        `peak_memory_gib` (None where the device has no such figure).
    """
    entries = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    counted = [entry for entry in entries if "loss" in entry][WARM_UP_STEPS:]

    def median(name: str) -> float | None:
        values = [entry[name] for entry in counted]
        return None if None in values else float(np.median(values)) if values else float("nan")

    names = ("tokens_per_s", "step_s", "model_flops_utilisation", "peak_memory_gib")
    return {"steps": len(counted), **{name: median(name) for name in names}}


def describe(figures: dict[str, float | int | None]) -> str:
    """One line of the figures of `speed`."""
    if not figures["steps"]:
        return f"no step is left after {WARM_UP_STEPS} of warm-up: raise --num_samples"
    words = [f"{figures['tokens_per_s']:,.0f} tokens/s", f"{figures['step_s']:.3f} s a step"]
    if figures["model_flops_utilisation"] is not None:
        words.append(f"{figures['model_flops_utilisation']:.1%} of the peak FLOPs")
    if figures["peak_memory_gib"] is not None:
        words.append(f"{figures['peak_memory_gib']:.1f} GiB at most")
    return f"{', '.join(words)} (median of {figures['steps']} steps after {WARM_UP_STEPS} of warm-up)"
