"""Chat templates by name for `--chat_template`: LLaMA-2 chat, LLaMA-3 instruct, ChatML.

They render what the published templates do, and mark the answers besides. All white space is
written in expressions, so that every Jinja renders the same, whatever it does with line ends.
"""

import argparse
import difflib
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.utils.cli import existing_file

TOKENIZERS_OWN = "tokenizer"
"""Value of `--chat_template` that selects the tokenizer's template."""


@dataclass(frozen=True)
class Preset:
    """A chat template, and the control tokens that it needs."""

    source: str
    control_tokens: tuple[str, ...]


_LLAMA2_CHAT = r"""{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('messages must alternate: user, assistant, user, ...; a system message may come first') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {%- set text = system + message['content'] if loop.first else message['content'] -%}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
    {%- else -%}
        {%- generation -%}
            {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
"""
_LLAMA3_INSTRUCT = r"""{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'].strip() + '<|eot_id|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message['content'].strip() + '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""
_CHATML = r"""{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\n' -}}
    {%- else -%}
        {{- message['content'] + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
PRESETS = {
    "chatml": Preset(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama2-chat": Preset(_LLAMA2_CHAT, ("<s>", "</s>")),
    "llama3-instruct": Preset(
        _LLAMA3_INSTRUCT, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ),
}
CHOICES = f"a Jinja file, {', '.join(PRESETS)}, or {TOKENIZERS_OWN}"


def chat_template_argument(text: str) -> str:
    """Type of `--chat_template`: the name of a preset, `tokenizer`, or an existing file.

    Raises:
        ArgumentTypeError: it is none of them; the closest preset is named.
    """
    if text == TOKENIZERS_OWN or text in PRESETS:
        return text
    if Path(text).name != text or Path(text).suffix or Path(text).exists():
        existing_file(text)
        return text
    close = difflib.get_close_matches(text.lower(), [*PRESETS, TOKENIZERS_OWN], n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise argparse.ArgumentTypeError(f"{text!r} is neither a file nor a known name{meant} (give {CHOICES})")
