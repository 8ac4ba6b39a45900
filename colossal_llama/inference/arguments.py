"""Command-line arguments of inference, all checked before anything heavy is imported."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.dataset.system_prompt import given_system, system_text
from colossal_llama.dataset.template_presets import PRESETS, chat_template_argument
from colossal_llama.utils.arguments import add_options, from_namespace, group, option, switch, value_problems
from colossal_llama.utils.cli import (
    MAX_SEED,
    CollectingArgumentParser,
    existing_file,
    number_in_range,
    parse_bool,
    usable_name,
)
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import NAME_FORMS
from colossal_llama.utils.output_file import output_file_problem


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The model and how it is loaded."""

    model_path: str = option(
        type=usable_name,
        required=True,
        metavar="DIR",
        help=f"model, or peft adapter on a base model: {NAME_FORMS}",
    )
    device: str | None = option(help="cpu, cuda:0, … (default: cuda:0, or cpu where there is no CUDA device)")
    dtype: str = option(
        "auto", choices=("auto", "float32", "float16", "bfloat16"), help="of the weights; auto: as stored"
    )


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The format in which a model is asked."""

    prompt_style: str | None = option(
        None,
        choices=("pretrained", "sft"),
        help="pretrained: for base models, the text followed by a blank line, -> and a blank line; sft: for models "
        "fine-tuned on prepare_sft_dataset.py's conversations (default: pretrained; sft with --interactive)",
    )
    llama_version: int | None = option(
        type=int,
        choices=(2, 3),
        help="whose turn-end token --prompt_style sft uses (default: the format that the model was trained with, if it "
        "is recorded; else 3 if the tokenizer has <|eot_id|>, else 2)",
    )
    chat_template: str | None = option(
        type=chat_template_argument,
        metavar="NAME|FILE",
        help="the format of models fine-tuned on data that was prepared with --chat_template: "
        f"{', '.join(PRESETS)}, a Jinja file, or 'tokenizer' for the tokenizer's own template; a model that train.py "
        "wrote records its format, which is the default",
    )
    system: str | None = option(
        type=system_text,
        metavar="TEXT",
        help="system prompt of --prompt_style sft, in place of the one that the model was trained with, which is the "
        "default; '' for none",
    )


@dataclass(frozen=True, kw_only=True)
class PromptArguments:
    """The prompts' source and format."""

    input_txt: str | None = option(help="the text to complete or the question to answer")
    interactive: bool = switch(help="chat on standard input, with history")
    input_file: Path | None = option(
        type=existing_file,
        help='.jsonl of prompts: {"source": str} with --prompt_style pretrained, else {"messages": [{"from": "human", '
        '"content": str}, …]} or another form that prepare_sft_dataset.py takes; a last answer in it is left out',
    )
    output_file: Path | None = option(
        type=Path,
        help='new .jsonl: records of --input_file with "generated", "generated_tokens", "stopped"',
    )
    format: PromptFormat = group()
    system_file: Path | None = option(
        type=existing_file, metavar="FILE", help="the text of --system, in a file; line ends at its end do not count"
    )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choice of the next token, and the number of tokens of an answer.

    Raises:
        UserError: values that `--help` does not allow.
    """

    max_new_tokens: int = option(512, type=number_in_range(int, minimum=1), help="most tokens of an answer")
    do_sample: bool = option(
        True, type=parse_bool, help="True: sample the next token; False: greedy decoding, the most probable token"
    )
    temperature: float = option(0.3, type=number_in_range(float, above=0), help="of sampling")
    top_k: int = option(
        50, type=number_in_range(int, minimum=0), help="sample from this many most probable tokens; 0: all"
    )
    top_p: float = option(
        0.95,
        type=number_in_range(float, above=0, maximum=1),
        help="sample from the most probable tokens whose probabilities add up to this (nucleus sampling); 1: all",
    )
    seed: int | None = option(
        type=number_in_range(int, minimum=0, maximum=MAX_SEED),
        help="makes sampling repeatable; prompt i of --input_file gets seed + i (default: none)",
    )

    def __post_init__(self) -> None:
        """Checks what is given from Python as the command line is checked."""
        if problems := list(value_problems(self)):
            raise UserError(problems)


@dataclass(frozen=True, kw_only=True)
class InferenceArguments:
    """All arguments of inference, in the groups of `--help`."""

    model: ModelArguments = group("model")
    prompt: PromptArguments = group("prompt: one of --input_txt, --interactive, --input_file")
    generation: Sampling = group("generation")


def report_path(output_file: Path) -> Path:
    """Returns the file of the counts and the throughput, next to the answers."""
    return output_file.with_suffix(".report.json") if output_file.name else output_file


def parse_arguments(argv: list[str] | None = None) -> InferenceArguments:
    """Parses and checks the command line; exits with code 2 and every problem when there is one."""
    parser = CollectingArgumentParser(
        description="Runs a model: completes a text, answers a question, chats, or answers a file of prompts."
    )
    add_options(parser, InferenceArguments)
    namespace = parser.parse_args(argv)
    _check_input_and_output(parser, namespace)
    _check_prompt_format(parser, namespace)
    parser.finish()
    if namespace.prompt_style is None:
        namespace.prompt_style = "sft" if namespace.interactive else "pretrained"
    return from_namespace(InferenceArguments, namespace)


def _check_input_and_output(parser: CollectingArgumentParser, given: Namespace) -> None:
    inputs = [name for name in ("input_txt", "interactive", "input_file") if getattr(given, name) not in (None, False)]
    if len(inputs) != 1:
        names = " and ".join(f"--{name}" for name in inputs)
        what = f"{names} are given together" if inputs else "no prompt is given"
        parser.problem(f"{what}: give one of --input_txt TEXT, --interactive, --input_file FILE")
    if (given.input_file is None) != (given.output_file is None):
        parser.problem("--input_file and --output_file go together: give both or neither")
    if given.output_file is not None:
        for path in (given.output_file, report_path(given.output_file)):
            if problem := output_file_problem(path):
                parser.problem(f"--output_file {problem}")
                break


def _check_prompt_format(parser: CollectingArgumentParser, given: Namespace) -> None:
    if given.interactive and given.prompt_style == "pretrained":
        parser.problem("--interactive needs --prompt_style sft: a base model does not take turns")
    try:
        given.system = given_system(given.system, given.system_file)
    except UserError as error:
        parser.problem(str(error))
    for problem in format_problems(given, is_sft=given.prompt_style == "sft" or given.interactive):
        parser.problem(problem)


def format_problems(given: Namespace | PromptFormat, is_sft: bool) -> Iterator[str]:
    """Contradictions among the options of the format.

    Args:
        given: the options.
        is_sft: True if conversations can be asked.
    """
    if given.llama_version is not None and given.chat_template is not None:
        yield "--llama_version has no effect with --chat_template, which decides the format: leave one out"
    for name in ("system", "llama_version", "chat_template"):
        if getattr(given, name) is not None and not is_sft:
            yield f"--{name} belongs to --prompt_style sft"
