"""Made texts with near duplicates, their Jaccard index by definition, and what is found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from colossal_llama.cleaning.duplicates import exact, near
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.near import NearDuplicateSettings
from colossal_llama.cleaning.hash_runs import hash_texts

SETTINGS = NearDuplicateSettings(min_similarity=0.8, min_words=20)
_CHARACTERS = [chr(code) for code in range(0x4E00, 0x5600)]
_WORDS = [
    first + middle + last
    for first in ("ba", "co", "de", "fi", "ga", "ho", "ju", "lo")
    for middle in ("n", "r", "st", "l", "mp")
    for last in ("a", "er", "ing", "o", "ed", "us")
]


def words_of(text: str) -> list[str]:
    """Words of a made text, which has them between spaces, or characters where it has no spaces."""
    return text.split() if " " in text else list(text)


def made_text(rng: np.random.Generator, words: int, language: str) -> str:
    """Random words, between spaces where the language is not `zh`."""
    vocabulary = _CHARACTERS if language == "zh" else _WORDS
    return joined([vocabulary[number] for number in rng.integers(0, len(vocabulary), words)], language)


def joined(words: Sequence[str], language: str) -> str:
    """Text of words."""
    return ("" if language == "zh" else " ").join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    """Sequences of five words."""
    words = words_of(text)
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def jaccard(left: str, right: str) -> float:
    """Jaccard index of two texts."""
    first, second = shingles(left), shingles(right)
    return len(first & second) / len(first | second)


def changed_to(text: str, similarity: float, rng: np.random.Generator, language: str) -> str:
    """Replaces words until one more would bring the Jaccard index below `similarity`."""
    words = words_of(text)
    for position in rng.permutation(len(words)).tolist():
        candidate = [*words[:position], words_of(made_text(rng, 2, language))[0], *words[position + 1 :]]
        if jaccard(text, joined(candidate, language)) < similarity:
            break
        words = candidate
    return joined(words, language)


def found_duplicates(
    directory: Path,
    chunks: Sequence[Sequence[str]],
    settings: NearDuplicateSettings = SETTINGS,
    memory_bytes: int = 1 << 28,
) -> dict[int, tuple[float | None, int]]:
    """Looks for duplicates among texts, as the passes do; chunks are finished in any order.

    Returns:
        By position of each dropped text: the similarity, None for an exact duplicate, and the
            position of the text that stays.
    """
    for number in reversed(range(len(chunks))):
        exact.write_signatures(directory / "exact", number, hash_texts(chunks[number]))
        near.write_signatures(directory / "near", number, *near.band_signatures(chunks[number], settings))
    index = DocumentIndex.of_chunks(list(map(len, chunks)))
    is_exact = exact.merge(directory / "exact", index, memory_bytes)
    is_near = near.merge(directory / "near", index, is_exact, chunks.__getitem__, settings.min_similarity, memory_bytes)
    found: dict[int, tuple[float | None, int]] = {}
    for number in range(len(chunks)):
        start = int(index.starts[number])
        for position, kept in exact.read_dropped(directory / "exact", number).items():
            found[start + position] = (None, _position(index, kept))
        for position, (kept, similarity) in near.read_dropped(directory / "near", number).items():
            found[start + position] = (similarity, _position(index, kept))
    assert sorted(found) == np.flatnonzero(is_exact | is_near).tolist()
    return found


def _position(index: DocumentIndex, number: int) -> int:
    return int(index.positions(np.array([number], dtype=np.uint64))[0])
