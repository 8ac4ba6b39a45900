"""Prompts of benchmark questions: few-shot prefix that fits, middle cut, tokens of the choices.

Found by comparing logits with the published evaluator's (differences of 0.0000):

- Tokens are counted as the tokenizer gives them for a text by itself, its BOS included: that of
  `opening, blank line, examples, blank line` and that of `question + answer` count one BOS each.
- The prompt is encoded once as a whole text, not as the sum of its parts.
- An example's text ends in `Answer: `, and its answer follows directly.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from colossal_llama.evaluation.questions import Question, Subject
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RESERVED_TOKENS = 32
"""Of `max_length`, kept free behind every prompt, also where nothing is generated."""
_BATCH_TEXTS = 512


class PromptEncoder:
    """Encodes prompts as a tokenizer does by itself: with its BOS, control tokens recognised."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        """Keeps the tokenizer, which is not modified."""
        self.tokenizer = tokenizer
        self._choice_ids: dict[str, tuple[int, int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts with the tokenizer's own BOS: one list of ids for each."""
        return self._encoded(texts, add_special_tokens=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes without control tokens, and without changing the spaces."""
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def choice_token_ids(self, letter: str) -> tuple[int, int]:
        """Returns the last tokens of `Answer: X` and `答案：X`, whose larger logit is the score.

        LLaMA-2 has a token for a letter behind a space and one for a letter behind another sign.
        """
        if letter not in self._choice_ids:
            english, chinese = self._encoded([f"Answer: {letter}", f"答案：{letter}"], add_special_tokens=False)
            self._choice_ids[letter] = (english[-1], chinese[-1])
        return self._choice_ids[letter]

    def _encoded(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        encoded: list[list[int]] = []
        for start in range(0, len(texts), _BATCH_TEXTS):
            part = list(texts[start : start + _BATCH_TEXTS])
            batch: Any = self.tokenizer(part, add_special_tokens=add_special_tokens, verbose=False)
            encoded += batch["input_ids"]
        return encoded


def prompt_ids(subject: Subject, question: Question, encoder: PromptEncoder, max_length: int) -> list[int]:
    """Encodes the prompt of a question; `all_prompt_ids` is faster for many."""
    return all_prompt_ids(subject, [question], encoder, max_length)[0]


def all_prompt_ids(
    subject: Subject, questions: Sequence[Question], encoder: PromptEncoder, max_length: int
) -> list[list[int]]:
    """Encodes the prompts of questions of a subject.

    Args:
        subject: whose opening and examples the prompts begin with.
        questions: of the subject.
        encoder: of the model.
        max_length: most tokens of a prompt and what is generated behind it.

    Raises:
        UserError: `max_length` leaves no room for a prompt.
    """
    limit = max_length - max(RESERVED_TOKENS, subject.max_new_tokens)
    if limit < RESERVED_TOKENS:
        raise UserError(
            f"--max_length {max_length} is too short for {subject.task}, which generates {subject.max_new_tokens} "
            f"tokens: give at least {max_length + RESERVED_TOKENS - limit}"
        )
    prompts = prompt_texts(subject, questions, encoder, max_length)
    return [ids if len(ids) <= limit else _without_middle(ids, encoder, limit) for ids in encoder.encode(prompts)]


def prompt_texts(subject: Subject, questions: Sequence[Question], encoder: PromptEncoder, max_length: int) -> list[str]:
    """Returns the prompts as texts, before a middle is cut: as many examples as fit, the question.

    At least one example is used, even where it does not fit.
    """
    prefixes = _prefixes(subject)
    if len(prefixes) == 1:
        return [prefixes[0] + question.text for question in questions]
    lengths = [len(ids) for ids in encoder.encode(prefixes)]
    whole = encoder.encode([question.text + question.label for question in questions])
    prompts = []
    for question, ids in zip(questions, whole, strict=True):
        fitting = _fitting(lengths, max_length - len(ids))
        prompts.append(prefixes[fitting] + question.text)
    return prompts


def _prefixes(subject: Subject) -> list[str]:
    """The text before the question with 1, 2, … examples; with none, if the subject has none."""
    prefix = f"{subject.opening}\n\n" if subject.opening else ""
    prefixes = []
    for example in subject.examples:
        prefix += f"{example.text}{example.answer}\n\n"
        prefixes.append(prefix)
    return prefixes or [prefix]


def _fitting(lengths: Sequence[int], room: int) -> int:
    """Place of the last prefix before the first that does not fit; the first if none fits."""
    fitting = 0
    while fitting + 1 < len(lengths) and lengths[fitting + 1] <= room:
        fitting += 1
    return fitting


def _without_middle(ids: list[int], encoder: PromptEncoder, limit: int) -> list[int]:
    """Keeps the first and the last half of `limit` tokens.

    The halves are decoded, joined and encoded again, as published: tokens can merge where they
    meet. A character that is cut in two becomes signs of its own; what they add is taken off
    behind the BOS, so that the end of the question stays.
    """
    half = limit // 2
    joined = encoder.decode(ids[:half]) + encoder.decode(ids[-half:])
    kept = encoder.encode([joined])[0]
    surplus = len(kept) - limit
    if surplus <= 0:
        return kept
    begin = 1 if kept[0] == encoder.tokenizer.bos_token_id else 0
    return kept[:begin] + kept[begin + surplus :]
