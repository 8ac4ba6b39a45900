"""The pipeline's schedule: one forward, one backward, over a step's micro-batches as the loader gives them.

2 stages, 4 micro-batches      stage 0:  F0 F1 B0 F2 B1 F3 B2    B3
                               stage 1:     F0 B0 F1 B1 F2 B2 F3 B3
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.pipeline.schedule import OneForwardOneBackwardSchedule

from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.training.arguments import TrainingArguments


@dataclass(frozen=True)
class StepInputs:
    """What a pipeline runs through in one optimizer step."""

    shapes: Sequence[tuple[int, ...]]
    """(rows, length) of each micro-batch, the same on every stage."""
    inputs: Iterator[dict[str, torch.Tensor]]
    """The model's arguments for each, made when its turn comes."""


class StepSchedule(OneForwardOneBackwardSchedule):
    """ColossalAI's 1F1B over micro-batches of any shape and number.

    The original cuts one tensor of rows into equal slices: every micro-batch has the same rows and
    length, there are no fewer of them than stages, and what is not a slice of rows (the boundaries
    of documents) cannot come along.
    """

    def load_batch(self, data_iter: StepInputs, device: torch.device | None = None) -> None:
        """Takes a step's inputs in place of an iterator over batches."""
        self.num_microbatches = len(data_iter.shapes)
        self._inputs = data_iter.inputs
        sent = set(data_iter.shapes), torch.is_grad_enabled()  # what is received in an evaluation wants no gradient
        self.enable_metadata_cache = len(sent[0]) == 1
        if not self.enable_metadata_cache or sent != getattr(self, "_sent_before", None):
            # Stages tell each other what they send, then remember it; all of them forget at the
            # same step.
            self.send_tensor_metadata = self.send_grad_metadata = True
            self.tensor_metadata_recv = self.grad_metadata_recv = None
        self._sent_before = sent

    def load_micro_batch(self) -> dict[str, Any]:
        """The next micro-batch's arguments, on this process's device already."""
        return next(self._inputs)


def step_geometry(arguments: TrainingArguments, data_parallel_size: int) -> StepGeometry:
    """Rows of a step. A pipeline takes all of a rank's, accumulated ones included, in one run, `--microbatch_size` at a time."""
    if arguments.pp == 1:
        return StepGeometry(arguments.micro_batch_size, arguments.accumulation_steps, data_parallel_size)
    turns = arguments.accumulation_steps * arguments.micro_batch_size // arguments.microbatch_size
    return StepGeometry(arguments.microbatch_size, turns, data_parallel_size)
