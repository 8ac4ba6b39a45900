"""Options of `--texts`, bits per byte, and of `--questions`, answers side by side."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from colossal_llama.inference.arguments import PromptFormat, format_problems
from colossal_llama.readers.fields import FieldOptions, field_problems
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.utils.arguments import group, is_given, option, option_values
from colossal_llama.utils.cli import existing_file, number_in_range


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """Texts whose bits per byte are measured."""

    texts: tuple[Path | str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        metavar="PATH",
        help="files of texts and directories that are searched for them, also several by commas: bits per byte by "
        f"category, and the documents that changed most; {DESCRIPTION}",
    )
    stride: int | None = option(
        type=number_in_range(int, minimum=1),
        only_with="texts",
        metavar="TOKENS",
        help="tokens between the beginnings of two windows of a document longer than --max_length: the rest is "
        "context, scored in the window before (default: half of --max_length)",
    )
    text_limit: int | None = option(
        type=number_in_range(int, minimum=1),
        only_with="texts",
        metavar="DOCUMENTS",
        help="at most so many documents of each category, a random choice by checksums of texts, the same in every "
        "run (default: all)",
    )
    fields: FieldOptions = group("columns of --texts")


@dataclass(frozen=True, kw_only=True)
class AnswerArguments:
    """Questions that all models answer."""

    questions: Path | None = option(
        type=existing_file,
        metavar="FILE.jsonl",
        help="questions that every model answers greedily, in one table: lines as --input_file of inference reads them",
    )
    max_new_tokens: int = option(
        512, type=number_in_range(int, minimum=1), only_with="questions", help="most tokens of an answer"
    )
    format: PromptFormat = group(
        "format of --questions, for all models alike",
        "Without these options each model is asked in the format that train.py has recorded with it, and as a base "
        "model where there is none.",
    )


def text_problems(text: TextArguments, answer: AnswerArguments, max_length: int) -> Iterator[str]:
    """Contradictions among these options, besides those of `ineffective_options`.

    Args:
        text: options of texts.
        answer: options of questions.
        max_length: tokens of a window.
    """
    for options, needed in ((text.fields, text.texts), (answer.format, answer.questions)):
        for name in option_values(options):
            if not needed and is_given(options, name):
                main = "texts" if options is text.fields else "questions"
                yield f"--{name} has no effect without --{main}: add that, or leave it out"
    yield from field_problems(text.fields)
    if text.stride is not None and text.stride > max_length:
        yield (
            f"--stride {text.stride} is more than --max_length {max_length}: tokens between two windows would not be "
            "scored; give at most --max_length"
        )
    yield from format_problems(answer.format, is_sft=answer.format.prompt_style != "pretrained")


def asked_format(given: PromptFormat, is_recorded: bool) -> PromptFormat:
    """Chooses how a model is asked.

    Args:
        given: options, for all models alike.
        is_recorded: training has recorded with the model the format of its conversations.
    """
    is_given = any(value is not None for value in option_values(given).values())
    return (
        given if given.prompt_style else replace(given, prompt_style="sft" if is_recorded or is_given else "pretrained")
    )
