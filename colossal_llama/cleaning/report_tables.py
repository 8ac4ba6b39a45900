"""Report of a cleaning as tables for a terminal: categories, reasons, reasons by category."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from colossal_llama.cleaning.output_files import REJECTED
from colossal_llama.dataset.prepare.manifest import note_lines
from colossal_llama.readers.fields import printable
from colossal_llama.readers.unread_keys import unread_members_message
from colossal_llama.utils.console import table

SHOWN_CATEGORIES = 20
SHOWN_COLUMNS = 5
"""Categories side by side: more do not fit into a terminal of 120 columns."""
_NAME_IN_HEADER, _LONGEST_NAME = 16, 40


def summary(report: Mapping[str, Any]) -> str:
    """Formats a report as tables and lines; the largest categories, all reasons."""
    blocks = [_category_table(report), _reason_table(report), _reason_by_category(report), *_lines(report)]
    return "\n\n".join(block for block in blocks if block)


def _category_table(report: Mapping[str, Any]) -> str:
    categories = report["categories"]
    names = largest_categories(report)
    own = names if len(names) <= SHOWN_CATEGORIES else names[: SHOWN_CATEGORIES - 1]
    rows = [_category_row(name, [categories[name]]) for name in own]
    if rest := names[len(own) :]:
        rows.append(_category_row(f"and {len(rest):,} others", [categories[name] for name in rest]))
    if len(names) != 1:
        rows.append(_category_row("total", list(categories.values())))
    return table(["category", "documents", "kept", "%", "characters", "kept", "%"], rows)


def _category_row(name: str, entries: Sequence[Mapping[str, Any]]) -> list:
    row: list = [shortened(name, _LONGEST_NAME)]
    for part in ("documents", "characters"):
        before, after = (sum(entry[side][part] for entry in entries) for side in ("incoming", "kept"))
        row += [before, after, _per_cent(after, before)]
    return row


def largest_categories(report: Mapping[str, Any]) -> list[str]:
    """Names of all categories, that with the most incoming characters first."""
    categories = report["categories"]
    return sorted(categories, key=lambda name: (-categories[name]["incoming"]["characters"], name))


def largest_reasons(report: Mapping[str, Any]) -> list[str]:
    """Names of all reasons, that of the most documents first."""
    return sorted(report["reasons"], key=lambda reason: (-report["reasons"][reason]["documents"], reason))


def _reason_table(report: Mapping[str, Any]) -> str:
    if not report["reasons"]:
        return "no document was dropped"
    incoming, rows = report["totals"]["incoming"], []
    entries = [*((reason, report["reasons"][reason]) for reason in largest_reasons(report))]
    for reason, amount in (*entries, ("total", report["totals"]["dropped"])):
        row: list = [reason]
        for part in ("documents", "characters"):
            row += [amount[part], _per_cent(amount[part], incoming[part])]
        rows.append(row)
    return table(["dropped", "documents", "%", "characters", "%"], rows)


def _reason_by_category(report: Mapping[str, Any]) -> str:
    """Share of each category's documents that each reason dropped, for the largest categories."""
    names = largest_categories(report)[:SHOWN_COLUMNS]
    if len(report["categories"]) < 2 or not report["reasons"]:
        return ""
    rows = []
    for reason in largest_reasons(report):
        counts = [report["categories"][name]["dropped"].get(reason, {}).get("documents", 0) for name in names]
        wholes = [report["categories"][name]["incoming"]["documents"] for name in names]
        rows.append([reason, *(_per_cent(count, whole) for count, whole in zip(counts, wholes, strict=True))])
    return table(["dropped, % of documents", *(shortened(name, _NAME_IN_HEADER) for name in names)], rows)


def shortened(name: str, columns: int) -> str:
    """A name on one line of a terminal, cut off where it is too long."""
    shown = printable(name)
    return shown if len(shown) <= columns else f"{shown[: columns - 1]}…"


def _per_cent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _lines(report: Mapping[str, Any]) -> list[str]:
    totals = report["totals"]
    lines = [f"rejected records ({REJECTED}): {why}  {count:,}" for why, count in totals["rejected"].items()]
    for name, change in report["changes"].items():
        removed = change["removed_characters"]
        length = f", {abs(removed):,} characters {'less' if removed > 0 else 'more'}" if removed else ""
        lines.append(f"changed: {name}  {change['times']:,} times in {change['documents']:,} documents{length}")
    for move in report["moved"]:
        before, after = (shortened(move[side], _LONGEST_NAME) for side in ("from", "to"))
        lines.append(f"moved: {before} to {after}  {move['documents']:,} documents")
    run = report["run"]
    lines += note_lines(sum(map(Counter, run.get("notes", {}).values()), Counter()))
    lines += filter(None, [unread_members_message(run.get("unread_members", {}))])
    if totals["empty_lines"]:
        lines.append(f"empty lines skipped: {totals['empty_lines']:,}")
    return ["\n".join(lines)] if lines else []
