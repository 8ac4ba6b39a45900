"""Standard error of a score, and the exact paired test of two models (McNemar)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Share of right answers.

    Attributes:
        correct: number of right answers.
        questions: number of answers, at least 1.
    """

    correct: int
    questions: int

    @property
    def mean(self) -> float:
        """Share of right answers, from 0 to 1."""
        return self.correct / self.questions

    @property
    def standard_error(self) -> float | None:
        """Standard deviation of the sample over the root of its size; None for a single answer.

        That of a sample of zeros and ones is sqrt(p (1 - p) n / (n - 1)).
        """
        if self.questions < 2:
            return None
        return math.sqrt(self.mean * (1 - self.mean) / (self.questions - 1))


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two models on the same questions.

    Attributes:
        questions: that both have answered.
        only_first: questions that the first alone has right.
        only_second: questions that the second alone has right.
    """

    questions: int
    only_first: int
    only_second: int

    @property
    def difference(self) -> float:
        """Score of the first less that of the second, from -1 to 1."""
        return (self.only_first - self.only_second) / self.questions

    @property
    def p_value(self) -> float:
        """Probability of a difference this large where neither model is better (two-sided).

        Questions that both have right or wrong say nothing. Of the others each model has as many
        as a fair coin gives it.
        """
        disagreements = self.only_first + self.only_second
        term = total = 1  # binomial coefficients: exact, in whole numbers
        for smaller in range(min(self.only_first, self.only_second)):
            term = term * (disagreements - smaller) // (smaller + 1)
            total += term
        return min(1.0, 2 * total / 2**disagreements)


def paired_test(answers: Iterable[tuple[bool, bool]]) -> PairedTest:
    """Counts the answers of two models to the same questions: True is right."""
    questions = only_first = only_second = 0
    for first, second in answers:
        questions += 1
        only_first += first and not second
        only_second += second and not first
    return PairedTest(questions, only_first, only_second)
