"""The protocol of the published tables: first-token scores, letters and numbers in answers."""

from collections.abc import Iterator, Sequence

from colossal_llama.evaluation.answers import chosen_letter, is_same_number, is_target, last_number
from colossal_llama.evaluation.generation import AnswerGenerator, GeneratedAnswer
from colossal_llama.evaluation.prediction import Prediction, best_letter, make_prediction
from colossal_llama.evaluation.prompts import PromptEncoder, all_prompt_ids
from colossal_llama.evaluation.questions import FIRST_TOKEN, LETTER_OR_FIRST_TOKEN, NUMBER, Question, Subject
from colossal_llama.evaluation.scoring import Scorer


def predictions(subject: Subject, scorer: Scorer, encoder: PromptEncoder, max_length: int) -> Iterator[Prediction]:
    """Yields the answers to a subject's questions that can be scored, as batches of them are done.

    Args:
        subject: with the questions to answer.
        scorer: of the model.
        encoder: of the model's tokenizer.
        max_length: most tokens of a prompt and what is generated behind it.

    Raises:
        UserError: prompts are longer than the model has positions.
    """
    questions = [question for question in subject.questions if question.is_scored]
    prompts = all_prompt_ids(subject, questions, encoder, max_length)
    letters = list(dict.fromkeys(letter for question in questions for letter in question.choices))
    token_ids = [token for letter in letters for token in encoder.choice_token_ids(letter)]
    if subject.scored_by == FIRST_TOKEN:
        for index, logits in scorer.next_token_logits(prompts, token_ids):
            scores = _scores(questions[index], letters, logits)
            best = best_letter(scores)
            is_right = best == questions[index].label
            yield make_prediction(subject, questions[index], prompts[index], scores, best, is_right)
        return
    generator = AnswerGenerator(scorer.model, encoder.tokenizer, scorer.tokens_per_batch)
    for answer in generator.answers(prompts, subject.max_new_tokens, subject.stop_texts, token_ids):
        question = questions[answer.index]
        scores = _scores(question, letters, answer.logits)
        found, is_right = _found(subject, question, answer, scores)
        yield make_prediction(subject, question, prompts[answer.index], scores, found, is_right, answer.text)


def _scores(question: Question, letters: Sequence[str], logits: Sequence[float]) -> dict[str, float]:
    """The larger logit of each letter's two tokens."""
    by_letter = {letter: max(logits[2 * at], logits[2 * at + 1]) for at, letter in enumerate(letters)}
    return {letter: by_letter[letter] for letter in question.choices}


def _found(
    subject: Subject, question: Question, answer: GeneratedAnswer, scores: dict[str, float]
) -> tuple[str | None, bool]:
    """The answer in a generated text, and whether it is right."""
    if subject.scored_by == LETTER_OR_FIRST_TOKEN:
        best, letter = best_letter(scores), chosen_letter(answer.text, question.choices)
        is_right = question.label in (best, letter)
        return question.label if is_right else letter or best, is_right
    if subject.scored_by == NUMBER:
        number = last_number(answer.text)
        return number, is_same_number(number, question.label)
    return answer.text.strip(), is_target(answer.text, question.label)
