"""Samples and held-out text have the requested size, whatever the documents' number and length."""

import gzip
import json
import random

import pytest

from colossal_llama.tokenizer.learning import training_corpus
from colossal_llama.utils.errors import UserError

DOCUMENTS = {
    "one short": [3_000],
    "one": [100_000],
    "five short": [500] * 5,
    "many": [900] * 200,
    "many short, one long": [100] * 300 + [200_000],
    "two, more than is held out at most": [600_000] * 2,
}


@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_twentieth_of_the_text_is_held_out_however_few_the_documents(lengths, tmp_path, monkeypatch):
    monkeypatch.setattr(training_corpus, "HELD_OUT_BYTES", 40_000)
    line = "一二三四 five six\n"
    texts = [(line * (length // len(line) + 1))[:length] for length in lengths]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    corpus = read(tmp_path)
    expected = sum(lengths) * min(1 / 20, 40_000 / file.stat().st_size)
    assert 0.5 * expected <= sum(map(len, corpus.held_out)) <= 2 * expected
    assert corpus.documents == len(lengths)
    learned = "".join(texts).count("四") - "".join(corpus.held_out).count("四")
    assert sum(count for word, count in corpus.words.items() if "四" in word) == learned


def read(directory, sample_mb=500.0, seed=0) -> training_corpus.TrainingCorpus:
    return training_corpus.read_training_corpus([directory], sample_mb, seed, ["Han"])


def test_a_small_sample_has_the_requested_size_also_of_few_and_huge_records(tmp_path):
    """And taken by the seed, from the beginning and the end of long records alike."""
    halves = ["一二三四。\n", "五六七八。\n"]
    texts = ["".join(half * 20_000 for half in halves)] * 2 + [half * 3 for half in halves] * 500
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    sample_mb = 0.02 * sum(len(line.encode()) for line in lines) / 1e6
    counts = []
    for seed in (0, 0, 1, 2, 3):
        corpus = read(tmp_path, sample_mb, seed)
        assert corpus.characters == pytest.approx(0.02 * sum(map(len, texts)), rel=0.25)
        assert len("".join(corpus.held_out)) == pytest.approx(corpus.characters / 20, rel=0.5)
        # Of the 500 short ones a fiftieth, and both long ones, however many blocks.
        assert 2 <= corpus.documents <= 2 + 40
        counts.append([sum(count for word, count in corpus.words.items() if half[0] in word) for half in halves])
    assert counts[0] == counts[1] != counts[2]
    first, second = (sum(found) for found in zip(*counts[1:], strict=True))
    assert first == pytest.approx(second, rel=0.2)


def test_a_sample_of_compressed_texts_has_the_requested_size(tmp_path):
    """Of their content, not of their bytes on the disk, which are a sixth of it here."""
    numbers = random.Random(0)
    texts = ["".join(numbers.choices("一二三四五六。", k=2_000)) for _ in range(3_000)]
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, compresslevel=6))
    assert read(tmp_path, sample_mb=2.0).characters == pytest.approx(2e6 / 3, rel=0.15)


def test_nothing_to_hold_out_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("一二三四\n" * 20)
    with pytest.raises(UserError, match="nothing can be held out"):
        read(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    content = gzip.compress(b'{"text": "one two three"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged"):
        read(tmp_path)
