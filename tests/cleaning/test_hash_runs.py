"""Tests of hashes on disk: what several documents share, whatever the memory and the chunks."""

from pathlib import Path

import numpy as np
import pytest

from colossal_llama.cleaning import hash_runs

AMPLE = 1 << 30
LEAST = 1


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def shared(directory: Path, memory_bytes: int) -> dict[int, list[int]]:
    """Documents by shared key; the pieces of a key in one list."""
    found: dict[int, list[int]] = {}
    for groups in hash_runs.groups(directory, memory_bytes):
        for key, start, end in zip(groups.keys.tolist(), groups.starts[:-1], groups.starts[1:], strict=True):
            documents = groups.documents[start:end].tolist()
            if key in found:
                assert documents[0] == found[key][0], "a piece begins with the first document"
                documents = documents[1:]
            found.setdefault(key, []).extend(documents)
    return found


def expected(keys: np.ndarray, documents: np.ndarray) -> dict[int, list[int]]:
    by_key: dict[int, set[int]] = {}
    for key, document in zip(keys.tolist(), documents.tolist(), strict=True):
        by_key.setdefault(key, set()).add(document)
    return {key: sorted(by_key[key]) for key in sorted(by_key) if len(by_key[key]) > 1}


@pytest.mark.parametrize("memory_bytes", [LEAST, 1 << 20, AMPLE])
@pytest.mark.parametrize("chunks", [1, 7])
def test_shared_keys_are_found_with_any_memory_and_any_number_of_chunks(
    tmp_path, rng, monkeypatch, memory_bytes, chunks
):
    monkeypatch.setattr(hash_runs, "_LARGEST_GROUP", 1000)
    keys = rng.integers(0, 1 << 64, 15_000, dtype=np.uint64)[rng.integers(0, 15_000, 40_000)]
    chunk = np.sort(rng.integers(0, chunks, 40_000))
    documents = np.concatenate(
        [hash_runs.document_numbers(c, np.arange((chunk == c).sum()) // 3) for c in range(chunks)]
    )
    for c in rng.permutation(chunks).tolist():  # workers finish in any order
        hash_runs.write_run(tmp_path, c, keys[chunk == c], documents[chunk == c])
    found = shared(tmp_path, memory_bytes)
    assert found == expected(keys, documents)
    assert len(found) > 1000


def test_memory_bounds_each_part(tmp_path, rng):
    for chunk in range(4):
        keys = rng.integers(0, 1 << 64, 50_000, dtype=np.uint64)
        hash_runs.write_run(tmp_path, chunk, np.repeat(keys, 2), hash_runs.document_numbers(chunk, range(100_000)))
    parts = list(hash_runs.groups(tmp_path, 8_000_000))
    assert sum(len(part.keys) for part in parts) == 200_000
    assert max(len(part.documents) for part in parts) * 96 <= 8_000_000


@pytest.mark.parametrize("key", [0, 12345, (1 << 64) - 1])
def test_a_key_of_very_many_documents_comes_in_the_same_pieces_with_any_memory(tmp_path, monkeypatch, key):
    monkeypatch.setattr(hash_runs, "_LARGEST_GROUP", 4096)
    every = []
    for chunk, count in enumerate([9000, 1, 0, 5000]):
        documents = hash_runs.document_numbers(chunk, range(count))
        hash_runs.write_run(tmp_path, chunk, np.full(count, key, dtype=np.uint64), documents)
        every += documents.tolist()
    hash_runs.write_run(tmp_path, 9, np.array([key ^ 1] * 2, dtype=np.uint64), hash_runs.document_numbers(9, [1, 2]))
    pieces = []
    for memory_bytes in (LEAST, 12_000 * 96, AMPLE):
        groups = [groups for groups in hash_runs.groups(tmp_path, memory_bytes) if key in groups.keys]
        pieces.append([group.documents.tolist() for group in groups])
        assert max(map(len, pieces[-1])) <= 4097
        assert shared(tmp_path, memory_bytes) == {key: every, key ^ 1: hash_runs.document_numbers(9, [1, 2]).tolist()}
    assert pieces[0] == pieces[1] == pieces[2]


def test_a_key_twice_in_one_document_is_shared_by_nobody(tmp_path):
    hash_runs.write_run(tmp_path, 0, np.array([5, 5, 6], dtype=np.uint64), hash_runs.document_numbers(0, [3, 3, 3]))
    assert shared(tmp_path, AMPLE) == {}


def test_a_chunk_made_again_replaces_its_run(tmp_path):
    for keys in ([1, 2], [3, 3]):
        hash_runs.write_run(tmp_path, 0, np.array(keys, dtype=np.uint64), hash_runs.document_numbers(0, [0, 1]))
    assert shared(tmp_path, AMPLE) == {3: [0, 1]}
    assert [path.name for path in tmp_path.iterdir()] == ["run-00000000.npy"]


def test_nothing_is_shared_where_nothing_was_written(tmp_path):
    assert shared(tmp_path / "missing", AMPLE) == {}
    assert hash_runs.read_documents(tmp_path / "missing", 0).shape == (2, 0)
    hash_runs.write_run(tmp_path, 0, np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))
    assert shared(tmp_path, LEAST) == {}
    assert hash_runs.read_documents(tmp_path, 0).shape == (2, 0)


def test_entries_of_a_chunk_are_read_with_all_columns(tmp_path):
    documents = np.concatenate([hash_runs.document_numbers(chunk, [0, 7]) for chunk in (0, 1, 2)])
    hash_runs.write_run(tmp_path, 0, documents[::2], np.array([10, 11, 12]), np.array([0.5, 0.25, 1.0]))
    hash_runs.write_run(tmp_path, 1, documents[1::2], np.array([20, 21, 22]), np.array([2.5, 2.25, 2.0]))
    keys, values, figures = hash_runs.read_documents(tmp_path, 1)
    assert keys.tolist() == documents[2:4].tolist()
    assert values.tolist() == [11, 21]
    assert figures.view(np.float64).tolist() == [0.25, 2.25]


def test_texts_have_the_hashes_of_xxh3_lone_surrogates_too():
    hashes = hash_runs.hash_texts(["", "a", "统计", "\ud800"])
    assert hashes.dtype == np.uint64
    assert hashes[0] == 0x2D06800538D394C2  # XXH3 of no bytes, as xxhash documents it
    assert len(set(hashes.tolist())) == 4
