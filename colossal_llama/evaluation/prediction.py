"""A model's answer to a question, as a line of questions.jsonl; torch-free."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from colossal_llama.evaluation.questions import Question, Subject


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a question.

    Attributes:
        task: of the subject.
        subject: its name.
        index: of the question in the file, from 0.
        logits: score of each letter: a logit, or a log-likelihood in nats; empty where there is
            none to choose.
        text: what was generated; None where nothing was.
        prediction: the answer: a letter, a number or a text; None if there is none in the text.
        label: the right answer.
        correct: True where it is right.
        prompt_hash: of the token ids that the model was given.
        prompt_tokens: number of them.
    """

    task: str
    subject: str
    index: int
    logits: dict[str, float]
    text: str | None
    prediction: str | None
    label: str
    correct: bool
    prompt_hash: str
    prompt_tokens: int


def make_prediction(
    subject: Subject,
    question: Question,
    prompt: Sequence[int],
    scores: dict[str, float],
    found: str | None,
    is_right: bool,
    text: str | None = None,
) -> Prediction:
    """Makes the prediction of a question.

    Args:
        subject: of the question.
        question: that was asked.
        prompt: token ids that the model was given.
        scores: by letter.
        found: the answer.
        is_right: True where it is right.
        text: that was generated.
    """
    return Prediction(
        task=subject.task,
        subject=subject.name,
        index=question.index,
        logits=scores,
        text=text,
        prediction=found,
        label=question.label,
        correct=is_right,
        prompt_hash=_hash_of(prompt),
        prompt_tokens=len(prompt),
    )


def _hash_of(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits of the SHA-256 of a prompt's tokens."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()[:16]


def best_letter(scores: dict[str, float]) -> str:
    """Returns the letter with the largest score, the first of equal ones.

    >>> best_letter({"A": 1.0, "B": 2.5, "C": 2.5})
    'B'
    """
    return max(scores, key=scores.__getitem__)
