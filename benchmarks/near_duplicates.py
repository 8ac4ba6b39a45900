r"""Measures recall, precision and speed of near duplicates against an exact all-pairs computation.

    python benchmarks/near_duplicates.py --data_input_dirs ../shared/data/pretrain \
        --work_dir /tmp/near --output near_duplicates.json

Takes documents of each category, plants changed copies of some of them (words replaced, a block
cut out, a block of another document put in) whose Jaccard index with the original is spread over
0.6 to 1, and computes the index of all pairs by sets that are made without the code under test:
words by a regular expression, XXH3 of five of them. Printed are, by Jaccard index, how many pairs
lie in a common cluster, and how many dropped documents have no partner of at least the threshold.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import regex
import xxhash

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates import exact, near
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

_WORD = regex.compile(
    r"(?V1)[[\p{L}\p{M}\p{N}]&&[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}ー]]|"
    r"[[\p{L}\p{M}]&&[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]|"
    r"[[\p{L}\p{M}\p{N}\u200c\u200d]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]+"
)
_BINS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.85, 0.9, 0.95, 1.0)


def main() -> None:
    """Runs the measurement; prints and writes it."""
    options = parse()
    texts = read_texts(options.data_input_dirs, options.documents)
    planted = plant(texts, options.planted, np.random.default_rng(options.seed))
    everything = texts + planted
    sets = [shingle_set(text) for text in everything]
    started = time.process_time()
    pairs = all_pairs(sets, _BINS[0])
    seconds = time.process_time() - started
    print(
        f"{len(texts)} documents and {len(planted)} planted copies; {len(pairs.left)} pairs of at least {_BINS[0]} "
        f"among all, in {seconds:.0f} s"
    )
    found = run(everything, options.work_dir, options.threshold, options.chunks)
    result = judge(found, pairs, options.threshold)
    print(table(["Jaccard index", "pairs", "in one cluster", "share"], [list(row.values()) for row in result["pairs"]]))
    print(json.dumps({key: value for key, value in result.items() if key != "pairs"}, indent=2))
    if options.output:
        write_json(options.output, result)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_input_dirs", type=Path, nargs="+", required=True, help="directories of jsonl files")
    parser.add_argument("--documents", type=int, default=5000, help="about equally many of each category")
    parser.add_argument("--planted", type=int, default=1000, help="changed copies")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--chunks", type=int, default=7, help="chunks that the documents are divided into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def read_texts(directories: Iterable[Path], count: int) -> list[str]:
    """Reads the first documents of each category; one that has fewer leaves more to others."""
    by_category: dict[str, list[str]] = {}
    for path in sorted(path for directory in directories for path in directory.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                text = "\n".join(filter(None, (record.get("source"), record.get("target"))))
                by_category.setdefault(record.get("category", ""), []).append(text)
    chosen: list[str] = []
    categories = sorted(by_category.values(), key=len)
    for number, texts in enumerate(categories):
        chosen += texts[: (count - len(chosen)) // (len(categories) - number)]
    return chosen


def shingle_set(text: str) -> np.ndarray:
    """Returns the sorted set of a text's shingles, by definition: five words, lower case."""
    words = [word.lower() for word in _WORD.findall(text)]
    digest = xxhash.xxh3_64_intdigest
    hashes = [
        digest("\n".join(words[start : start + 5]).encode("utf-8", "surrogatepass")) for start in range(len(words) - 4)
    ]
    return np.unique(np.array(hashes, dtype=np.uint64))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard index of two sets."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / max(len(left) + len(right) - common, 1)


def plant(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Makes changed copies of documents, with Jaccard indices of 0.6 to 1 to the originals."""
    long = [position for position, text in enumerate(texts) if len(_WORD.findall(text)) >= 40]
    changes = (_replace_words, _cut_block, _insert_block)
    copies = []
    for number in range(count):
        original = texts[int(rng.choice(long))]
        aim, change, seed = rng.uniform(0.6, 1), changes[number % 3], int(rng.integers(1 << 31))
        original_set, low, high = shingle_set(original), 0.0, 0.6
        for _ in range(12):  # bisection of how much is changed
            middle = (low + high) / 2
            copy = change(original, texts, middle, np.random.default_rng(seed))
            low, high = (middle, high) if jaccard(original_set, shingle_set(copy)) > aim else (low, middle)
        copies.append(copy)
    return copies


def _replace_words(text: str, texts: Sequence[str], share: float, rng: np.random.Generator) -> str:
    words = list(_WORD.finditer(text))
    order = rng.permutation(len(words))
    chosen = np.sort(order[: int(share * len(words))])
    pieces, last = [], 0
    for number in chosen.tolist():
        pieces += [text[last : words[number].start()], words[(number * 7 + 13) % len(words)].group()]
        last = words[number].end()
    return "".join(pieces) + text[last:]


def _cut_block(text: str, texts: Sequence[str], share: float, rng: np.random.Generator) -> str:
    length = int(share * len(text))
    start = int(rng.integers(0, len(text) - length + 1)) if length else 0
    return text[:start] + text[start + length :]


def _insert_block(text: str, texts: Sequence[str], share: float, rng: np.random.Generator) -> str:
    length, donor = int(share * len(text)), ""
    for position in rng.permutation(len(texts)).tolist():
        if len(donor) >= length:
            break
        donor += texts[position]
    start = int(rng.random() * len(text))
    return text[:start] + "\n" + donor[:length] + "\n" + text[start:]


@dataclass(frozen=True)
class Pairs:
    """Pairs of documents, `left < right`, and their Jaccard indices."""

    left: np.ndarray
    right: np.ndarray
    similarities: np.ndarray


def all_pairs(sets: Sequence[np.ndarray], least: float) -> Pairs:
    """Computes the Jaccard index of all pairs; returns those of at least `least`."""
    sizes = np.array(list(map(len, sets)))
    documents = np.repeat(np.arange(len(sets)), sizes)
    _, shingles = np.unique(np.concatenate(sets), return_inverse=True)
    order = np.argsort(shingles, kind="stable")
    holders, counts = documents[order], np.bincount(shingles)
    starts = np.cumsum(counts) - counts
    found = list(_rows(sizes, shingles, holders, starts, counts, least))
    left, right, similarities = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return Pairs(left, right, similarities)


def _rows(
    sizes: np.ndarray, shingles: np.ndarray, holders: np.ndarray, starts: np.ndarray, counts: np.ndarray, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    ends = np.cumsum(sizes)
    for document, end in enumerate(ends.tolist()):
        own = shingles[end - sizes[document] : end]
        number = counts[own]
        indices = np.repeat(starts[own] - (np.cumsum(number) - number), number) + np.arange(number.sum())
        common = np.bincount(holders[indices], minlength=len(sizes))
        similarity = common / np.maximum(sizes + sizes[document] - common, 1)
        other = np.flatnonzero(similarity >= least)
        other = other[other > document]
        yield np.full(len(other), document), other, similarity[other]


@dataclass(frozen=True)
class Found:
    """Documents that were found to be duplicates.

    Attributes:
        kept: for each document the one that stays instead, or itself.
        is_exact: True for documents that are dropped as exact duplicates.
        seconds: CPU time of signatures and of the merge.
        bytes: of text.
    """

    kept: np.ndarray
    is_exact: np.ndarray
    seconds: tuple[float, float]
    bytes: int


def run(texts: Sequence[str], work_dir: Path, threshold: float, chunks: int) -> Found:
    """Finds exact and near duplicates, as `clean` does."""
    settings = near.NearDuplicateSettings(threshold, near.SHINGLE_TOKENS)
    size = -(-len(texts) // chunks)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    started = time.process_time()
    for number, part in enumerate(parts):
        exact.write_signatures(work_dir / "exact", number, hash_runs.hash_texts(part))
        near.write_signatures(work_dir / "near", number, *near.band_signatures(part, settings))
    middle = time.process_time()
    index = DocumentIndex.of_chunks(list(map(len, parts)))
    is_exact = exact.merge(work_dir / "exact", index, 1 << 28)
    near.merge(work_dir / "near", index, is_exact, parts.__getitem__, threshold, 1 << 28)
    end = time.process_time()
    kept = np.arange(len(texts))
    for number in range(len(parts)):
        begin = int(index.starts[number])
        for position, first in exact.read_dropped(work_dir / "exact", number).items():
            kept[begin + position] = index.positions(np.array([first], dtype=np.uint64))[0]
        for position, (other, _) in near.read_dropped(work_dir / "near", number).items():
            kept[begin + position] = index.positions(np.array([other], dtype=np.uint64))[0]
    while not np.array_equal(kept[kept], kept):
        kept = kept[kept]
    return Found(kept, is_exact, (middle - started, end - middle), sum(len(text.encode()) for text in texts))


def judge(found: Found, pairs: Pairs, threshold: float) -> dict:
    """Compares what was found with the exact pairs."""
    is_together = found.kept[pairs.left] == found.kept[pairs.right]
    rows = []
    for low, high in zip(_BINS, (*_BINS[1:], 1.01), strict=True):
        inside = (pairs.similarities >= low) & (pairs.similarities < high)
        share = f"{is_together[inside].mean():.4f}" if inside.any() else "-"
        rows.append(
            {"from": f"{low:.2f}", "pairs": int(inside.sum()), "found": int(is_together[inside].sum()), "share": share}
        )
    is_similar = pairs.similarities >= threshold
    partners = np.zeros(len(found.kept), dtype=bool)
    partners[pairs.left[is_similar]] = partners[pairs.right[is_similar]] = True
    dropped = np.flatnonzero(found.kept != np.arange(len(found.kept)))
    near_dropped = dropped[~found.is_exact[dropped]]
    similar = set(zip(pairs.left[is_similar].tolist(), pairs.right[is_similar].tolist(), strict=True))
    direct = [
        (min(pair), max(pair)) in similar
        for pair in zip(near_dropped.tolist(), found.kept[near_dropped].tolist(), strict=True)
    ]
    signatures_s, merge_s = found.seconds
    return {
        "pairs": rows,
        "threshold": threshold,
        "recall": round(float(is_together[is_similar].mean()), 5) if is_similar.any() else None,
        "similar_pairs": int(is_similar.sum()),
        "dropped": len(dropped),
        "dropped_as_near": len(near_dropped),
        "precision": round(float(partners[near_dropped].mean()), 5) if len(near_dropped) else None,
        "similar_to_the_kept_one": round(float(np.mean(direct)), 5) if direct else None,
        "signatures_ns_per_byte": round(signatures_s / found.bytes * 1e9, 1),
        "merge_ns_per_byte": round(merge_s / found.bytes * 1e9, 1),
    }


if __name__ == "__main__":
    main()
