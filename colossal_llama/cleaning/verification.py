"""Verifies a finished cleaning: re-reads its files and finds every count of the report in them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.cleaning.counts import SAMPLE_CHARACTERS, SAMPLES, bin_start, length_bin, sample_key
from colossal_llama.cleaning.decontamination.decontaminate import DROP, HITS_FILE
from colossal_llama.cleaning.decontamination.decontaminate import REASON as CONTAMINATED
from colossal_llama.cleaning.output_files import (
    DOCUMENTS,
    DROPPED,
    FIGURE,
    REJECTED,
    BrokenRecordError,
    output_files,
    read_lines,
    text_of,
    texts_of,
)
from colossal_llama.cleaning.report import read_report
from colossal_llama.utils.checksums import FileChecksum, differences
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError, truncate_problems

_PNG_BEGINNING, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def verify(directory: Path) -> str:
    """Checks every file and every count; returns a message of success.

    Raises:
        UserError: the directory holds no complete cleaning, or it differs from its report.
    """
    report = read_report(directory)
    problems = [*_file_problems(directory, report), *_sum_problems(report)]
    recount = _Recount()
    names = [name for name in output_files(directory) if name in report["files"] and name.endswith(".jsonl")]
    for name in progress_bar(names, desc="verify", unit=" files"):
        try:
            recount.read(directory, name)
        except (BrokenRecordError, OSError) as error:
            problems.append(f"{name}: {error}")
    problems += _count_problems(report, recount)
    if problems:
        raise UserError(truncate_problems([f"{directory}: {problem}" for problem in problems]))
    totals = report["totals"]
    kept, dropped = totals["kept"]["documents"], totals["dropped"]["documents"]
    return (
        f"{directory}: {len(report['files'])} files, {kept:,} documents kept, {dropped:,} dropped for "
        f"{len(report['reasons'])} reasons: all as in the report"
    )


@dataclass
class _Recount:
    """Counts of the records that the files hold.

    Attributes:
        kept: documents and characters by category.
        dropped: documents and characters by reason and category.
        lengths: documents of `documents/` by the first length of their bin.
        samples: five of each reason, in the order of their keys.
        contaminated: files and positions of the documents with questions that are to be dropped.
    """

    kept: dict[str, Counter] = field(default_factory=dict)
    dropped: dict[tuple[str, str], Counter] = field(default_factory=dict)
    lengths: Counter = field(default_factory=Counter)
    samples: dict[str, list[tuple[int, dict]]] = field(default_factory=dict)
    contaminated: set[tuple[str, str]] = field(default_factory=set)

    def read(self, directory: Path, name: str) -> None:
        """Counts the records of a file.

        Raises:
            BrokenRecordError: a line is no record that a cleaning writes.
        """
        folder, _, file_name = name.partition("/")
        if name == HITS_FILE:
            self.contaminated = {
                (str(hit.get("file")), str(hit.get("position")))
                for _, hit in read_lines(directory / name)
                if hit.get("action") == DROP
            }
        if folder not in (DOCUMENTS, DROPPED):
            return
        for number, record in read_lines(directory / name):
            try:
                texts, category = texts_of(record), str(record["category"])
                if folder == DOCUMENTS:
                    self._add_kept(category, sum(map(len, texts)))
                else:
                    self._add_dropped(file_name.removesuffix(".jsonl"), category, texts, record)
            except (BrokenRecordError, KeyError) as error:
                raise BrokenRecordError(f"line {number} is no record of a cleaning: {error}") from None

    def _add_kept(self, category: str, characters: int) -> None:
        self.kept.setdefault(category, Counter()).update(documents=1, characters=characters)
        self.lengths[bin_start(length_bin(characters))] += 1

    def _add_dropped(self, reason: str, category: str, texts: list[str], record: dict) -> None:
        if record["reason"] != reason:
            raise BrokenRecordError(f"its reason is {record['reason']}")
        characters = sum(map(len, texts))
        self.dropped.setdefault((reason, category), Counter()).update(documents=1, characters=characters)
        samples = self.samples.setdefault(reason, [])
        key = sample_key(record["file"], record["position"])
        if len(samples) < SAMPLES or key < samples[-1][0]:
            beginning = text_of(record)[:SAMPLE_CHARACTERS]
            fields = {name: record[name] for name in ("file", "position", "category", "figure", "limit")}
            samples.append((key, {**fields, "beginning": beginning}))
            samples.sort(key=lambda sample: (sample[0], sample[1]["file"], sample[1]["position"]))
            del samples[SAMPLES:]


def _file_problems(directory: Path, report: Mapping[str, Any]) -> Iterator[str]:
    recorded = {name: FileChecksum(entry["bytes"], entry["xxh3_128"]) for name, entry in report["files"].items()}
    yield from differences(directory, recorded)
    if (problem := _figure_problem(directory / FIGURE)) is not None:
        yield f"{FIGURE} {problem}"
    yield from (f"{name} is not in the report" for name in output_files(directory) if name not in recorded)


def _figure_problem(path: Path) -> str | None:
    """Names what is wrong with the picture, whose bytes are not recorded: fonts decide them."""
    if not path.is_file():
        return "is missing"
    content = path.read_bytes()
    is_whole = content.startswith(_PNG_BEGINNING) and content.endswith(_PNG_END)
    return None if is_whole else "is no whole PNG file"


def _sum_problems(report: Mapping[str, Any]) -> Iterator[str]:
    """Compares the totals of the report with its parts."""
    totals, categories = report["totals"], report["categories"].values()
    accounted = sum(totals["rejected"].values()) + totals["dropped"]["documents"] + totals["kept"]["documents"]
    if totals["records"] != accounted:
        yield f"cleaning.json: {totals['records']:,} records, but {accounted:,} are rejected, dropped or kept"
    rejected = sum(totals["rejected"].values())
    listed = report["files"].get(REJECTED, {}).get("lines", 0)
    if rejected != listed:
        yield f"cleaning.json: {rejected:,} records are rejected, but {REJECTED} has {listed:,}"
    if sum(report["lengths"]["before"]) != totals["incoming"]["documents"]:
        yield "cleaning.json: the lengths before do not add up to the incoming documents"
    for part in ("documents", "characters"):
        sums = {name: sum(entry[name][part] for entry in categories) for name in ("incoming", "kept")}
        by_reason = sum(amount[part] for amount in report["reasons"].values())
        sums["dropped"] = sum(amount[part] for entry in categories for amount in entry["dropped"].values())
        for name, count in (*sums.items(), ("dropped", by_reason)):
            if count != totals[name][part]:
                yield f"cleaning.json: {count:,} {part} {name} by its parts, {totals[name][part]:,} in its totals"
    yield from _moved_problems(report)
    before = totals["incoming"]["characters"] - totals["dropped"]["characters"]
    removed = sum(change["removed_characters"] for change in report["changes"].values())
    if before - removed != totals["kept"]["characters"]:
        yield (
            f"cleaning.json: kept documents had {before:,} characters and lost {removed:,}, "
            f"but have {totals['kept']['characters']:,}"
        )


def _moved_problems(report: Mapping[str, Any]) -> Iterator[str]:
    """Compares what came into each category with what became of it."""
    gained: Counter = Counter()
    for move in report["moved"]:
        gained[move["to"]] += move["documents"]
        gained[move["from"]] -= move["documents"]
    for name, entry in report["categories"].items():
        dropped = sum(amount["documents"] for amount in entry["dropped"].values())
        accounted = entry["kept"]["documents"] + dropped - gained[name]
        if entry["incoming"]["documents"] != accounted:
            yield (
                f"cleaning.json: {entry['incoming']['documents']:,} documents came into category {name}, "
                f"but {accounted:,} were kept, dropped or moved"
            )


def _count_problems(report: Mapping[str, Any], recount: _Recount) -> Iterator[str]:
    """Compares the counts of the report with those of the files."""
    kept = {name: entry["kept"] for name, entry in report["categories"].items() if entry["kept"]["documents"]}
    for name in sorted({*kept, *recount.kept}):
        yield from _differences(f"category {name}, kept", kept.get(name, {}), recount.kept.get(name, Counter()))
    dropped = {
        (reason, name): amount
        for name, entry in report["categories"].items()
        for reason, amount in entry["dropped"].items()
    }
    for reason, name in sorted({*dropped, *recount.dropped}):
        found = recount.dropped.get((reason, name), Counter())
        yield from _differences(f"category {name}, dropped by {reason}", dropped.get((reason, name), {}), found)
    lengths = report["lengths"]
    histogram = {start: count for start, count in zip(lengths["edges"], lengths["after"], strict=False) if count}
    if histogram != dict(recount.lengths):
        yield "the lengths of the documents that are kept are others than in the report"
    contaminated = sum(found["documents"] for (reason, _), found in recount.dropped.items() if reason == CONTAMINATED)
    if contaminated != len(recount.contaminated):
        yield (
            f"{HITS_FILE} names {len(recount.contaminated):,} documents to drop, "
            f"but {contaminated:,} are dropped for {CONTAMINATED}"
        )
    for reason in sorted({*report["samples"], *recount.samples}):
        found_samples = [sample for _, sample in recount.samples.get(reason, [])]
        if report["samples"].get(reason) != found_samples:
            yield f"the samples of {reason} are others than dropped/{reason}.jsonl gives"


def _differences(what: str, recorded: Mapping[str, int], found: Mapping[str, int]) -> Iterator[str]:
    for part in ("documents", "characters"):
        if recorded.get(part, 0) != found.get(part, 0):
            yield f"{what}: {found.get(part, 0):,} {part} in the files, {recorded.get(part, 0):,} in the report"
