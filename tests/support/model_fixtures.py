"""Fixtures of several unit tests: a made LLaMA-2 tokenizer, and a random model with it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def llama2(made_llama2: Path) -> Path:
    """A made LLaMA-2 tokenizer, quick to open: to models' rows and to answers, any would do."""
    return made_llama2


@pytest.fixture(scope="session")
def random_model_directory(llama2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two layers with a made LLaMA-2 tokenizer: what it says is noise, and full
    of broken characters.
    """
    directory = tmp_path_factory.mktemp("model") / "random"
    tokenizer = AutoTokenizer.from_pretrained(llama2)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=400, initializer_range=0.3, **shape)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def random_model(random_model_directory: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(random_model_directory).eval()
