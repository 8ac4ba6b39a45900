"""Fixtures of several tests of tokenizers."""

import pytest

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer


@pytest.fixture(scope="module")
def corpus_directory(any_data, tmp_path_factory):
    """About 1.5 MB of the real corpus: Chinese and English documents, conversations, a file."""
    directory = tmp_path_factory.mktemp("corpus")
    for name, number in (("pretrain/zh_docs", 120), ("pretrain/zh_articles", 60), ("pretrain/en_docs", 4)):
        lines = sorted((any_data / name).glob("*.jsonl"))[0].read_text("utf-8").splitlines()[:number]
        (directory / name.split("/")[1]).mkdir()
        (directory / name.split("/")[1] / "part.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (directory / "talk").mkdir()
    lines = next((any_data / "sft" / "kdconv").glob("*.jsonl")).read_text("utf-8").splitlines()[:50]
    (directory / "talk" / "talk.jsonl").write_text("\n".join(lines), "utf-8")
    (directory / "notes").mkdir()
    (directory / "notes" / "a.txt").write_text("螃蟹 and a 𝔊lyph\n" * 3, "utf-8")
    return directory


@pytest.fixture(scope="module", params=["llama2", "llama3-base"])
def tokenizer(request, any_data):
    return load_tokenizer(any_data / "tokenizers" / request.param)


@pytest.fixture(scope="module")
def plain(tokenizer):
    return TextEncoder(tokenizer)
