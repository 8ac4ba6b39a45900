"""Fixtures of several unit tests: LLaMA-2's tokenizer, and a random model with it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def llama2(shared_data: Path) -> Path:
    return shared_data / "tokenizers" / "llama2"


@pytest.fixture(scope="session")
def random_model_directory(llama2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two layers with LLaMA-2's tokenizer: what it says is noise, and full of broken characters."""
    directory = tmp_path_factory.mktemp("model") / "random"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, max_position_embeddings=400, initializer_range=0.3, **shape))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(llama2).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def random_model(random_model_directory: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(random_model_directory).eval()
