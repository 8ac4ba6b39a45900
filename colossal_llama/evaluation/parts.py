"""Parts of an evaluation besides benchmarks: bits per byte of texts, and answers side by side."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from colossal_llama.evaluation import side_by_side, text_tables, texts
from colossal_llama.evaluation.arguments import EvaluationArguments
from colossal_llama.evaluation.figure import FIGURE_TITLE
from colossal_llama.evaluation.models import EvaluatedModel, tokenizer_of
from colossal_llama.evaluation.ranks import Ranks
from colossal_llama.evaluation.result_file import ResultFile
from colossal_llama.evaluation.text_figure import draw_bits
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.figures import figure_output_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENS_ON_GPU, _TOKENS_ON_CPU = 16384, 1024
"""Tokens of a forward pass over texts by default."""


class Part(Protocol):
    """Work that is done with every model, and written when all are through."""

    def problems(self) -> Iterator[str]:
        """Problems of the files that are there."""

    def is_complete(self, model: EvaluatedModel) -> bool:
        """True when nothing is left to do with a model."""

    def evaluate(self, model: EvaluatedModel, loaded: Any, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Does what is left with a model, on all processes."""

    def write(self) -> None:
        """Writes the tables of all models, on the first process."""


def open_parts(
    arguments: EvaluationArguments,
    together: Ranks,
    models: Sequence[EvaluatedModel],
    device: torch.device,
    dtype: str,
) -> list[Part]:
    """Opens the parts that are asked for, and reads their files.

    Raises:
        UserError: the texts or the questions cannot be read.
    """
    parts: list[Part] = []
    if arguments.text.texts:
        parts.append(TextPart(arguments, together, models, device, dtype))
    if arguments.answer.questions is not None:
        parts.append(AnswerPart(arguments, together, models, dtype))
    return parts


class TextPart:
    """Bits per byte of texts."""

    def __init__(
        self,
        arguments: EvaluationArguments,
        together: Ranks,
        models: Sequence[EvaluatedModel],
        device: torch.device,
        dtype: str,
    ):
        """Reads the texts."""
        self._together, self._models, self._dtype = together, models, dtype
        self._directory = arguments.output_dir
        options = arguments.model
        tokens = options.tokens_per_batch or (_TOKENS_ON_GPU if device.type == "cuda" else _TOKENS_ON_CPU)
        self._measurement = texts.measurement_of(arguments.text, options.max_length, tokens)
        self._texts = texts.open_texts(arguments.text, arguments.output_dir)
        self._known = {model.name: self._known_tokens(model) for model in models}

    def _known_tokens(self, model: EvaluatedModel) -> int | None:
        """Tokens that a model had before its expansion, by the first of `--compare`."""
        base = self._models[1] if len(self._models) > 1 else model
        if model.tokenizer == base.tokenizer:
            return None
        return texts.known_tokens(tokenizer_of(model), tokenizer_of(base))

    def _results(self, model: EvaluatedModel) -> ResultFile:
        return texts.text_results(self._directory / model.name, model.identity(), self._dtype, self._measurement)

    def problems(self) -> Iterator[str]:
        """Problems of the files that are there."""
        yield from text_tables.output_problems(self._directory)
        if problem := figure_output_problem(self._directory / text_tables.TEXTS_PNG, FIGURE_TITLE):
            yield problem
        yield from (problem for model in self._models if (problem := self._results(model).problem()))

    def is_complete(self, model: EvaluatedModel) -> bool:
        """True when all documents are measured."""
        return texts.is_complete(self._texts, self._results(model), self._known[model.name])

    def evaluate(self, model: EvaluatedModel, loaded: Any, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Measures the documents that are left, on all processes."""
        known = self._known[model.name]
        texts.measure_texts(
            loaded, tokenizer, self._texts, self._measurement, self._results(model), self._together, known
        )

    def _completed(self, model: EvaluatedModel) -> list[dict[str, Any]]:
        lines = texts.ordered(self._texts, self._results(model))
        self._results(model).complete(lines)
        return lines

    def write(self) -> None:
        """Writes texts.md, texts.json and texts.png."""
        results = {model.name: self._completed(model) for model in self._models}
        settings = {
            "max_length": self._measurement.max_length,
            "stride": self._measurement.stride,
            "dtype": self._dtype,
        }
        paths = {model.name: str(model.directory) for model in self._models}
        shown = text_tables.write_tables(
            self._directory, results, paths, settings, self._texts.problems, self._texts.left_out
        )
        draw_bits(*text_tables.make_rows(results), self._directory / text_tables.TEXTS_PNG)
        names = f"{text_tables.TEXTS_MD}, {text_tables.TEXTS_JSON}, {text_tables.TEXTS_PNG}"
        log_rank_zero(f"\n{shown}\n→ {self._directory}: {names}")


class AnswerPart:
    """Answers side by side."""

    def __init__(self, arguments: EvaluationArguments, together: Ranks, models: Sequence[EvaluatedModel], dtype: str):
        """Reads the questions."""
        assert arguments.answer.questions is not None, "open_parts asks for answers where there are questions"
        self._together, self._models, self._dtype = together, models, dtype
        self._arguments, self._directory = arguments.answer, arguments.output_dir
        self._questions = side_by_side.read_questions(arguments.answer.questions)

    def _results(self, model: EvaluatedModel) -> ResultFile:
        return side_by_side.answer_results(self._directory / model.name, model.identity(), self._dtype, self._arguments)

    def problems(self) -> Iterator[str]:
        """Problems of the files that are there."""
        yield from side_by_side.output_problems(self._directory)
        yield from (problem for model in self._models if (problem := self._results(model).problem()))

    def is_complete(self, model: EvaluatedModel) -> bool:
        """True when all questions are answered."""
        found = self._results(model).read()
        return all(question.key in found for question in self._questions)

    def evaluate(self, model: EvaluatedModel, loaded: Any, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Answers the questions that are left, on all processes."""
        results = self._results(model)
        side_by_side.answer_questions(loaded, tokenizer, self._questions, self._arguments, results, self._together)

    def write(self) -> None:
        """Writes answers.md and answers.jsonl."""
        answers = {model.name: side_by_side.ordered(self._questions, self._results(model)) for model in self._models}
        for model in self._models:
            self._results(model).complete(answers[model.name])
        paths = {model.name: str(model.directory) for model in self._models}
        side_by_side.write_answers(self._directory, self._questions, answers, paths, self._arguments.max_new_tokens)
        log_rank_zero(f"→ {self._directory}: {side_by_side.ANSWERS_MD}, {side_by_side.ANSWERS_JSONL}")
