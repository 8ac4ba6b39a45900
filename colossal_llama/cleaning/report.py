"""Builds `cleaning.json`: every count of a cleaning, samples of each reason, and its files.

    DIR/cleaning.json
        run         what the pipeline knows: arguments, settings of all rules, input files
        totals      records, rejected ones, and amounts: incoming = dropped + kept before changes
        reasons     amount and shares of what each reason dropped
        categories  the same for each category
        moved       documents that a blocklist moved from one category to another
        changes     what was changed in kept documents, by name
        lengths     histograms of characters of documents, as they came in and as written
        samples     five dropped documents of each reason
        files       bytes, lines and checksum of every file in DIR, but for the figure, whose
                    bytes depend on the fonts of the host

An amount is `{"documents": …, "characters": …}`. Nothing in it depends on time, host or number of
workers: equal input gives equal bytes.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colossal_llama.cleaning.counts import Amount, ChunkCounts, bin_start
from colossal_llama.cleaning.output_files import FIGURE, REPORT, file_entries
from colossal_llama.utils.checked_json import DamagedJsonError, has_checksum, read_checked, with_checksum, write_checked
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

FORMAT = "colossal_llama.cleaning.1"
PACKAGES = ("numpy", "orjson", "pyarrow", "xxhash")  # those that may change the bytes
_AMOUNT = {"documents": int, "characters": int}
_SHAPE = {
    "format": str,
    "run": dict,
    "versions": dict,
    "totals": {
        "records": int,
        "empty_lines": int,
        "rejected": dict,
        **dict.fromkeys(("incoming", "dropped", "kept"), _AMOUNT),
    },
    "reasons": dict,
    "categories": dict,
    "moved": [{"from": str, "to": str, **_AMOUNT}],
    "changes": dict,
    "lengths": {"edges": [int], "before": [int], "after": [int]},
    "samples": dict,
    "files": dict,
}


def build_report(counts: ChunkCounts, run: Mapping[str, Any], files: Mapping[str, dict]) -> dict:
    """Builds the report of a complete cleaning.

    Args:
        counts: of all chunks.
        run: what the pipeline knows about it: JSON values that do not depend on host or time.
        files: entries of `output_files.file_entries`.
    """
    incoming = _total(counts.incoming)
    report = {
        "format": FORMAT,
        "run": dict(run),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "totals": {
            "records": counts.records,
            "empty_lines": counts.empty_lines,
            "rejected": dict(sorted(counts.rejected.items())),
            "incoming": incoming._asdict(),
            "dropped": _total(counts.dropped)._asdict(),
            "kept": _total(counts.kept)._asdict(),
        },
        "reasons": {reason: _with_shares(amount, incoming) for reason, amount in _by_reason(counts).items()},
        "categories": _categories(counts),
        "moved": [
            {"from": before, "to": after, **amount._asdict()}
            for (before, after), amount in sorted(counts.moved.items())
        ],
        "changes": {name: counts.changes[name]._asdict() for name in sorted(counts.changes)},
        "lengths": _lengths(counts),
        "samples": {
            reason: [_sample(sample) for sample in counts.samples[reason]] for reason in sorted(counts.samples)
        },
        "files": dict(files),
    }
    return with_checksum(report)


def write_report(output_dir: Path, counts: ChunkCounts, run: Mapping[str, Any]) -> dict:
    """Writes `cleaning.png` and, as the last file of a cleaning, `cleaning.json`.

    Args:
        output_dir: has all other files already.
        counts: of all chunks.
        run: see `build_report`.

    Returns:
        The report.
    """
    from colossal_llama.cleaning.figure import draw_report

    report = build_report(counts, run, file_entries(output_dir))
    for name, label in draw_report(report, output_dir).items():
        log_rank_zero(f"{label} in {FIGURE}: {name} (no font here can draw it)")
    write_checked(output_dir / REPORT, report)
    return report


def read_report(output_dir: Path) -> dict:
    """Reads the report of a complete cleaning.

    Raises:
        UserError: there is none, it is not what was written, or another version wrote it.
    """
    path = output_dir / REPORT
    if not path.exists():
        raise UserError(f"{output_dir} has no {REPORT}: the cleaning is not finished; run its command again")
    try:
        report = read_checked(path, _SHAPE)
        if not has_checksum(report):
            raise DamagedJsonError(path, "has no checksum of its content")
    except DamagedJsonError as error:
        raise UserError(f"{error}; clean the data again with --overwrite") from error
    if report["format"] != FORMAT:
        raise UserError(f"{path}: the format is {report['format']}, but this version reads {FORMAT}")
    return report


def _total(amounts: Mapping[Any, Amount]) -> Amount:
    documents, characters = (sum(amount[part] for amount in amounts.values()) for part in (0, 1))
    return Amount(documents, characters)


def _by_reason(counts: ChunkCounts) -> dict[str, Amount]:
    total: dict[str, Amount] = {}
    for (reason, _), amount in sorted(counts.dropped.items()):
        total[reason] = total.get(reason, Amount()).plus(amount)
    return total


def _with_shares(amount: Amount, whole: Amount) -> dict:
    """Adds the shares of all incoming documents and characters, rounded to millionths."""
    shares = (round(part / all_parts, 6) if all_parts else 0.0 for part, all_parts in zip(amount, whole, strict=True))
    return {**amount._asdict(), **dict(zip(("documents_share", "characters_share"), shares, strict=True))}


def _categories(counts: ChunkCounts) -> dict[str, dict]:
    dropped: dict[str, dict[str, Amount]] = {}
    for (reason, category), amount in sorted(counts.dropped.items()):
        dropped.setdefault(category, {})[reason] = amount
    categories = {}
    for name in sorted({*counts.incoming, *counts.kept}):
        incoming = counts.incoming.get(name, Amount())
        categories[name] = {
            "incoming": incoming._asdict(),
            "kept": counts.kept.get(name, Amount())._asdict(),
            "dropped": {reason: _with_shares(amount, incoming) for reason, amount in dropped.get(name, {}).items()},
        }
    return categories


def _lengths(counts: ChunkCounts) -> dict:
    """Histograms from the first to the last bin that is not empty, with the edges between bins."""
    filled = [*counts.lengths_before, *counts.lengths_after]
    if not filled:
        return {"edges": [], "before": [], "after": []}
    # Below 4 characters some bins are always empty, and begin where the next one does.
    starts = sorted({bin_start(number) for number in range(min(filled), max(filled) + 5)})
    starts = starts[: starts.index(bin_start(max(filled))) + 2]
    before, after = (
        {bin_start(number): count for number, count in histogram.items()}
        for histogram in (counts.lengths_before, counts.lengths_after)
    )
    return {
        "edges": starts,
        "before": [before.get(start, 0) for start in starts[:-1]],
        "after": [after.get(start, 0) for start in starts[:-1]],
    }


def _sample(sample: Any) -> dict:
    return {name: value for name, value in sample._asdict().items() if name != "key"}
