"""Non-finite steps, whose loss or gradient norm is NaN or Inf: recorded, and limited in a row.

The update of such a step is refused, on every rank alike (`engine.optimizer_step`). A step that the
loss scaler of fp16 skips because a scaled gradient overflowed is not a non-finite step.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from colossal_llama.dataset.collator import MicroBatch
from colossal_llama.dataset.loader import RowReader
from colossal_llama.training.distributed.consensus import CollectiveError
from colossal_llama.utils.console import is_rank_zero, log_rank_zero


def finite(value: float | None) -> float | None:
    """A finite loss or gradient norm unchanged; None for NaN and Inf, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


@dataclass
class NonFiniteSteps:
    """Counts non-finite steps and records them, one a line."""

    record: Path | None
    """`SAVE_DIR/bad_steps.jsonl`; None: they are not recorded (a benchmark)."""
    reader: RowReader
    limit: int
    """Steps in a row that end the run."""
    in_a_row: int = 0
    _last: str = ""

    @property
    def limit_reached(self) -> bool:
        """True when the run must end, which `raise_if_limit_reached` does."""
        return self.in_a_row >= self.limit

    def observe(self, step: int, loss: float, gradient_norm: float | None, micro_batches: Sequence[MicroBatch]) -> bool:
        """Records a finished step if it was not finite, and counts it; all ranks call it.

        Args:
            step: its number, from 1.
            loss: over all ranks.
            gradient_norm: over all ranks; None where the plugin computes none.
            micro_batches: this rank's.

        Returns:
            True when the step was not finite, so that its update was refused.
        """
        if math.isfinite(loss) and (gradient_norm is None or math.isfinite(gradient_norm)):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        rows = self._rows_of_all_ranks(micro_batches)
        self._last = f"step {step}: the loss is {loss}, the gradient norm {gradient_norm}; the weights were not changed"
        where = ""
        if self.record is not None:
            first = f"row {rows[0]['row']} of {rows[0]['part']}" if rows else "none"
            where = f" are in {self.record}, the first of them {first}"
            if is_rank_zero():
                entry = {"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "rows": rows}
                _append(self.record, entry)
        log_rank_zero(f"{self._last}. Its {len(rows)} rows{where or ' are random ones'}")
        return True

    def raise_if_limit_reached(self) -> None:
        """Ends the run, on all ranks, when the limit is reached.

        Raises:
            CollectiveError: it is reached.
        """
        if not self.limit_reached:
            return
        times = f"{self.in_a_row} such steps in a row" if self.in_a_row > 1 else "such a step"
        raise CollectiveError(
            f"{self._last}. --max_bad_steps {self.limit} ends the run after {times}; nothing was saved after it, "
            "checkpoints are of earlier steps. Usual causes: --lr too high, NaN or Inf in the weights, or overflow of "
            "fp16 (try --mixed_precision bf16)"
        )

    def _rows_of_all_ranks(self, micro_batches: Sequence[MicroBatch]) -> list[dict[str, Any]]:
        mine = [self.reader.locate(sample) for batch in micro_batches for sample in batch.sample_ids]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        # Ranks that share a batch name the same rows.
        positions = dict.fromkeys(position for theirs in everyone for position in theirs)
        return [{"part": str(part), "row": row} for part, row in positions]


def _append(record: Path, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, ensure_ascii=False)
    try:
        with record.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        log_rank_zero(f"WARNING: {record} could not be written ({error.strerror}); it lacks {line}")
