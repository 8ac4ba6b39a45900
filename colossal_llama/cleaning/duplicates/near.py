"""Near duplicates: documents whose sets of shingles have a Jaccard index of at least a threshold.

Candidates share a band of their MinHash signatures (`lsh.py`); each pair of them is compared by
its sets of shingles (`jaccard.py`); pairs that are alike link clusters, of which the longest
document stays, then the first (`clusters.py`). Documents of few words, of which a single changed
word makes another text, are left to the exact comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.duplicates.clusters import Clusters, kept_of_clusters
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.jaccard import ShingleSets, TextsOfChunk
from colossal_llama.cleaning.duplicates.lsh import Buckets, band_keys, banding_for, read_buckets
from colossal_llama.cleaning.duplicates.minhash import minhash_values
from colossal_llama.cleaning.duplicates.shingles import SHINGLE_TOKENS, Shingles, shingle_batches

DROPPED = "dropped"
_FARTHEST_NEIGHBOUR = 63
"""In a bucket: up to 64 documents are compared all with all, more each with its neighbours."""
_MOST_REMEMBERED = 1 << 22


@dataclass(frozen=True)
class NearDuplicateSettings:
    """Settings of near duplicates.

    Attributes:
        min_similarity: lowest Jaccard index of near duplicates.
        min_words: documents of fewer words, or characters of scripts without spaces, are left out.
    """

    min_similarity: float
    min_words: int


def band_signatures(texts: Sequence[str], settings: NearDuplicateSettings) -> tuple[np.ndarray, np.ndarray]:
    """Computes the hashes of the bands of texts.

    Returns:
        Hashes of the texts that have enough words, [these, bands], uint64; their positions in
            `texts`, int64.
    """
    banding = banding_for(settings.min_similarity)
    least = max(settings.min_words - SHINGLE_TOKENS + 1, 1)
    positions, keys, first = [np.empty(0, dtype=np.int64)], [np.empty((0, banding.bands), dtype=np.uint64)], 0
    for shingles in shingle_batches(texts):
        is_long = shingles.counts >= least
        positions.append(np.flatnonzero(is_long) + first)
        keys.append(band_keys(minhash_values(_chosen(shingles, is_long), banding.num_values), banding))
        first += len(is_long)
    return np.concatenate(keys), np.concatenate(positions)


def write_signatures(directory: Path, chunk: int, keys: np.ndarray, positions: np.ndarray) -> None:
    """Writes what `band_signatures` returned about a chunk's texts, of all its batches."""
    documents = np.repeat(hash_runs.document_numbers(chunk, positions), keys.shape[1])
    hash_runs.write_run(directory, chunk, keys.reshape(-1), documents)


def merge(
    directory: Path,
    index: DocumentIndex,
    is_dropped: np.ndarray,
    texts_of: TextsOfChunk,
    min_similarity: float,
    memory_bytes: int,
) -> np.ndarray:
    """Finds near duplicates; writes them, each with the document that stays and their similarity.

    Args:
        directory: of the signatures; `read_dropped` reads there what is written.
        index: of all documents.
        is_dropped: True for documents that are dropped already, as exact duplicates, by position.
        texts_of: returns the texts of a chunk as they were given to `band_signatures`.
        min_similarity: see `NearDuplicateSettings`.
        memory_bytes: see `hash_runs.groups`; 30 bytes for each document are taken besides.

    Returns:
        True for each document that is dropped as a near duplicate, by position.
    """
    hash_runs.remove_runs(directory / DROPPED)
    is_candidate = np.zeros(len(index), dtype=bool)
    for buckets in read_buckets(directory, index, is_dropped, memory_bytes):
        is_candidate[buckets.positions] = True
    sets = ShingleSets.write(directory / "shingles.u32", index, is_candidate, texts_of)
    comparison = _Comparison(sets, Clusters(len(index)), min_similarity)
    for buckets in read_buckets(directory, index, is_dropped, memory_bytes):
        comparison.compare(buckets)
    candidates = np.flatnonzero(is_candidate)
    kept = kept_of_clusters(candidates, comparison.clusters.roots(candidates), sets.lengths_characters[candidates])
    is_other = kept != candidates
    dropped, kept = candidates[is_other], kept[is_other]
    similarities = sets.similarities(dropped, kept)
    hash_runs.write_run(directory / DROPPED, 0, index.numbers(dropped), index.numbers(kept), similarities)
    result = np.zeros(len(index), dtype=bool)
    result[dropped] = True
    return result


def read_dropped(directory: Path, chunk: int) -> dict[int, tuple[int, float]]:
    """Reads which documents of a chunk are dropped, by position in it.

    Returns:
        Number of the document that stays, and the Jaccard index of both. It is below the threshold
            where other documents link them.
    """
    documents, kept, similarities = hash_runs.read_documents(directory / DROPPED, chunk)
    values = zip(kept.tolist(), similarities.view(np.float64).tolist(), strict=True)
    return dict(zip(hash_runs.positions_in_chunk(documents), values, strict=True))


class _Comparison:
    """Compares the documents of buckets, and links those that are alike."""

    def __init__(self, sets: ShingleSets, clusters: Clusters, min_similarity: float):
        self.clusters = clusters
        self._sets, self._min_similarity = sets, min_similarity
        self._different = np.empty(0, dtype=np.uint64)

    def compare(self, buckets: Buckets) -> None:
        """Compares each document with the nearest before it in its bucket first, then the next.

        What earlier comparisons have linked is not compared again: so a bucket of a thousand
        near duplicates costs about a thousand comparisons.
        """
        for distance in range(1, _FARTHEST_NEIGHBOUR + 1):
            is_together = buckets.buckets[distance:] == buckets.buckets[:-distance]
            if not is_together.any():
                return
            self._compare_pairs(buckets.positions[:-distance][is_together], buckets.positions[distance:][is_together])

    def _compare_pairs(self, left: np.ndarray, right: np.ndarray) -> None:
        left, right = self._new_pairs(left, right)
        left_sizes, right_sizes = self._sets.sizes(left), self._sets.sizes(right)
        may_be_alike = np.minimum(left_sizes, right_sizes) / np.maximum(left_sizes, right_sizes) >= self._min_similarity
        left, right = left[may_be_alike], right[may_be_alike]
        is_alike = self._sets.similarities(left, right) >= self._min_similarity
        self.clusters.link(left[is_alike], right[is_alike])
        self._remember(left[~is_alike], right[~is_alike])

    def _new_pairs(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        is_apart = self.clusters.roots(left) != self.clusters.roots(right)
        pairs = np.unique(_pair_keys(left[is_apart], right[is_apart]))
        pairs = pairs[~np.isin(pairs, self._different, assume_unique=True)]
        return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def _remember(self, left: np.ndarray, right: np.ndarray) -> None:
        """Notes pairs that are not alike: they meet again in other bands."""
        if len(self._different) > _MOST_REMEMBERED:
            self._different = self._different[:0]
        self._different = np.union1d(self._different, _pair_keys(left, right))


def _pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)


def _chosen(shingles: Shingles, is_chosen: np.ndarray) -> Shingles:
    """Returns the shingles of some texts."""
    counts = shingles.counts
    return Shingles(shingles.hashes[np.repeat(is_chosen, counts)], np.append(0, np.cumsum(counts[is_chosen])))
