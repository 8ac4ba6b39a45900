"""The protocol of lm-evaluation-harness: the letter with the most likely ` A`, ` B` … is chosen.

MMLU, CMMLU and C-Eval are worded as the harness' tasks of those names: without `Question: `, the
subject in lower case, a space behind the colon that belongs to the answer, all examples. A prompt
that is too long loses its beginning. Other tasks keep the published wording, and generated answers
their protocol.
"""

from collections.abc import Iterator, Sequence

from colossal_llama.evaluation import published
from colossal_llama.evaluation.prediction import Prediction, best_letter, make_prediction
from colossal_llama.evaluation.prompts import PromptEncoder
from colossal_llama.evaluation.questions import FIRST_TOKEN, LETTER_OR_FIRST_TOKEN, Question, Subject
from colossal_llama.evaluation.scoring import Scorer

_HARNESS_TASKS = ("mmlu", "cmmlu", "ceval")
_BEGINNINGS = ("Question: ", "题目：")
_FIRST_OPTION = "\nA. "


def predictions(subject: Subject, scorer: Scorer, encoder: PromptEncoder, max_length: int) -> Iterator[Prediction]:
    """Yields the answers to a subject's questions, as `published.predictions` does."""
    if subject.scored_by not in (FIRST_TOKEN, LETTER_OR_FIRST_TOKEN):
        yield from published.predictions(subject, scorer, encoder, max_length)
        return
    questions = [question for question in subject.questions if question.is_scored]
    prefix = _prefix(subject)
    contexts = [prefix + _wording(subject, question.text) for question in questions]
    texts = [
        context + f" {letter}"
        for context, question in zip(contexts, questions, strict=True)
        for letter in question.choices
    ]
    owners = [place for place, question in enumerate(questions) for _ in question.choices]
    prompts = encoder.encode(contexts)
    pairs = [
        _pair(prompts[place], whole, max_length) for place, whole in zip(owners, encoder.encode(texts), strict=True)
    ]
    found: list[dict[int, float]] = [{} for _ in questions]
    first = [owners.index(place) for place in range(len(questions))]
    results = scorer.log_likelihoods([prompt for prompt, _ in pairs], [continuation for _, continuation in pairs])
    for result in results:
        place = owners[result.index]
        found[place][result.index - first[place]] = result.total
        if len(found[place]) == len(questions[place].choices):
            yield _prediction(subject, questions[place], pairs[result.index][0], found[place])


def _prefix(subject: Subject) -> str:
    """The opening line and all examples."""
    parts = [_opening(subject)] if subject.opening else []
    parts += [f"{_wording(subject, example.text)} {example.answer}" for example in subject.examples]
    return "".join(f"{part}\n\n" for part in parts)


def _opening(subject: Subject) -> str:
    """The opening line as the harness has it."""
    if subject.task == "mmlu":
        beginning, about, name = subject.opening.rpartition(" about ")
        return beginning + about + name.lower()
    return subject.opening.replace("考试的", "的") if subject.task == "ceval" else subject.opening


def _wording(subject: Subject, text: str) -> str:
    """A question as the harness has it, without the space that belongs to the answer."""
    if subject.task in _HARNESS_TASKS:
        for beginning in _BEGINNINGS:
            text = text.removeprefix(beginning)
        question, option, rest = text.rpartition(_FIRST_OPTION)
        text = question.strip() + option + rest
    return text.rstrip(" ")


def _pair(prompt: Sequence[int], whole: Sequence[int], max_length: int) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of its continuation, which has one at least.

    Args:
        prompt: tokens of the prompt by itself.
        whole: tokens of the prompt with its continuation.
        max_length: most tokens that the model is given; the beginning is left out.
    """
    continuation = len(whole) - min(len(prompt), len(whole) - 1)
    kept = list(whole[-(max_length + 1) :])
    return kept[:-continuation], kept[-continuation:]


def _prediction(subject: Subject, question: Question, prompt: Sequence[int], found: dict[int, float]) -> Prediction:
    scores = {letter: found[place] for place, letter in enumerate(question.choices)}
    best = best_letter(scores)
    return make_prediction(subject, question, prompt, scores, best, best == question.label)
