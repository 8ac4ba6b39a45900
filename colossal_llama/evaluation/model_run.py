"""One model's part of an evaluation: loaded once, it answers all that is not answered yet."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import compress, groupby
from typing import TYPE_CHECKING, Any

import torch

from colossal_llama import __version__
from colossal_llama.evaluation import models
from colossal_llama.evaluation.arguments import LIKELIHOOD, EvaluationArguments
from colossal_llama.evaluation.faults import fault_records
from colossal_llama.evaluation.models import EvaluatedModel
from colossal_llama.evaluation.parts import Part
from colossal_llama.evaluation.questions import Question, Subject
from colossal_llama.evaluation.ranks import Ranks
from colossal_llama.evaluation.records import AnswerRecord, Key, keys_of
from colossal_llama.utils.arguments import option_values
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.environment import code_fingerprint, installed_packages
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.evaluation.published import Prediction

_CHARACTERS_PER_QUESTION = 100
"""What a question costs besides its own text, as a text."""
_CHARACTERS_PER_NEW_TOKEN = 20
"""A generated token costs about as much as a text of this length that is only read."""


@dataclass
class ModelRun:
    """The evaluation of one model by all processes.

    Attributes:
        arguments: of the script.
        together: the processes.
        model: it.
        device: of this process.
        dtype: of `models.DTYPES`.
        record: its answers on disk.
        parts: what else is asked for.
    """

    arguments: EvaluationArguments
    together: Ranks
    model: EvaluatedModel
    device: torch.device
    dtype: str
    record: AnswerRecord
    parts: Sequence[Part] = ()

    def run(self) -> None:
        """Loads the model if anything has no result yet, and computes that; on all processes."""
        is_answered = not self.arguments.subjects or self.together.first(self.record.is_complete)
        open_parts = self.together.first(lambda: [not part.is_complete(self.model) for part in self.parts])
        if is_answered and not any(open_parts):
            log_rank_zero(f"{self.model.name}: all is answered in {self.record.directory}")
            return
        began = time.time()
        with self.together.stage():
            models.check_memory(self.model, self.device, self.dtype)
            loaded, tokenizer = models.load(self.model, self.device, self.dtype, log_rank_zero)
        load_s = round(time.time() - began, 1)
        if not is_answered:
            self._answer_questions(loaded, tokenizer, load_s)
        for part in compress(self.parts, open_parts):
            part.evaluate(self.model, loaded, tokenizer)

    def _answer_questions(self, loaded: Any, tokenizer: Any, load_s: float) -> None:
        answered = self.together.first(lambda: self.record.begin(self._content()))
        session: dict[str, Any] = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "kept": len(answered)}
        session |= {"processes": self.together.size, "device": device_name(self.device), "load_s": load_s}
        with self.together.stage():
            session |= self._answer(loaded, tokenizer, answered)
        self.together.first(lambda: self.record.complete(self._content(), session))

    def _answer(self, loaded: Any, tokenizer: Any, answered: set[Key]) -> dict[str, Any]:
        """Answers this process's share of the open questions; returns counts and times."""
        from colossal_llama.evaluation.prompts import PromptEncoder
        from colossal_llama.evaluation.scoring import Scorer

        predictions_of = predictions_by(self.arguments.task.protocol)
        scorer, encoder = Scorer(loaded, self.arguments.model.tokens_per_batch), PromptEncoder(tokenizer)
        total = len(keys_of(self.arguments.subjects)) - len(answered)
        seconds_by_task: dict[str, float] = defaultdict(float)
        self.together.begin_count()
        began = time.monotonic()
        with (
            self.record.appending(self.together.rank) as append,
            progress_bar(total=total, unit="question", desc=self.model.name) as bar,
        ):

            def show(done: int) -> None:
                bar.update(done - bar.n)

            for subject in self._share(answered):
                subject_began = time.monotonic()
                for prediction in predictions_of(subject, scorer, encoder, self.arguments.model.max_length):
                    self._check_finite(prediction)
                    append(asdict(prediction))
                    show(self.together.count_done(1))
                seconds_by_task[subject.task] += time.monotonic() - subject_began
            self.together.wait_for(total, show)
        duration_s = time.monotonic() - began
        return {
            "answered": total,
            "scoring_s": round(duration_s, 1),
            "questions_per_second": round(total / duration_s, 2) if duration_s else None,
            "seconds_by_task": {task: round(seconds, 1) for task, seconds in seconds_by_task.items()},
        }

    def _check_finite(self, prediction: "Prediction") -> None:
        """Refuses logits that are NaN, of which none is the largest.

        Raises:
            UserError: the model overflows in this dtype, or its weights are damaged.
        """
        if any(math.isnan(logit) for logit in prediction.logits.values()):
            remedy = "give --dtype bf16 or fp32" if self.dtype == "fp16" else "the weights may be damaged"
            raise UserError(
                f"{self.model.name} gives logits that are NaN in {self.dtype} ({prediction.task} {prediction.subject} "
                f"index {prediction.index}): {remedy}"
            )

    def _share(self, answered: Collection[Key]) -> Iterator[Subject]:
        """Subjects with those of their open questions that this process answers.

        Each process has neighbours among the questions of a task, most of which share a prefix.
        """
        for _, subjects in groupby(self.arguments.subjects, lambda subject: subject.task):
            unanswered = [
                (subject, question)
                for subject in subjects
                for question in subject.questions
                if question.is_scored and (subject.task, subject.name, question.index) not in answered
            ]
            mine = self.together.share(unanswered, [_cost(*pair) for pair in unanswered])
            for _, pairs in groupby(mine, lambda pair: pair[0].name):
                subject, questions = zip(*pairs, strict=True)
                yield replace(subject[0], questions=questions)

    def _content(self) -> dict[str, Any]:
        """Entries of the record besides the settings that decide the answers."""
        arguments, subjects = self.arguments, self.arguments.subjects
        return {
            "model": {"name": self.model.name, "path": str(self.model.directory), "base": str(self.model.base)},
            "arguments": {name: _as_json(value) for name, value in option_values(arguments).items()},
            "version": __version__,
            "code": code_fingerprint(),
            "packages": installed_packages(),
            "tasks": [_counts(name, list(group)) for name, group in groupby(subjects, lambda subject: subject.task)],
            "faults": fault_records(subjects),
            "notes": [{"file": subject.file, "note": note} for subject in subjects for note in subject.notes],
        }


def predictions_by(protocol: str) -> "Callable[..., Iterable[Prediction]]":
    """Function of a protocol that answers the questions of a subject."""
    if protocol == LIKELIHOOD:
        from colossal_llama.evaluation.likelihood import predictions as by_likelihood

        return by_likelihood
    from colossal_llama.evaluation.published import predictions as as_published

    return as_published


def device_name(device: torch.device) -> str:
    """Name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _cost(subject: Subject, question: Question) -> int:
    return _CHARACTERS_PER_QUESTION + len(question.text) + _CHARACTERS_PER_NEW_TOKEN * subject.max_new_tokens


def _counts(task: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    questions = [question for subject in subjects for question in subject.questions]
    return {
        "task": task,
        "subjects": len(subjects),
        "questions": len(questions),
        "scored": sum(question.is_scored for question in questions),
        "faulty": sum(question.fault is not None for question in questions),
        "files": {subject.name: subject.file for subject in subjects},
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
