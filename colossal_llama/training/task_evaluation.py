"""Benchmark questions that the model answers at intervals of its training (`--eval_tasks`).

Prompts and scores are those of evaluate.py; only the batches and the way through the model are
training's. A question is one row of a micro-batch, which has no more tokens than a step's. No
random number is drawn: training continues as if there had been no evaluation.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist

from colossal_llama.dataset.collator import Collator, MicroBatch
from colossal_llama.training.task_questions import PromptedQuestion
from colossal_llama.training.train_step import TrainStep
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.labels import IGNORED_LABEL

_NO_ANSWER = -1


@dataclass(frozen=True)
class TaskScores:
    """Answers of one evaluation, counted by task."""

    correct: dict[str, int]
    questions: dict[str, int]
    seconds: float

    def metrics(self) -> dict[str, object]:
        """Entries of metrics.jsonl."""
        return {
            "eval_task_accuracy": {task: self.correct[task] / count for task, count in self.questions.items()},
            "eval_task_correct": self.correct,
            "eval_task_questions": self.questions,
            "eval_task_s": round(self.seconds, 3),
        }


@dataclass
class TaskEvaluator:
    """Asks the model that `train_step` trains the questions of `--eval_tasks`."""

    train_step: TrainStep
    questions: Sequence[PromptedQuestion]
    collator: Collator
    tokens_per_batch: int
    """Most tokens of a micro-batch, padding included; a longer prompt is alone in its own."""
    interval_steps: int | None
    """None: at the end only."""
    last_step: int = -1
    """Step after which the last evaluation was done; -1: none yet."""
    name: ClassVar[str] = "eval_task_accuracy"
    """Of a value in metrics.jsonl that an evaluation has."""

    def is_due(self, step: int, is_last: bool) -> bool:
        """True when an evaluation follows after `step` steps: at intervals and at the end."""
        at_interval = self.interval_steps is not None and step % self.interval_steps == 0
        return step != self.last_step and (is_last or at_interval)

    def evaluate(self, step: int, stop_requested: Callable[[], bool]) -> TaskScores | None:
        """Asks all questions, and logs the scores. A collective.

        Args:
            step: number of steps done.
            stop_requested: polled on every rank; True ends the evaluation.

        Returns:
            The scores; None when a rank requested the end of the run before all were answered.
        """
        started = time.perf_counter()
        answers = self._answers(stop_requested)
        if answers is None:
            log_rank_zero(f"step {step}: the benchmark questions are left, since the run is to end")
            return None
        self.last_step = step
        correct = Counter({question.task: 0 for question in self.questions})
        correct.update(q.task for q, answer in zip(self.questions, answers, strict=True) if answer == q.right)
        scores = TaskScores(
            correct=dict(correct),
            questions=dict(Counter(question.task for question in self.questions)),
            seconds=time.perf_counter() - started,
        )
        log_rank_zero(f"step {step}: {_described(scores)}")
        return scores

    def _answers(self, stop_requested: Callable[[], bool]) -> list[int] | None:
        """Index of the chosen answer of each question, the same on every rank; a collective."""
        train_step = self.train_step
        shares = self._shares()
        answers = torch.full((len(self.questions),), _NO_ANSWER, dtype=torch.int64)
        unanswered = iter(shares)

        def receive(logits: torch.Tensor) -> None:
            for number, answer in _best_choices(logits, next(unanswered), self.questions):
                answers[number] = answer

        with progress_bar(total=len(shares), desc="benchmark questions", unit="batch", leave=False) as bar:
            batches = self._micro_batches(shares, bar.update)
            if not train_step.last_logits(batches, receive, stop_requested):
                return None
        answers = answers.to(train_step.device)
        dist.all_reduce(answers, op=dist.ReduceOp.MAX)
        return answers.tolist()

    def _shares(self) -> list[list[int]]:
        """Numbers of the questions of each of this rank's micro-batches.

        Every rank gets as many micro-batches, since each one is a collective; the last may be
        empty. The longest prompts come first, so that memory suffices later if it does at first.
        """
        lengths = [len(question.prompt) for question in self.questions]
        batches: list[list[int]] = []
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= self.tokens_per_batch:
                batches[-1].append(number)
            else:
                batches.append([number])
        ranks, rank = self.train_step.backend.data_parallel_size, self.train_step.backend.data_parallel_rank
        batches += [[] for _ in range(-len(batches) % ranks)]
        return batches[rank::ranks]

    def _micro_batches(self, shares: Sequence[Sequence[int]], done: Callable[[int], object]) -> Iterator[MicroBatch]:
        for share in shares:
            prompts = [self.questions[number].prompt for number in share]
            yield self.collator(
                [
                    {"input_ids": prompt, "labels": [IGNORED_LABEL] * len(prompt), "document_lengths": [len(prompt)]}
                    for prompt in prompts
                ]
            )
            done(1)


def _best_choices(
    logits: torch.Tensor, share: Sequence[int], questions: Sequence[PromptedQuestion]
) -> Iterator[tuple[int, int]]:
    """Yields numbers of questions, each with the index of its choice of the largest logit.

    A choice has the larger one of its tokens' logits. Where one is NaN, there is no answer.

    Args:
        logits: (rows, vocabulary); there may be more rows than questions.
        share: numbers of the questions, by row.
        questions: all.
    """
    tokens = sorted({token for number in share for choice in questions[number].choices for token in choice})
    rows = logits[:, tokens].tolist()  # waits for the device once
    for number, row in zip(share, rows, strict=False):
        by_token = dict(zip(tokens, row, strict=True))
        scores = [max(by_token[token] for token in choice) for choice in questions[number].choices]
        if not any(map(math.isnan, scores)):
            yield number, scores.index(max(scores))


def _described(scores: TaskScores) -> str:
    shares = [f"{task} {scores.correct[task] / count:.2%} of {count:,}" for task, count in scores.questions.items()]
    speed = sum(scores.questions.values()) / scores.seconds
    return f"right answers: {', '.join(shares)}; {scores.seconds:.1f} s, {speed:,.1f} questions/s"
