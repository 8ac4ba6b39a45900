"""Counts of chunks add up to the same in any grouping, and survive their JSON form."""

import itertools
import json
import random

from colossal_llama.cleaning.counts import (
    SAMPLES,
    Amount,
    Change,
    ChunkCounts,
    CountsBuilder,
    add_counts,
    bin_start,
    length_bin,
    sample_key,
)
from colossal_llama.cleaning.document import Verdict


def _count_chunk(positions: range) -> ChunkCounts:
    """Counts made-up documents, of which the position alone decides what becomes of each."""
    counts = CountsBuilder()
    for position in positions:
        category = ("诗", "docs")[position % 2]
        if position % 7 == 0:
            counts.add_rejected("broken_json")
        elif position % 5 == 0:
            figure = 0.5 if position % 2 else "fr"
            counts.add_dropped(Verdict("language", figure, "zh"), category, "a.jsonl", position, "text " * 100, 500)
        else:
            written = "moved" if position % 3 == 0 else category
            counts.add_kept(category, position + 3, written, position, {"mask.email": (2, 1), "cut.lines": (1, 2)})
    counts.add_empty_lines(2)
    return counts.result()


def test_any_grouping_of_records_gives_the_same_counts() -> None:
    whole = _count_chunk(range(1, 1001))
    bounds = [1, *sorted(random.Random(3).sample(range(2, 1000), 9)), 1001]
    pieces = [_count_chunk(range(first, last)) for first, last in itertools.pairwise(bounds)]
    random.Random(4).shuffle(pieces)
    summed = add_counts([add_counts(pieces[:4]), add_counts(pieces[4:])])
    expected = {**whole.as_record(), "empty_lines": 2 * len(pieces)}
    assert summed.as_record() == expected
    assert json.dumps(summed.as_record()) == json.dumps(expected)


def test_every_record_is_rejected_dropped_or_kept() -> None:
    counts = _count_chunk(range(1, 1001))
    dropped = sum(amount.documents for amount in counts.dropped.values())
    kept = sum(amount.documents for amount in counts.kept.values())
    assert counts.records == 1000 == sum(counts.rejected.values()) + dropped + kept
    assert sum(counts.lengths_before.values()) == dropped + kept
    assert sum(counts.lengths_after.values()) == kept
    before, after = (sum(amount.characters for amount in part.values()) for part in (counts.incoming, counts.kept))
    removed = sum(change.removed_characters for change in counts.changes.values())
    assert before - sum(amount.characters for amount in counts.dropped.values()) - removed == after
    assert counts.changes["mask.email"] == Change(kept, 2 * kept, kept)
    assert set(counts.moved) == {("诗", "moved"), ("docs", "moved")}
    assert counts.dropped["language", "诗"] == Amount(86, 86 * 500)


def test_json_form_is_read_back() -> None:
    counts = _count_chunk(range(1, 200))
    assert ChunkCounts.from_record(json.loads(json.dumps(counts.as_record()))) == counts


def test_samples_are_those_with_the_smallest_keys() -> None:
    counts = _count_chunk(range(1, 1001))
    dropped = [position for position in range(1, 1001) if position % 5 == 0 and position % 7]
    smallest = sorted(dropped, key=lambda position: sample_key("a.jsonl", position))[:SAMPLES]
    assert [sample.position for sample in counts.samples["language"]] == smallest
    assert max(len(sample.beginning) for sample in counts.samples["language"]) < 500


def test_bins_of_lengths_follow_each_other_without_gaps() -> None:
    for characters in (*range(5000), *(2**power + offset for power in range(13, 40) for offset in (-1, 0, 1))):
        number = length_bin(characters)
        assert bin_start(number) <= characters < bin_start(number + 1) or characters < 4
    assert [bin_start(length_bin(characters)) for characters in range(4)] == [0, 1, 2, 3]
