"""Repeated paragraphs: what stays, in any chunks, and that no text is lost."""

from pathlib import Path

import numpy as np
import pytest

from colossal_llama.cleaning.duplicates import paragraphs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.paragraphs import cut_paragraphs, paragraph_hashes
from tests.support.duplicate_texts import made_text

MIN_BYTES = 60
A, B, C = (made_text(np.random.default_rng(seed), 40, "en") for seed in range(3))
字 = made_text(np.random.default_rng(3), 30, "zh")


def without_repeated(
    directory: Path, texts: list[str], size: int, dropped: tuple[int, ...] = (), memory_bytes: int = 1
) -> list[str]:
    """Texts without repeated paragraphs, in chunks of `size`; some are dropped as duplicates."""
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    for number, chunk in enumerate(chunks):
        paragraphs.write_signatures(directory, number, *paragraph_hashes([[text] for text in chunk], MIN_BYTES))
    index = DocumentIndex.of_chunks(list(map(len, chunks)))
    is_dropped = np.isin(np.arange(len(texts)), dropped)
    paragraphs.merge(directory, index, is_dropped, memory_bytes)
    results = []
    for number, chunk in enumerate(chunks):
        cuts = paragraphs.read_cuts(directory, number)
        results += [cut_paragraphs(text, cuts.get(at, frozenset()), MIN_BYTES).text for at, text in enumerate(chunk)]
    return results


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_repeated_paragraph_stays_in_the_first_document_alone(tmp_path, size):
    texts = [f"one\n\n{A}\n\ntwo", f"{A}\n \n{B}", f"{字}\n{B}\n短", f"x\n{字}", f"{A}\n\n{A}\n\nlast", f"{C}\n{C}"]
    assert without_repeated(tmp_path, texts, size) == [texts[0], B, f"{字}\n短", "x", "last", texts[5]]


def test_a_paragraph_stays_where_its_first_document_is_dropped_as_a_duplicate(tmp_path):
    texts = [f"{A}\n\n{B}", f"{A}\n\n{B}\n\n{C}", f"{B}\n\nnews"]
    assert without_repeated(tmp_path, texts, 2, dropped=(0,))[1:] == [texts[1], "news"]


@pytest.mark.parametrize("dropped", [(), (0,), (0, 1, 2, 3), (1, 4, 9)])
def test_a_paragraph_of_very_many_documents_stays_in_one(tmp_path, monkeypatch, dropped):
    monkeypatch.setattr(paragraphs.hash_runs, "_LARGEST_GROUP", 3)
    texts = [f"{A}\n\n{number}" for number in range(10)]
    rest = without_repeated(tmp_path, texts, 4, dropped)
    staying = [number for number in range(10) if number not in dropped]
    assert [rest[number] for number in staying] == [texts[staying[0]], *map(str, staying[1:])]


def test_short_paragraphs_stay(tmp_path):
    beginnings = ["# Usage", 字[:19], 字[:20]]  # 7, 57 and 60 bytes
    texts = [f"{beginning}\n\n{number}" for beginning in beginnings for number in (1, 2)]
    assert without_repeated(tmp_path, texts, 6) == [*texts[:5], "2"]


@pytest.mark.parametrize("fence", ["```", "~~~"])
def test_a_paragraph_with_the_fence_of_code_stays(tmp_path, fence):
    texts = [f"{fence}\n{A}\n\n{B}\n\n{C}\n{fence}\n\n{number}" for number in (1, 2)]
    assert without_repeated(tmp_path, texts, 2) == [texts[0], texts[1].replace(f"{B}\n\n", "")]


def test_what_an_interrupted_merge_left_does_not_count(tmp_path):
    texts = [f"{A}\n\none", f"{B}\n\ntwo", f"{C}\n\nthree"]
    paragraphs.hash_runs.write_run(tmp_path / paragraphs.CUT, 7, np.zeros(1, np.uint64), paragraph_hashes([[A]], 1)[0])
    assert without_repeated(tmp_path, texts, 3) == texts


@pytest.mark.parametrize("separator", ["\n\n", "\n", "\n \t\n\n", "\n\u3000\n"])
def test_white_space_between_and_around_paragraphs_does_not_count(separator):
    text = separator.join([f"  {A}", B, f"{C} "])
    hashes, positions = paragraph_hashes([[text], [A], [B], [C], ["", A]], MIN_BYTES)
    assert hashes[:3].tolist() == hashes[3:6].tolist()
    assert hashes[6] == hashes[0]
    assert positions.tolist() == [0, 0, 0, 1, 2, 3, 4]
    for cut, rest in [((0,), [B, f"{C} "]), ((1,), [f"  {A}", f"{C} "]), ((2,), [f"  {A}", B]), ((0, 1, 2), [])]:
        result = cut_paragraphs(text, frozenset(hashes[list(cut)].tolist()), MIN_BYTES)
        assert result.text == separator.join(rest)
        assert (result.paragraphs, result.characters) == (len(cut), len(text) - len(result.text))


def test_a_text_without_such_paragraphs_is_cut_nowhere():
    for text in ["", "\n", f"\n\n{A}\n\n\n{B}\n", A, f"\n{A}\n"]:
        assert cut_paragraphs(text, frozenset([1]), MIN_BYTES) == (text, 0, 0)
