"""Tokenizers that several tests of preparation use."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.template_presets import PRESETS
from colossal_llama.tokenizer.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(made_llama2: Path) -> Path:
    """The made tokenizer of LLaMA-2's kind, unless a module has its own."""
    return made_llama2


@pytest.fixture(scope="module")
def opened(tokenizer_dir: Path) -> OpenTokenizer:
    """The tokenizer as a preparation opens it."""
    return OpenTokenizer(tokenizer_dir)


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest, any_data: Path) -> tuple[str, PreTrainedTokenizerFast]:
    """A preset's name, and a tokenizer with its control tokens."""
    directory = "llama2" if request.param == "llama2-chat" else "llama3-base"
    tokenizer = load_tokenizer(any_data / "tokenizers" / directory)
    if request.param == "chatml":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return request.param, tokenizer
