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
from colossal_llama.cleaning.duplicates.clusters import Clusters, RankedMembers, rank_members
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.jaccard import ShingleSets, TextsOfChunk
from colossal_llama.cleaning.duplicates.lsh import Buckets, band_keys, banding_for, read_buckets
from colossal_llama.cleaning.duplicates.minhash import minhash_values
from colossal_llama.cleaning.duplicates.shingles import SHINGLE_TOKENS, Shingles, shingle_batches

DROPPED = "dropped"
_FARTHEST_NEIGHBOUR = 31
"""In a bucket: up to 32 documents are compared all with all, more each with its neighbours."""
_MOST_REMEMBERED = 1 << 22
_MOST_LINKS = 10_000  # members of a cluster that one is compared with for the similarity that is reported


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
        memory_bytes: see `hash_runs.groups`; 40 bytes for each document are taken besides.

    Returns:
        True for each document that is dropped as a near duplicate, by position.
    """
    hash_runs.remove_runs(directory / DROPPED)
    is_candidate = np.zeros(len(index), dtype=bool)
    for buckets in read_buckets(directory, index, is_dropped, memory_bytes):
        is_candidate[buckets.positions] = True
    num_values = banding_for(min_similarity).num_values
    sets = ShingleSets.write(directory / "shingles.u32", index, is_candidate, texts_of, num_values)
    comparison = _Comparison(sets, Clusters(len(index)), min_similarity)
    for buckets in read_buckets(directory, index, is_dropped, memory_bytes):
        comparison.compare(buckets)
    candidates = np.flatnonzero(is_candidate)
    members = rank_members(candidates, comparison.clusters.roots(candidates), sets.lengths_characters[candidates])
    dropped = np.flatnonzero(members.kept != members.positions)
    similarities = _similarities_of_links(members, dropped, sets, min_similarity)
    positions, kept = members.positions[dropped], members.kept[dropped]
    hash_runs.write_run(directory / DROPPED, 0, index.numbers(positions), index.numbers(kept), similarities)
    result = np.zeros(len(index), dtype=bool)
    result[positions] = True
    return result


def read_dropped(directory: Path, chunk: int) -> dict[int, tuple[int, float]]:
    """Reads which documents of a chunk are dropped, by position in it.

    Returns:
        Number of the document that stays, and the Jaccard index of both; where others link them,
            the index with the highest-ranking document of the cluster that is similar enough.
    """
    documents, kept, similarities = hash_runs.read_documents(directory / DROPPED, chunk)
    values = zip(kept.tolist(), similarities.view(np.float64).tolist(), strict=True)
    return dict(zip(hash_runs.positions_in_chunk(documents), values, strict=True))


def _similarities_of_links(
    members: RankedMembers, dropped: np.ndarray, sets: ShingleSets, min_similarity: float
) -> np.ndarray:
    """Returns the similarity that puts each dropped member into its cluster.

    That with the document that stays comes first, then the others by rank, until one is at least
    the threshold. So it depends neither on the memory nor on the order of comparisons.
    """
    found = sets.similarities(members.positions[dropped], members.kept[dropped])
    waiting = np.flatnonzero(found < min_similarity)
    for rank in range(1, _MOST_LINKS):
        waiting = waiting[members.starts[dropped[waiting]] + rank < members.ends[dropped[waiting]]]
        if not len(waiting):
            break
        left = members.positions[dropped[waiting]]
        right = members.positions[members.starts[dropped[waiting]] + rank]
        is_alike = (left != right) & sets.may_be_alike(left, right, min_similarity)
        similarities = sets.similarities(left[is_alike], right[is_alike])
        is_alike[is_alike] = similarities >= min_similarity
        found[waiting[is_alike]] = similarities[similarities >= min_similarity]
        waiting = waiting[~is_alike]
    return found


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
        is_alike = self._sets.may_be_alike(left, right, self._min_similarity)
        is_alike[is_alike] = self._sets.similarities(left[is_alike], right[is_alike]) >= self._min_similarity
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
