"""Runs a model: completes a text, answers a question, chats, or answers a file of prompts."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from colossal_llama.inference.arguments import parse_arguments
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from colossal_llama.dataset.chat_template import ChatTemplate
    from colossal_llama.dataset.conversation import ConversationTemplate, Message
    from colossal_llama.inference.generation import Answer


def main() -> None:
    """Parse, choose the device, load, and run one of the three ways."""
    arguments = parse_arguments()
    # Of the model's generation_config.json, which decides nothing here.
    warnings.filterwarnings("ignore", message="`do_sample` is set to `False`")
    import torch

    from colossal_llama.inference.generation import Sampling, TextGenerator, find_model, load_for_inference, stop_ids_of

    device = choose_device(arguments.device)
    requests = read_requests(arguments)
    model, tokenizer = load_for_inference(find_model(arguments.model_path), arguments.dtype, device)
    prompt_ids, template = prompt_builder(arguments, tokenizer)
    stop_ids = stop_ids_of(model, tokenizer, *([template.turn_end_id] if template else []))
    sampling = Sampling(arguments.do_sample, arguments.temperature, arguments.top_k, arguments.top_p)
    generator = TextGenerator(model, tokenizer, stop_ids, sampling, arguments.max_new_tokens)
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)

    if arguments.interactive:
        from colossal_llama.inference.chat import chat

        report_speed(chat(generator, template, arguments.system, show, notice))
    elif arguments.input_file:
        from colossal_llama.inference.batch import answer_all

        records = [record for record, _ in requests]
        prompts = [prompt_ids(prompt) for _, prompt in requests]
        report = answer_all(generator, records, prompts, arguments.output_file, arguments.seed)
        notice(
            f"{report['prompts']:,} answers, {report['generated_tokens']:,} tokens in {report['seconds']:.1f} s: "
            f"{report['tokens_per_second']:.1f} tokens/s → {arguments.output_file}"
        )
    else:
        answer = generator.generate(prompt_ids(requests), show)
        show("\n")
        report_speed([answer])


def choose_device(name: str | None) -> "torch.device":
    """The device asked for, else cuda:0, else the CPU with a notice."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        notice("there is no CUDA device here: running on the CPU")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def read_requests(arguments: Namespace) -> "str | list[Message] | list[tuple[dict, str | list[Message]]] | None":
    """What is asked, before any model is loaded: a text or messages; of a file records with these; None for a chat."""
    from colossal_llama.dataset.conversation import Message
    from colossal_llama.inference.batch import read_prompts
    from colossal_llama.inference.prompts import messages_of, pretrained_prompt, source_of

    is_sft = arguments.prompt_style == "sft"
    system = [Message("system", arguments.system)] if arguments.system is not None else []

    def messages(record: dict) -> list[Message]:
        given = messages_of(record)
        return given if given[0].role == "system" else [*system, *given]

    if arguments.input_file:
        return read_prompts(
            arguments.input_file, messages if is_sft else lambda record: pretrained_prompt(source_of(record))
        )
    if arguments.interactive:
        return None
    return [*system, Message("human", arguments.input_txt)] if is_sft else pretrained_prompt(arguments.input_txt)


def prompt_builder(
    arguments: Namespace, tokenizer: "PreTrainedTokenizerFast"
) -> "tuple[Callable[[str | list[Message]], list[int]], ConversationTemplate | ChatTemplate | None]":
    """The function from a text or messages to prompt ids, and the conversation template (None for base models)."""
    from colossal_llama.inference.prompts import PretrainedPrompt, conversation_prompt_ids, open_template

    if arguments.prompt_style == "pretrained":
        return PretrainedPrompt(tokenizer).ids, None
    template = open_template(tokenizer, arguments.llama_version, arguments.chat_template)
    return partial(conversation_prompt_ids, template), template


def show(text: str) -> None:
    """Prints a piece of an answer at once."""
    print(text, end="", flush=True)


def notice(text: str) -> None:
    """Tells the user something beside the answer, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report_speed(answers: "list[Answer]") -> None:
    """Prints tokens per second over all answers."""
    tokens, seconds = sum(len(answer.token_ids) for answer in answers), sum(answer.seconds for answer in answers)
    prompts, reused = sum(a.prompt_tokens for a in answers), sum(a.reused_tokens for a in answers)
    if answers:
        notice(
            f"{tokens:,} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s (prompts: {prompts:,} tokens, "
            f"{reused:,} of "
            "them still in the key-value cache)"
        )
