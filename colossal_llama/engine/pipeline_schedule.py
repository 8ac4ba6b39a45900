"""Pipeline schedule: one forward, one backward (1F1B) over micro-batches of any shapes.

2 stages, 4 micro-batches      stage 0:  F0 F1 B0 F2 B1 F3 B2    B3
                               stage 1:     F0 B0 F1 B1 F2 B2 F3 B3

1F1B is the schedule of PipeDream-Flush (Narayanan et al., https://arxiv.org/abs/2006.09503).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.pipeline.schedule import OneForwardOneBackwardSchedule


@dataclass(frozen=True)
class PipelineInputs:
    """Micro-batches that a pipeline processes in one optimizer step."""

    shapes: Sequence[tuple[int, ...]]
    """(rows, length) of each micro-batch, the same on every stage."""
    inputs: Iterator[dict[str, torch.Tensor]]
    """The model's arguments for each, computed when its turn comes."""


class VariableShapeSchedule(OneForwardOneBackwardSchedule):
    """ColossalAI's 1F1B over any number of micro-batches of any shapes.

    The original slices one tensor of rows into equal micro-batches: all have the same rows and
    length, there are no fewer of them than stages, and inputs that are no slices of rows
    (`cu_seqlens`) cannot be passed.
    """

    def load_batch(self, data_iter: PipelineInputs, device: torch.device | None = None) -> None:
        """Takes a step's inputs instead of an iterator over batches."""
        self.num_microbatches = len(data_iter.shapes)
        self._inputs = data_iter.inputs
        # What an evaluation receives requires no gradient.
        metadata = set(data_iter.shapes), torch.is_grad_enabled()
        self.enable_metadata_cache = len(metadata[0]) == 1
        if not self.enable_metadata_cache or metadata != getattr(self, "_last_metadata", None):
            # Stages send each other the metadata of their tensors once, then cache it; all of them
            # clear the cache at the same step.
            self.send_tensor_metadata = self.send_grad_metadata = True
            self.tensor_metadata_recv = self.grad_metadata_recv = None
        self._last_metadata = metadata

    def load_micro_batch(self) -> dict[str, Any]:
        """The next micro-batch's arguments, on this process's device already."""
        return next(self._inputs)
