"""Steps whose loss or gradient is no number: the weights stay as they are, the rows are written down, and too many in a row end the run.

Every plugin computes the norm of all gradients, over all ranks, before its inner AdamW changes a
weight. There the update is refused (`engine.optimizer_step`): on every rank alike, since the norm is
the same number everywhere, and without a pass of our own over the gradients. A step that fp16's
loss scaler leaves out because a scaled gradient overflowed is not a bad one.
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
from colossal_llama.training.distributed.consensus import AgreedError
from colossal_llama.utils.console import is_rank_zero, log_rank_zero

RECORD = "bad_steps.jsonl"


def finite(value: float | None) -> float | None:
    """A loss or gradient norm if it is a number, else None, which JSON can hold."""
    return value if value is not None and math.isfinite(value) else None


@dataclass
class BadSteps:
    """Keeps count of bad steps and writes them down, one a line."""

    record: Path | None
    """`SAVE_DIR/bad_steps.jsonl`; None: they are not written down (a benchmark)."""
    reader: RowReader
    most: int
    """So many one after the other end the run."""
    in_a_row: int = 0
    _last: str = ""

    @property
    def are_too_many(self) -> bool:
        """Whether the run must end, which `end_if_too_many` does."""
        return self.in_a_row >= self.most

    def watch(self, step: int, loss: float, gradient_norm: float | None, micro_batches: Sequence[MicroBatch]) -> bool:
        """Looks at a finished step, on every rank; whether it was bad, so that its update was left out.

        Args:
            step: its number, from 1.
            loss, gradient_norm: over all ranks.
            micro_batches: this rank's.
        """
        # A norm that the plugin does not give is no cause for complaint.
        if math.isfinite(loss) and (gradient_norm is None or math.isfinite(gradient_norm)):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        rows = self._rows_of_all_ranks(micro_batches)
        self._last = (
            f"step {step}: the loss is {loss}, the gradient norm {gradient_norm}; the weights were left as they were"
        )
        where = ""
        if self.record is not None:
            where = f" are in {self.record}, the first of them {_place(rows)}"
            if is_rank_zero():
                self._write({"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "rows": rows})
        log_rank_zero(f"{self._last}. Its {len(rows)} rows{where or ' are random ones'}")
        return True

    def end_if_too_many(self) -> None:
        """Ends the run, on all ranks, after the last bad step that is put up with.

        Raises:
            AgreedError: it is reached.
        """
        if not self.are_too_many:
            return
        times = f"{self.in_a_row} such steps one after the other" if self.in_a_row > 1 else "such a step"
        raise AgreedError(
            f"{self._last}. --max_bad_steps {self.most} puts an end to the run after {times}; nothing was saved after "
            "it, checkpoints "
            "are of earlier steps. Usual causes: --lr too high, weights or rows that are no numbers, or fp16 overflow "
            "(try --mixed_precision bf16)"
        )

    def _rows_of_all_ranks(self, micro_batches: Sequence[MicroBatch]) -> list[dict[str, Any]]:
        mine = [self.reader.locate(sample) for batch in micro_batches for sample in batch.sample_ids]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        # Ranks that share a batch name the same rows.
        places = dict.fromkeys(place for places in everyone for place in places)
        return [{"part": str(part), "row": row} for part, row in places]

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False)
        try:
            with self.record.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            log_rank_zero(f"WARNING: {self.record} could not be written ({error.strerror}); it lacks {line}")


def _place(rows: Sequence[dict[str, Any]]) -> str:
    return f"row {rows[0]['row']} of {rows[0]['part']}" if rows else "none"
