"""Beginning and end of a prompt in llama.cpp: BOS, first space, chat template, stop tokens.

A GGUF file has one switch each for BOS and for a space before text, where transformers decides by
what stands in front. Where one switch cannot be right for both plain prompts and chats, it is right
for chats in a model that has a chat template, and for plain prompts in another.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from colossal_llama.dataset.template_renderer import ChatTemplateError, TemplateRenderer
from colossal_llama.tokenizer.token_bytes import SPACE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(\s*[-+]?%})")


@dataclass(frozen=True)
class GgufChat:
    """Beginning and end of prompts and answers.

    Attributes:
        adds_bos: llama.cpp begins a prompt with BOS.
        adds_eos: llama.cpp ends a prompt with EOS.
        adds_space: for sentencepiece: a space comes before text, at its beginning and behind every
            control token.
        templates: chat templates by name; `default` is that of plain chats.
        stops: ids that end an answer, EOS first.
        notes: what llama.cpp does otherwise than transformers, a sentence each.
    """

    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    templates: dict[str, str]
    stops: list[int]
    notes: list[str]


def read_chat(tokenizer: "PreTrainedTokenizerFast", end_ids: Iterable[int]) -> GgufChat:
    """Finds the switches by encoding short texts.

    Args:
        tokenizer: a fast tokenizer.
        end_ids: the tokens that end a text by the model's generation settings.
    """
    templates, notes = _templates(tokenizer), []
    default = templates.get("default")
    ids = tokenizer("a")["input_ids"]
    bos_id = tokenizer.bos_token_id
    adds_bos, adds_eos = bos_id is not None and ids[0] == bos_id, ids[-1] == tokenizer.eos_token_id
    if default is None:
        notes.append("the model has no chat template: llama.cpp's chat then speaks ChatML to it")
    elif adds_bos and not _begins_with_bos(tokenizer, default):
        adds_bos = False
        notes.append("chats begin without BOS, so llama.cpp adds none to plain prompts either, where it belongs")
    elif adds_eos:
        notes.append("llama.cpp does not end plain prompts with EOS, as the tokenizer does")
    at_beginning, behind_control = _first_token(tokenizer, "a"), _first_token(tokenizer, f"{tokenizer.eos_token}a")
    adds_space = at_beginning if default is None else behind_control
    if at_beginning and not behind_control and default is not None:
        notes.append(
            "llama.cpp puts no space before a prompt's first word, because this model's chats have none behind control "
            "tokens: begin a plain prompt, which is no chat, with a space"
        )
    stops = list(dict.fromkeys([tokenizer.eos_token_id, *end_ids]))
    return GgufChat(adds_bos, adds_eos and default is None, adds_space, templates, stops, notes)


def _templates(tokenizer: "PreTrainedTokenizerFast") -> dict[str, str]:
    """The tokenizer's templates without generation marks.

    llama.cpp ignores the marks, and other readers of GGUF stop at them. A condition that always
    holds takes their place, so that the white space around them is trimmed as before.
    """
    own = tokenizer.chat_template
    templates = own if isinstance(own, dict) else {} if own is None else {"default": own}
    return {
        name: _GENERATION.sub(lambda mark: f"{mark[1]}{'endif' if mark[2] else 'if true'}{mark[3]}", template)
        for name, template in templates.items()
    }


def _begins_with_bos(tokenizer: "PreTrainedTokenizerFast", template: str) -> bool:
    renderer = TemplateRenderer(template, "chat template", tokenizer.special_tokens_map, date.today().isoformat())
    try:
        text, _ = renderer.render([{"role": "user", "content": "a"}], for_prompt=True)
    except ChatTemplateError:  # one that takes no such conversation
        return True
    return text.startswith(tokenizer.bos_token)


def _first_token(tokenizer: "PreTrainedTokenizerFast", text: str) -> bool:
    """True when the last token of a text that ends in a one-letter word begins with a space."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens[-1].startswith(SPACE_MARK)
