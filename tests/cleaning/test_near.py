"""Near duplicates: planted ones are found, others stay; chunks and memory do not matter."""

import json
import subprocess
import sys

import numpy as np
import pytest

from colossal_llama.cleaning.duplicates import minhash, near
from colossal_llama.cleaning.duplicates.clusters import Clusters, rank_members
from colossal_llama.cleaning.duplicates.lsh import banding_for
from colossal_llama.cleaning.duplicates.shingles import Shingles, shingle_batches
from colossal_llama.cleaning.hash_runs import write_run
from tests.support.duplicate_texts import (
    changed_to,
    found_duplicates,
    jaccard,
    joined,
    made_text,
    words_of,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_duplicates_are_found_and_others_stay(tmp_path, rng, language):
    originals = [made_text(rng, int(rng.integers(120, 300)), language) for _ in range(400)]
    aims = [0.8] * 200 + [0.9] * 100 + [0.7] * 100
    copies = [changed_to(text, aim, rng, language) for text, aim in zip(originals, aims, strict=True)]
    texts = originals + copies
    dropped = found_duplicates(tmp_path, [texts])
    is_found = np.array([number in dropped or number + 400 in dropped for number in range(400)])
    similar = np.array([jaccard(left, right) >= 0.8 for left, right in zip(originals, copies, strict=True)])
    assert similar[:300].all()
    assert not similar[300:].all()
    assert is_found[similar].mean() >= 0.97
    assert not is_found[~similar].any()
    for position, (similarity, kept) in dropped.items():
        assert similarity == jaccard(texts[position], texts[kept])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_chunks_and_memory_do_not_matter(tmp_path, rng, language):
    texts = [made_text(rng, int(rng.integers(5, 200)), language) for _ in range(150)]
    texts += [changed_to(texts[number % 50], 0.8, rng, language) for number in range(150)]
    texts = [texts[number] for number in rng.permutation(300)]
    results = [
        found_duplicates(
            tmp_path / str(size), [texts[start : start + size] for start in range(0, 300, size)], memory_bytes=memory
        )
        for size, memory in [(300, 1 << 28), (300, 1), (41, 1), (5, 1 << 28)]
    ]
    assert len(results[0]) > 100
    assert results[0] == results[1] == results[2] == results[3]


def test_the_longest_stays_then_the_first(tmp_path, rng):
    text = made_text(rng, 200, "en")
    longest = text + " " + made_text(rng, 3, "en")
    for texts in ([text, longest, text + " end"], [text.upper(), text + ".", text + "!"]):
        dropped = found_duplicates(tmp_path / texts[0][:3], [texts])
        assert {at: kept for at, (_, kept) in dropped.items()} == {0: 1, 2: 1}


def test_case_punctuation_and_line_breaks_do_not_count(tmp_path, rng):
    words, han = words_of(made_text(rng, 60, "en")), made_text(rng, 60, "zh")
    texts = [" ".join(words), "\n".join(words).title() + "!", made_text(rng, 60, "zh"), han, "。".join(han)]
    assert found_duplicates(tmp_path, [texts]) == {0: (1.0, 1), 3: (1.0, 4)}


def test_documents_of_few_words_are_left_to_the_exact_comparison(tmp_path):
    nineteen = " ".join(f"word{number}" for number in range(19))
    texts = [nineteen, nineteen + "!", nineteen + " more", nineteen.upper() + " MORE", "", "!", "😀" * 50, "😀" * 51]
    assert found_duplicates(tmp_path, [texts]) == {3: (1.0, 2)}


def test_exact_duplicates_are_counted_as_exact_ones_alone(tmp_path, rng):
    text = made_text(rng, 100, "en")
    longer = text + " end"
    assert found_duplicates(tmp_path, [[text, text, longer, longer]]) == {
        0: (jaccard(text, longer), 2),
        1: (None, 0),
        3: (None, 2),
    }


def test_a_chain_of_similar_documents_leaves_one(tmp_path, rng):
    words = words_of(made_text(rng, 300, "en"))
    texts = [" ".join(words[start : start + 200]) for start in range(0, 100, 12)]
    assert jaccard(texts[0], texts[1]) > 0.8 > jaccard(texts[0], texts[-1])
    dropped = found_duplicates(tmp_path, [texts])
    assert len(dropped) == len(texts) - 1
    assert len({kept for _, kept in dropped.values()}) == 1
    for position, (similarity, _) in dropped.items():
        links = {jaccard(texts[position], text) for number, text in enumerate(texts) if number != position}
        assert similarity >= 0.8
        assert similarity in links


def test_a_thousand_versions_of_a_document_leave_one(tmp_path, rng):
    words = words_of(made_text(rng, 100, "zh"))
    texts = [
        joined([*words[:at], "甲", *words[at + 1 :]], "zh") + made_text(rng, 2, "zh")
        for at in range(100)
        for _ in range(10)
    ]
    dropped = found_duplicates(tmp_path, [texts])
    assert len(dropped) == 999
    assert {kept for _, kept in dropped.values()} == {0}


@pytest.mark.parametrize("text", ["", "a", "\ud800" * 30, "a" * 3000, "1 " * 3000, "ภาษาไทย" * 20, "हिन्दी भाषा " * 20])
def test_unusual_texts_are_compared_like_others(tmp_path, rng, text):
    other = made_text(rng, 50, "en")
    found = found_duplicates(tmp_path, [[other, text, f"{other} {text}", f"{text} "], [f"é {text}"]])
    assert set(found) <= {0, 1, 2, 3, 4}
    assert near.band_signatures([text], near.NearDuplicateSettings(0.8, 1))[0].shape[1] == 20


@pytest.mark.parametrize("chunks", [[], [[]], [[], []], [["short"], []]])
def test_no_document_to_compare_is_no_error(tmp_path, chunks):
    assert found_duplicates(tmp_path, chunks) == {}


def test_what_an_interrupted_merge_left_does_not_count(tmp_path, rng):
    text = made_text(rng, 50, "en")
    write_run(tmp_path / "near" / near.DROPPED, 5, *np.zeros((3, 1), dtype=np.uint64))
    write_run(tmp_path / "exact" / "dropped", 5, *np.zeros((2, 1), dtype=np.uint64))
    assert found_duplicates(tmp_path, [[text, text]]) == {1: (None, 0)}


def test_shingles_do_not_depend_on_what_lies_around_a_text(rng):
    texts = [
        made_text(rng, 30, "en"),
        "",
        "短",
        made_text(rng, 30, "zh"),
        "a b",
        "x" * 700 + " a b c d e",
        "中 english 文 字 三",
    ]
    [together] = shingle_batches(texts)
    for number, text in enumerate(texts):
        [alone] = shingle_batches([text])
        assert together.hashes[together.starts[number] : together.starts[number + 1]].tolist() == alone.hashes.tolist()
    assert together.counts.tolist() == [26, 0, 0, 26, 0, 2, 1]


def test_equal_values_estimate_the_jaccard_index(rng):
    errors = []
    for _ in range(200):
        pool = rng.integers(0, 1 << 32, 1000, dtype=np.uint32)
        pair = Shingles(np.concatenate([pool[:600], pool[120:720]]), np.array([0, 600, 1200]))
        left, right = minhash.minhash_values(pair, 140).T
        errors.append((left == right).mean() - 480 / 720)
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) == pytest.approx((2 / 3 * 1 / 3 / 140) ** 0.5, rel=0.25)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.75, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_99_of_100_pairs_at_the_threshold(similarity):
    banding = banding_for(similarity)
    assert 1 - (1 - similarity**banding.rows) ** banding.bands >= 0.99
    assert banding.num_values <= 160


def test_clusters_are_connected_components_with_their_first_document(rng):
    left, right = rng.integers(0, 3000, 2000), rng.integers(0, 3000, 2000)
    clusters = Clusters(3000)
    for start in range(0, 2000, 700):
        clusters.link(left[start : start + 700], right[start : start + 700])
    expected = list(range(3000))
    for _ in range(100):
        for first, second in zip(left.tolist(), right.tolist(), strict=True):
            expected[first] = expected[second] = min(expected[first], expected[second])
    assert clusters.roots(np.arange(3000)).tolist() == expected


def test_members_are_ranked_by_length_then_position():
    members = rank_members(np.array([3, 5, 8, 9, 11]), np.array([3, 3, 8, 8, 3]), np.array([7, 9, 4, 4, 9]))
    assert members.positions.tolist() == [5, 11, 3, 8, 9]
    assert members.kept.tolist() == [5, 5, 5, 8, 8]
    assert members.ends.tolist() == [3, 3, 3, 5, 5]


@pytest.mark.slow
def test_all_pairs_of_real_documents_confirm_what_is_found(shared_data, tmp_path, project_root):
    output = tmp_path / "result.json"
    options = ["--data_input_dirs", str(shared_data / "pretrain"), "--planted", "600", "--work_dir", str(tmp_path)]
    subprocess.run(
        [sys.executable, "benchmarks/near_duplicates.py", *options, "--output", str(output)],
        cwd=project_root, check=True, timeout=600,
    )  # fmt: skip
    result = json.loads(output.read_text())
    assert result["similar_pairs"] > 300
    assert result["recall"] >= 0.98
    assert result["precision"] == 1.0
