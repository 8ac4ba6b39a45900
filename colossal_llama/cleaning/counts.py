"""Counts that a chunk of the input hands over to the report; they add up in any order.

A chunk counts with a `CountsBuilder`, and hands over a `ChunkCounts`. Its JSON form is stored with
the chunk, so that a resumed run adds up the same counts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

from colossal_llama.cleaning.document import Verdict

SAMPLES = 5
"""Samples of each reason in the report."""
SAMPLE_CHARACTERS = 300
"""Length of a sample's beginning: enough to judge a rule by, and a report that stays small."""


class Amount(NamedTuple):
    """Documents, and the characters of all their texts."""

    documents: int = 0
    characters: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Adds two amounts."""
        return Amount(self.documents + other.documents, self.characters + other.characters)


class Change(NamedTuple):
    """Changes of one kind in documents that are kept.

    Attributes:
        documents: number of changed documents.
        times: changes in them: masked addresses, cut lines.
        removed_characters: by which the documents are shorter; negative where they are longer.
    """

    documents: int = 0
    times: int = 0
    removed_characters: int = 0

    def plus(self, other: "Change") -> "Change":
        """Adds two changes."""
        return Change(*map(sum, zip(self, other, strict=True)))


class Sample(NamedTuple):
    """A dropped document in the report. The five with the smallest keys of a reason are shown.

    Attributes:
        key: hash of file and position, so that the choice does not depend on chunks or workers.
        file: of the record.
        position: line or record number in it, counted from 1.
        category: of the record.
        figure: that the rule measured.
        limit: that it broke.
        beginning: of the text as it came in.
    """

    key: int
    file: str
    position: int
    category: str
    figure: float | str
    limit: float | str
    beginning: str


@dataclass(frozen=True)
class ChunkCounts:
    """Counts of one chunk, or of several together.

    Every record is rejected, dropped or kept: `records` is the sum of the three.

    Attributes:
        records: rows read, without empty lines.
        empty_lines: passed over.
        rejected: records that are no documents, by reason.
        incoming: documents as they came in, by category.
        dropped: documents as they came in, by reason and category.
        kept: documents as they are written, by the category that is written.
        moved: kept documents that a blocklist moved, by category before and after.
        changes: of kept documents, by name: `mask.email`, `cut.lines`, `normalization.controls`.
        lengths_before: documents as they came in, by `length_bin` of their characters.
        lengths_after: documents as they are written, by `length_bin`.
        samples: of dropped documents, by reason, in the order of their keys.
    """

    records: int = 0
    empty_lines: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    incoming: Mapping[str, Amount] = field(default_factory=dict)
    dropped: Mapping[tuple[str, str], Amount] = field(default_factory=dict)
    kept: Mapping[str, Amount] = field(default_factory=dict)
    moved: Mapping[tuple[str, str], Amount] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    lengths_before: Mapping[int, int] = field(default_factory=dict)
    lengths_after: Mapping[int, int] = field(default_factory=dict)
    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    def as_record(self) -> dict:
        """Counts as a JSON object, whose keys are in order: equal counts give equal bytes."""
        return {
            "records": self.records,
            "empty_lines": self.empty_lines,
            "rejected": dict(sorted(self.rejected.items())),
            **{name: _sorted_lists(getattr(self, name)) for name in ("incoming", "kept", "changes")},
            **{name: _nested(getattr(self, name)) for name in ("dropped", "moved")},
            **{name: sorted(getattr(self, name).items()) for name in ("lengths_before", "lengths_after")},
            "samples": {reason: [list(sample) for sample in self.samples[reason]] for reason in sorted(self.samples)},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ChunkCounts":
        """Reads what `as_record` wrote."""
        return cls(
            records=record["records"],
            empty_lines=record["empty_lines"],
            rejected=dict(record["rejected"]),
            incoming={name: Amount(*values) for name, values in record["incoming"].items()},
            kept={name: Amount(*values) for name, values in record["kept"].items()},
            changes={name: Change(*values) for name, values in record["changes"].items()},
            dropped=_flat(record["dropped"]),
            moved=_flat(record["moved"]),
            lengths_before=dict(map(tuple, record["lengths_before"])),
            lengths_after=dict(map(tuple, record["lengths_after"])),
            samples={
                reason: tuple(Sample(*values) for values in listed) for reason, listed in record["samples"].items()
            },
        )


def add_counts(counts: Iterable[ChunkCounts]) -> ChunkCounts:
    """Adds up the counts of chunks; any grouping of the same chunks gives the same sum."""
    listed = list(counts)
    return ChunkCounts(
        records=sum(one.records for one in listed),
        empty_lines=sum(one.empty_lines for one in listed),
        rejected=_added_numbers(one.rejected for one in listed),
        incoming=_added(one.incoming for one in listed),
        dropped=_added(one.dropped for one in listed),
        kept=_added(one.kept for one in listed),
        moved=_added(one.moved for one in listed),
        changes=_added(one.changes for one in listed),
        lengths_before=_added_numbers(one.lengths_before for one in listed),
        lengths_after=_added_numbers(one.lengths_after for one in listed),
        samples=_smallest(one.samples for one in listed),
    )


class CountsBuilder:
    """Counts the records of a chunk one by one."""

    def __init__(self) -> None:
        self._records = self._empty_lines = 0
        self._rejected: dict[str, int] = {}
        # Lists of the fields of `Amount` and `Change`: twice as fast to add to as these.
        self._incoming: dict[str, list[int]] = {}
        self._dropped: dict[tuple[str, str], list[int]] = {}
        self._kept: dict[str, list[int]] = {}
        self._moved: dict[tuple[str, str], list[int]] = {}
        self._changes: dict[str, list[int]] = {}
        self._before: dict[int, int] = {}
        self._after: dict[int, int] = {}
        self._samples: dict[str, list[Sample]] = {}

    def add_empty_lines(self, count: int) -> None:
        """Counts lines without a record."""
        self._empty_lines += count

    def add_rejected(self, reason: str, count: int = 1) -> None:
        """Counts records that are no documents."""
        self._records += count
        self._rejected[reason] = self._rejected.get(reason, 0) + count

    def add_dropped(
        self, verdict: Verdict, category: str, file: str, position: int, text: str, characters: int
    ) -> None:
        """Counts a dropped document.

        Args:
            verdict: why it is dropped.
            category: as it came in.
            file: as it is named in `dropped/`.
            position: line or record number in the file.
            text: as it came in; of a long one the beginning suffices.
            characters: of all its texts as they came in.
        """
        self._add_incoming(category, characters)
        reason = verdict.reason
        _count(self._dropped, (reason, category), characters)
        samples, key = self._samples.setdefault(reason, []), sample_key(file, position)
        if len(samples) < SAMPLES or key < samples[-1].key:
            beginning = text[:SAMPLE_CHARACTERS]
            samples.append(Sample(key, file, position, category, verdict.figure, verdict.limit, beginning))
            samples.sort(key=_place)
            del samples[SAMPLES:]

    def add_kept(
        self,
        category: str,
        characters: int,
        written_category: str,
        written_characters: int,
        changes: Mapping[str, tuple[int, int]],
    ) -> None:
        """Counts a document that is written.

        Args:
            category: as it came in.
            characters: of all its texts as they came in.
            written_category: another one where a blocklist moved it.
            written_characters: of all its texts as they are written.
            changes: by name, how often, and by how many characters it is shorter. Together they
                make up the difference between `characters` and `written_characters`.
        """
        self._add_incoming(category, characters)
        _count(self._kept, written_category, written_characters)
        if written_category != category:
            _count(self._moved, (category, written_category), written_characters)
        for name, (times, removed_characters) in changes.items():
            change = self._changes.setdefault(name, [0, 0, 0])
            change[0] += 1
            change[1] += times
            change[2] += removed_characters
        place = length_bin(written_characters)
        self._after[place] = self._after.get(place, 0) + 1

    def _add_incoming(self, category: str, characters: int) -> None:
        self._records += 1
        _count(self._incoming, category, characters)
        place = length_bin(characters)
        self._before[place] = self._before.get(place, 0) + 1

    def result(self) -> ChunkCounts:
        """The counts so far."""
        return ChunkCounts(
            records=self._records,
            empty_lines=self._empty_lines,
            rejected=dict(self._rejected),
            incoming=_amounts(self._incoming),
            dropped=_amounts(self._dropped),
            kept=_amounts(self._kept),
            moved=_amounts(self._moved),
            changes={name: Change(*values) for name, values in self._changes.items()},
            lengths_before=dict(self._before),
            lengths_after=dict(self._after),
            samples={reason: tuple(samples) for reason, samples in self._samples.items()},
        )


def sample_key(file: str, position: int) -> int:
    """Hash by which samples are chosen: as good as random, and the same in every run."""
    return xxhash.xxh3_64_intdigest(f"{file}\n{position}".encode("utf-8", "surrogateescape"))


def length_bin(characters: int) -> int:
    """Number of the bin of a length: four bins for every doubling; 0 for an empty text.

    >>> [length_bin(count) for count in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    [0, 1, 5, 7, 9, 10, 11, 12, 13]
    """
    return 1 + int(4 * math.log2(characters)) if characters else 0


def bin_start(number: int) -> int:
    """Smallest length of a bin; inverse of `length_bin`.

    >>> [bin_start(length_bin(count)) for count in (0, 1, 2, 3, 8, 9, 10)]
    [0, 1, 2, 3, 8, 8, 10]
    """
    return math.ceil(2 ** ((number - 1) / 4)) if number else 0


def _count(amounts: dict, key: Any, characters: int) -> None:
    amount = amounts.get(key)
    if amount is None:
        amounts[key] = [1, characters]
    else:
        amount[0] += 1
        amount[1] += characters


def _amounts(listed: Mapping[Any, list[int]]) -> dict[Any, Amount]:
    return {key: Amount(*values) for key, values in listed.items()}


def _place(sample: Sample) -> tuple[int, str, int]:
    """Order of samples: figures may be texts in one and numbers in the other."""
    return sample.key, sample.file, sample.position


def _added(listed: Iterable[Mapping]) -> dict:
    total: dict = {}
    for amounts in listed:
        for key, amount in amounts.items():
            total[key] = total[key].plus(amount) if key in total else amount
    return total


def _added_numbers(listed: Iterable[Mapping]) -> dict:
    total: dict = {}
    for numbers in listed:
        for key, number in numbers.items():
            total[key] = total.get(key, 0) + number
    return total


def _smallest(listed: Iterable[Mapping[str, tuple[Sample, ...]]]) -> dict[str, tuple[Sample, ...]]:
    total: dict[str, list[Sample]] = {}
    for samples in listed:
        for reason, some in samples.items():
            total.setdefault(reason, []).extend(some)
    return {reason: tuple(sorted(some, key=_place)[:SAMPLES]) for reason, some in total.items()}


def _sorted_lists(amounts: Mapping[str, tuple]) -> dict[str, list[int]]:
    return {name: list(amounts[name]) for name in sorted(amounts)}


def _nested(amounts: Mapping[tuple[str, str], Amount]) -> dict[str, dict[str, list[int]]]:
    nested: dict[str, dict[str, list[int]]] = {}
    for (outer, inner), amount in sorted(amounts.items()):
        nested.setdefault(outer, {})[inner] = list(amount)
    return nested


def _flat(nested: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Amount]:
    return {(outer, inner): Amount(*values) for outer, listed in nested.items() for inner, values in listed.items()}
