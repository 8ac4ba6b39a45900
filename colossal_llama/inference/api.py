"""Inference from Python: opens a model, completes texts, and streams the answers of a chat.

    from colossal_llama.inference.api import Sampling, open_model

    model = open_model("sft/modelling", prompt_style="sft")
    model.complete("云桥镇在哪里？", Sampling(do_sample=False))

    history = []
    for question in ("Who are you?", "And what can you do?"):
        answer = model.chat(question, history)
        for piece in answer:
            print(piece, end="", flush=True)
        history = answer.history

Prompts are those of `inference_example.py`, which calls the same functions. Nothing is printed, and
no state outside of the model is changed, PyTorch's random generators included.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.messages import messages_of
from colossal_llama.inference.arguments import ModelArguments, PromptFormat, Sampling, format_problems
from colossal_llama.inference.generation import Answer, Completion, TextGenerator
from colossal_llama.inference.prompts import (
    PretrainedPrompt,
    Template,
    conversation_prompt_ids,
    drop_oldest_exchanges,
    open_template,
    other_format_notice,
    pretrained_prompt,
)
from colossal_llama.model.device import select_device
from colossal_llama.model.pretrained import find_model, load_for_inference, stop_token_ids
from colossal_llama.readers.record import RecordError
from colossal_llama.utils.arguments import value_problems
from colossal_llama.utils.cli import is_decodable
from colossal_llama.utils.errors import UserError, truncate_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | Sequence[Message | Mapping[str, str]]
"""A text, or the messages of a conversation up to the one to answer."""
DEFAULT_SAMPLING = Sampling()
_NAMES = {"human": "user", "assistant": "assistant", "system": "system"}


def open_model(
    model_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    prompt_style: str | None = None,
    llama_version: int | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    system: str | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> "LanguageModel":
    """Opens a model or a LoRA adapter on its base model; the options are the script's.

    Args:
        model_path: directory of a model or of a peft adapter, or hub name.
        device: `cpu`, `cuda:0`, …; None: `cuda:0`, or `cpu` where there is no CUDA device.
        dtype: `float32`, `float16` or `bfloat16`; `auto`: as stored.
        prompt_style: `pretrained` or `sft`: how a text is asked; None: `pretrained`, and `sft` for
            a chat.
        llama_version: 2 or 3, whose turn-end token is used; None: as recorded, or found from the
            tokenizer.
        chat_template: a Jinja file, the name of a preset, or `tokenizer` for the tokenizer's own
            template; None: the format that the model was trained with, if it is recorded.
        system: system prompt of conversations without one, in place of the format's; empty: none.
        warn: receives what is said of the model's files, such as edits since they were written,
            and of a format other than the one that it was trained with.

    Raises:
        UserError: an argument is wrong, or the model cannot be loaded; `problems` lists all.
    """
    template = None if chat_template is None else os.fspath(chat_template)
    prompt_format = PromptFormat(
        prompt_style=prompt_style, llama_version=llama_version, chat_template=template, system=system
    )
    device_name = None if device is None else str(device)
    loading = ModelArguments(model_path=os.fspath(model_path), device=device_name, dtype=dtype)
    problems = [*value_problems(loading), *value_problems(prompt_format)]
    if problems := problems or list(format_problems(prompt_format, prompt_style != "pretrained")):
        raise UserError(problems)
    chosen = select_device(loading.device)
    with warnings.catch_warnings():  # about the model's generation_config.json, which is not used
        warnings.filterwarnings("ignore", message="`do_sample` is set to `False`")
        model, tokenizer = load_for_inference(find_model(loading.model_path), dtype, chosen, warn)
    opened = LanguageModel(model, tokenizer, prompt_format)
    if notice := opened.format_notice():
        warn(notice)
    return opened


class LanguageModel:
    """A model with its tokenizer and its way of being asked; `open_model` makes it.

    A prompt may be a text or messages: `{"role": "user", "content": …}`, also with the keys and
    roles that preparation takes. Messages are asked in the format of conversations, a text as
    `prompt_style` says. What is wrong with a prompt is raised at once, before anything is
    generated.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerFast", prompt_format: PromptFormat):
        """Opens the conversation format, if it was asked for.

        Raises:
            UserError: the chat template cannot be used, or the tokenizer is not of that version.
        """
        self.model, self.tokenizer = model, tokenizer
        self._format = prompt_format
        self._generator = TextGenerator(model, tokenizer)
        if prompt_format.prompt_style == "sft" or prompt_format.chat_template or prompt_format.llama_version:
            _ = self._template

    def complete(self, prompt: Prompt, sampling: Sampling = DEFAULT_SAMPLING) -> str:
        """Returns the completion of a text, or the answer to a question.

        Args:
            prompt: a text or messages.
            sampling: how tokens are chosen, and the most tokens.

        Raises:
            UserError: the prompt is not one, or too long for the model.
        """
        return self.stream(prompt, sampling).finish().text

    def complete_many(self, prompts: Iterable[Prompt], sampling: Sampling = DEFAULT_SAMPLING) -> list[str]:
        """Returns the completions of many prompts, generated one after the other.

        Args:
            prompts: texts or messages.
            sampling: see `complete`; prompt i is sampled with seed + i, as in a file of prompts.

        Raises:
            UserError: names the prompts that are none, before the first is completed.
        """
        return [completion.text for completion in self.answers(prompts, sampling)]

    def answers(self, prompts: Iterable[Prompt], sampling: Sampling = DEFAULT_SAMPLING) -> Iterator[Completion]:
        """Like `complete_many`, but yields each answer when it is there, with its counts."""
        encoded = self._encoded(prompts)

        def generated() -> Iterator[Completion]:
            for number, (ids, stop_ids) in enumerate(encoded):
                seed = None if sampling.seed is None else sampling.seed + number
                source = self._generator.random_source(seed)
                yield self._generator.answer(ids, stop_ids, sampling, source).finish()

        return generated()

    def stream(
        self, prompt: Prompt, sampling: Sampling = DEFAULT_SAMPLING, random_source: torch.Generator | None = None
    ) -> Answer:
        """Returns an iterator of the answer's pieces, each of whole characters.

        Args:
            prompt: a text or messages.
            sampling: see `complete`.
            random_source: draws the tokens, in place of one made from the seed (`random_source`).

        Raises:
            UserError: see `complete`.
        """
        return self._generator.answer(*self._encode(prompt), sampling, random_source)

    def chat(
        self,
        question: str,
        history: Sequence[Message | Mapping[str, str]] | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        random_source: torch.Generator | None = None,
    ) -> "ChatAnswer":
        """Returns an iterator of the answer's pieces, which also has the history with that answer.

        When the conversation fills three quarters of the model's positions, its oldest exchanges
        are dropped; the answer's `dropped_messages` counts them.

        Args:
            question: the next message.
            history: messages before it; a system message may come first.
            sampling: see `complete`.
            random_source: see `stream`.

        Raises:
            UserError: see `complete`; also if the model is asked as a base model.
        """
        asked = self._messages([*(history or ()), Message("human", question)])
        kept, dropped = drop_oldest_exchanges(self._template, asked, self._generator.max_positions * 3 // 4)
        ids, stop_ids = self._encode(kept)
        return ChatAnswer(self._generator.answer(ids, stop_ids, sampling, random_source), kept, dropped)

    def format_notice(self) -> str | None:
        """Returns a notice where prompts differ from the tokenizer's chat template."""
        if self._format.prompt_style is None:
            return None
        return other_format_notice(self.tokenizer, self._template if self._format.prompt_style == "sft" else None)

    def random_source(self, seed: int | None) -> torch.Generator:
        """Returns a random generator on the model's device, to be drawn from by several answers."""
        return self._generator.random_source(seed)

    # ------------------------------------------------------------------------------------- prompts

    @cached_property
    def _template(self) -> Template:
        form = self._format
        return open_template(self.tokenizer, form.llama_version, form.chat_template, without_system=form.system == "")

    @cached_property
    def _pretrained_prompt(self) -> PretrainedPrompt:
        return PretrainedPrompt(self.tokenizer)

    def _messages(self, listed: Sequence[Message | Mapping[str, str]]) -> list[Message]:
        """Messages of a conversation, with the given system prompt unless they have one."""
        if self._format.prompt_style == "pretrained":
            raise UserError("a chat needs --prompt_style sft: a base model does not take turns")
        notes: list[str] = []
        try:
            messages = messages_of([_as_record(message) for message in listed], "messages", notes)
        except RecordError as error:
            raise UserError(f"messages: {error}") from error
        if notes:
            raise UserError(f"messages have what is not read ({', '.join(sorted(set(notes)))}): leave it out")
        if not messages or messages[-1].role != "human":
            raise UserError("the last message must be a human's: there is nothing to answer")
        if any(message.role == "system" for message in messages[1:]):
            raise UserError("a system message is not the first one: only the first may be")
        for message in messages:
            _checked(message.content)
        own = [Message("system", self._format.system)] if self._format.system else []
        return messages if messages[0].role == "system" else [*own, *messages]

    def _encode(self, prompt: Prompt) -> tuple[list[int], set[int]]:
        """Ids of a prompt, and the tokens that end its answer."""
        if isinstance(prompt, str) and self._format.prompt_style != "sft":
            ids = self._pretrained_prompt.ids(pretrained_prompt(_checked(prompt)))
            return ids, stop_token_ids(self.model, self.tokenizer)
        messages = self._messages([Message("human", prompt)] if isinstance(prompt, str) else prompt)
        stop_ids = stop_token_ids(self.model, self.tokenizer, self._template.turn_end_id)
        return conversation_prompt_ids(self._template, messages), stop_ids

    def _encoded(self, prompts: Iterable[Prompt]) -> list[tuple[list[int], set[int]]]:
        """Ids of all prompts, of which none is too long."""
        encoded, problems = [], []
        for number, prompt in enumerate(prompts, start=1):
            encoded.append(self._encode(prompt))
            try:
                self._generator.check_prompt(encoded[-1][0])
            except UserError as error:
                problems.append(str(error).replace("the prompt", f"prompt {number}", 1))
        if problems:
            raise UserError(truncate_problems(problems))
        return encoded


def _checked(text: str) -> str:
    if not is_decodable(text):
        raise UserError(f"the text {text[:40]!r} holds half of a surrogate pair, which is no character")
    return text


def _as_record(message: Message | Mapping[str, str]) -> Mapping[str, str]:
    return {"from": message.role, "content": message.content} if isinstance(message, Message) else message


class ChatAnswer(Answer):
    """The answer of a chat: an iterator of pieces, with the history that it continues.

    Attributes:
        dropped_messages: the number of the oldest messages that were left out of the prompt.
    """

    def __init__(self, answer: Answer, messages: Sequence[Message], dropped_messages: int):
        """Continues the messages of the prompt by the answer."""
        super().__init__(answer.pieces, answer.completion)
        self._messages = messages
        self.dropped_messages = dropped_messages

    @property
    def history(self) -> list[dict[str, str]]:
        """Messages of the prompt and the answer, as far as it has been generated."""
        messages = [*self._messages, Message("assistant", self.completion.text)]
        return [{"role": _NAMES[message.role], "content": message.content} for message in messages]
