"""Runs a model: completes a text, answers a question, chats, or answers a file of prompts."""

import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.inference.arguments import InferenceArguments, PromptArguments, parse_arguments
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from colossal_llama.dataset.conversation import Message
    from colossal_llama.inference.generation import Completion, TextGenerator
    from colossal_llama.inference.prompts import Template


def main() -> None:
    """Parses the arguments, loads the model, and completes, chats or answers a file."""
    arguments = parse_arguments()
    # About the model's generation_config.json, which is not used.
    warnings.filterwarnings("ignore", message="`do_sample` is set to `False`")
    prompt = arguments.prompt
    device = select_device(arguments.model.device)
    requests: Any = read_requests(prompt)
    generator, prompt_ids, template = _load(arguments, device)

    if prompt.interactive:
        from colossal_llama.inference.chat import chat

        assert template is not None, "checked by parse_arguments"
        print_throughput(chat(generator, template, prompt.system, print_text, print_notice))
    elif prompt.input_file:
        from colossal_llama.inference.batch import generate_file

        assert prompt.output_file is not None, "checked by parse_arguments"
        records = [record for record, _ in requests]
        prompts = [prompt_ids(request) for _, request in requests]
        report = generate_file(generator, records, prompts, prompt.output_file, arguments.generation.seed)
        print_notice(
            f"{report['prompts']:,} answers, {report['generated_tokens']:,} tokens in {report['seconds']:.1f} s: "
            f"{report['tokens_per_second']:.1f} tokens/s → {prompt.output_file}"
        )
    else:
        completion = generator.generate(prompt_ids(requests), print_text)
        print_text("\n")
        print_throughput([completion])


def _load(
    arguments: InferenceArguments, device: "torch.device"
) -> "tuple[TextGenerator, Callable[[str | list[Message]], list[int]], Template | None]":
    """Loads the model.

    Returns:
        The generator, the function from a text or messages to prompt ids, and the conversation
        template (None for base models).
    """
    import torch

    from colossal_llama.inference.generation import Sampling, TextGenerator
    from colossal_llama.model.pretrained import load_for_inference, stop_token_ids

    with redirect_stdout(sys.stderr):  # what is said of the model is no part of the answer
        model, tokenizer = load_for_inference(
            _model_directory(arguments.model.model_path), arguments.model.dtype, device
        )
    prompt_ids, template = prompt_builder(arguments.prompt, tokenizer)
    stop_ids = stop_token_ids(model, tokenizer, *([template.turn_end_id] if template else []))
    given = arguments.generation
    sampling = Sampling(given.do_sample, given.temperature, given.top_k, given.top_p)
    if given.seed is not None:
        torch.manual_seed(given.seed)
    return TextGenerator(model, tokenizer, stop_ids, sampling, given.max_new_tokens), prompt_ids, template


def _model_directory(name: str) -> Path:
    from colossal_llama.model.pretrained import find_model

    try:
        return find_model(name)
    except UserError as error:
        raise UserError(f"--model_path {error}") from error


def select_device(name: str | None) -> "torch.device":
    """Returns the named device; without a name cuda:0, or the CPU with a notice.

    Raises:
        UserError: the device cannot be used.
    """
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        print_notice("there is no CUDA device here: running on the CPU")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def read_requests(
    arguments: PromptArguments,
) -> "str | list[Message] | list[tuple[dict, str | list[Message]]] | None":
    """Reads what the model shall answer, before any model is loaded.

    Returns:
        A text or messages; for a file its records, each with its text or messages; None for a chat.

    Raises:
        UserError: lines of the file hold no prompt.
    """
    from colossal_llama.dataset.conversation import Message
    from colossal_llama.inference.batch import read_prompts
    from colossal_llama.inference.prompts import pretrained_prompt, prompt_messages, prompt_source

    is_sft = arguments.prompt_style == "sft"
    system = [Message("system", arguments.system)] if arguments.system is not None else []

    def messages(record: dict) -> list[Message]:
        given = prompt_messages(record)
        return given if given[0].role == "system" else [*system, *given]

    if arguments.input_file:
        return read_prompts(
            arguments.input_file, messages if is_sft else lambda record: pretrained_prompt(prompt_source(record))
        )
    if arguments.interactive:
        return None
    assert arguments.input_txt is not None, "checked by parse_arguments"
    return [*system, Message("human", arguments.input_txt)] if is_sft else pretrained_prompt(arguments.input_txt)


def prompt_builder(
    arguments: PromptArguments, tokenizer: "PreTrainedTokenizerFast"
) -> "tuple[Callable[[Any], list[int]], Template | None]":
    """Returns the function from a text or messages to prompt ids, and the conversation template.

    The template is None for base models.
    """
    from colossal_llama.inference.prompts import PretrainedPrompt, conversation_prompt_ids, open_template

    if arguments.prompt_style == "pretrained":
        return PretrainedPrompt(tokenizer).ids, None
    template = open_template(tokenizer, arguments.llama_version, arguments.chat_template)
    return partial(conversation_prompt_ids, template), template


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
