"""Tokenizer directories as transformers 5 writes them, made without it."""

import json
from pathlib import Path

from colossal_llama.tokenizer.loading import load_tokenizer

CLASS_OF = {"llama2": "LlamaTokenizer", "llama3-base": "TokenizersBackend"}


def as_transformers_5(source: Path, target: Path, tokenizer_class: str, **settings: object) -> Path:
    """Writes a tokenizer as transformers 5.24 does: tokenizer.json and few settings."""
    tokenizer = load_tokenizer(source)
    target.mkdir(parents=True)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    content = {
        "add_prefix_space": True,
        "backend": "tokenizers",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "extra_special_tokens": [tokenizer.bos_token, tokenizer.eos_token],
        "is_local": True,
        "local_files_only": False,
        "model_max_length": 2048,
        "pad_token": None,
        "tokenizer_class": tokenizer_class,
        **({"unk_token": tokenizer.unk_token} if tokenizer.unk_token else {}),
        **settings,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(content))
    (target / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    return target
