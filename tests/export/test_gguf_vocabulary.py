"""Vocabularies of GGUF files: names of pre-tokenizers, scores for merges, types of tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from colossal_llama.export.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, read_vocabulary
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.token_bytes import SPACE_MARK
from colossal_llama.utils.errors import UserError


def changed(source: Path, directory: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a tokenizer with another tokenizer.json."""
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    (directory / "tokenizer.model").unlink(missing_ok=True)
    definition = json.loads((directory / "tokenizer.json").read_text())
    change(definition)
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    return directory


def test_a_byte_level_tokenizer_is_named_by_its_definition(any_data, tmp_path):
    source = any_data / "tokenizers" / "llama3-base"
    assert read_vocabulary(load_tokenizer(source), 200_000).pre_tokenizer == "llama-bpe"
    digits = {"type": "Digits", "individual_digits": True}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

    def as_smollm(definition: dict) -> None:
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, last]}
        definition["model"]["ignore_merges"] = False

    def without_whole_words(definition: dict) -> None:
        definition["model"]["ignore_merges"] = False

    for name, change in (("smollm", as_smollm), ("smaug-bpe", without_whole_words)):
        tokenizer = load_tokenizer(changed(source, tmp_path / name, change))
        assert read_vocabulary(tokenizer, 200_000).pre_tokenizer == name


def test_an_unknown_way_of_cutting_texts_is_refused(made_data, tmp_path):
    def other_pattern(definition: dict) -> None:
        definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+|\P{L}+"}

    def lower_case(definition: dict) -> None:
        definition["normalizer"] = {"type": "Lowercase"}

    for name, change in (("pattern", other_pattern), ("case", lower_case)):
        tokenizer = load_tokenizer(changed(made_data / "tokenizers" / "llama3-base", tmp_path / name, change))
        with pytest.raises(UserError, match="cuts texts in a way that is none of LLaMA-3's"):
            read_vocabulary(tokenizer, 200_000)


def test_scores_order_the_pieces_as_those_of_sentencepiece_do(any_data):
    """llama.cpp compares scores: the order is all that counts. LLaMA-2's runs of spaces, which have
    one score there, are left out: they come in the order of the merges.
    """
    source = any_data / "tokenizers" / "llama2"
    tokenizer, model = load_tokenizer(source), sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made = {"".join(merge).replace(" ", "") for merge in merges}
    ids = [i for i, token in enumerate(vocabulary.tokens) if token in made and set(token) != {SPACE_MARK}]
    assert len(ids) > 1000
    assert sorted(ids, key=lambda i: -vocabulary.scores[i]) == sorted(ids, key=lambda i: -model.GetScore(i))
    assert len({vocabulary.scores[i] for i in ids}) == len(ids)


def test_merges_that_scores_cannot_express_are_refused(made_llama2, tmp_path):
    def without_a_merge(definition: dict) -> None:
        del definition["model"]["merges"][5]

    def mixed_ranks(definition: dict) -> None:
        merges = definition["model"]["merges"]
        merges.append(
            merges.pop(next(i for i, pair in enumerate(merges) if len(made(pair)) > 3 and many(merges, pair)))
        )

    def made(pair: list[str] | str) -> str:
        return "".join(pair.split(" ") if isinstance(pair, str) else pair)

    def many(merges: list, pair: list[str] | str) -> bool:
        return sum(made(other) == made(pair) for other in merges) > 1

    for name, change in (("missing", without_a_merge), ("mixed", mixed_ranks)):
        tokenizer = load_tokenizer(changed(made_llama2, tmp_path / name, change))
        with pytest.raises(UserError, match="are not those of a sentencepiece model"):
            read_vocabulary(tokenizer, len(tokenizer))


def test_every_row_has_a_token_and_a_type(made_llama2, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made_llama2)
    size = len(tokenizer)
    tokenizer.add_tokens(["▁two words"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.save_pretrained(tmp_path)
    vocabulary = read_vocabulary(load_tokenizer(tmp_path), size + 5)
    assert len(vocabulary.tokens) == len(vocabulary.types) == len(vocabulary.scores) == size + 5
    assert vocabulary.tokens[size:] == [" two words", "<|turn|>", *(f"[PAD{size + i}]" for i in (2, 3, 4))]
    assert vocabulary.types[size:] == [USER_DEFINED, CONTROL, UNUSED, UNUSED, UNUSED]
    assert [vocabulary.types[i] for i in (1, 2, 3)] == [CONTROL, CONTROL, BYTE]
    assert vocabulary.types[size - 1] == NORMAL


def test_what_would_stop_llama_cpp_is_refused(made_llama2, tmp_path):
    tokenizer = load_tokenizer(made_llama2)
    with pytest.raises(UserError, match="the model 100 rows only"):
        read_vocabulary(tokenizer, 100)
    shutil.copytree(made_llama2, tmp_path / "twice")
    added = AutoTokenizer.from_pretrained(tmp_path / "twice")
    added.add_tokens([f"[PAD{len(added) + 1}]"])
    added.save_pretrained(tmp_path / "twice")
    with pytest.raises(UserError, match=r"two tokens .* have the text"):
        read_vocabulary(load_tokenizer(tmp_path / "twice"), len(added) + 5)
