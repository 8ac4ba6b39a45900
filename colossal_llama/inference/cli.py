"""Runs a model: completes a text, answers a question, chats, or answers a file of prompts."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.inference.arguments import InferenceArguments, PromptArguments, parse_arguments
from colossal_llama.utils.arguments import option_values
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.dataset.conversation import Message
    from colossal_llama.inference.api import LanguageModel
    from colossal_llama.inference.generation import Completion


def main() -> None:
    """Parses the arguments, loads the model, and completes, chats or answers a file."""
    arguments = parse_arguments()
    from colossal_llama.model.device import select_device

    prompt, sampling = arguments.prompt, arguments.generation
    device = select_device(arguments.model.device)
    if arguments.model.device is None and device.type == "cpu":
        print_notice("there is no CUDA device here: running on the CPU")
    requests: Any = read_requests(prompt)
    model = _open(arguments, str(device))

    if prompt.interactive:
        from colossal_llama.inference.chat import chat

        print_throughput(chat(model, sampling, print_text, print_notice))
    elif prompt.input_file:
        from colossal_llama.inference.batch import generate_file

        assert prompt.output_file is not None, "checked by parse_arguments"
        records, prompts = map(list, zip(*requests, strict=True))
        report = generate_file(model, sampling, records, prompts, prompt.output_file)
        print_notice(
            f"{report['prompts']:,} answers, {report['generated_tokens']:,} tokens in {report['seconds']:.1f} s: "
            f"{report['tokens_per_second']:.1f} tokens/s → {prompt.output_file}"
        )
    else:
        answer = model.stream(requests, sampling)
        for piece in answer:
            print_text(piece)
        print_text("\n")
        print_throughput([answer.completion])


def _open(arguments: InferenceArguments, device: str) -> "LanguageModel":
    from colossal_llama.inference.api import open_model

    directory = _model_directory(arguments.model.model_path)
    with redirect_stdout(sys.stderr):  # what is said of the model is no part of the answer
        return open_model(
            directory,
            device=device,
            dtype=arguments.model.dtype,
            **option_values(arguments.prompt.format),
            warn=print_notice,
        )


def _model_directory(name: str) -> Path:
    from colossal_llama.model.pretrained import find_model

    try:
        return find_model(name)
    except UserError as error:
        raise UserError(f"--model_path {error}") from error


def read_requests(
    arguments: PromptArguments,
) -> "str | list[tuple[dict, str | list[Message]]] | None":
    """Reads what the model shall answer, before any model is loaded.

    Returns:
        A text; for a file its records, each with its text or messages; None for a chat.

    Raises:
        UserError: lines of the file hold no prompt.
    """
    from colossal_llama.inference.batch import read_prompts
    from colossal_llama.inference.prompts import prompt_messages, prompt_source

    if arguments.input_file:
        is_sft = arguments.format.prompt_style == "sft"
        return read_prompts(arguments.input_file, prompt_messages if is_sft else prompt_source)
    return arguments.input_txt


def print_text(text: str) -> None:
    """Prints a piece of an answer at once."""
    print(text, end="", flush=True)


def print_notice(text: str) -> None:
    """Prints a line that is not part of the answer to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_throughput(completions: "list[Completion]") -> None:
    """Prints tokens per second over all answers."""
    if not completions:
        return
    tokens = sum(len(completion.token_ids) for completion in completions)
    duration_s = sum(completion.duration_s for completion in completions)
    prompt_tokens = sum(completion.prompt_tokens for completion in completions)
    reused_tokens = sum(completion.reused_tokens for completion in completions)
    print_notice(
        f"{tokens:,} tokens in {duration_s:.2f} s: {tokens / duration_s:.1f} tokens/s (prompts: {prompt_tokens:,} "
        f"tokens, {reused_tokens:,} of them still in the key-value cache)"
    )
