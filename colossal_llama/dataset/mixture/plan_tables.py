"""Prints the record of a plan: tokens, epochs and shares by category, group and bucket."""

from collections.abc import Callable, Sequence

from colossal_llama.dataset.mixture.amounts import short_number
from colossal_llama.dataset.mixture.plan_record import TOLERATED_SHARE
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import truncate_problems

SHOWN_BUCKETS = 12
SHOWN_CATEGORIES = 40
SHOWN_DEVIATIONS = 20


def plan_summary(record: dict) -> str:
    """Formats the overall tables of a plan: categories, groups, and shares that are not met."""
    by = f" ({record['total_decided_by']})" if "total_decided_by" in record else ""
    title = f"{record['total_tokens']:,} tokens in {len(record['bucket_tokens']):,} buckets{by}"
    blocks = [title, _overall_table(record), *_deviation_lines(record)]
    return "\n\n".join(blocks)


def bucket_tables(record: dict) -> str:
    """Formats tokens, epochs and shares of every category and group in every bucket."""
    shown = _shown(record["categories"])
    named = [*shown.items(), *((f"group {name}", group) for name, group in record["groups"].items())]
    totals = record["bucket_tokens"][:SHOWN_BUCKETS]
    hidden = len(record["bucket_tokens"]) - len(totals)
    hint = f"\nand {hidden:,} more buckets: see the JSON file" if hidden else ""

    def matrix(title: str, cell: Callable[[int, int, int], str], last: Sequence[list[str]] = ()) -> str:
        """Table with a cell for each category and bucket."""
        rows = [
            [name, *(cell(tokens, _available(entry, record), total) for tokens, total in _cells(entry, totals))]
            for name, entry in named
        ]
        header = [title, *(f"part-{bucket:05d}" for bucket in range(len(totals)))]
        return _right_aligned(header, [*rows, *last]) + hint

    all_tokens = [["all", *map(short_number, totals)]]
    return "\n\n".join(
        [
            matrix("tokens", lambda tokens, available, total: short_number(tokens), all_tokens),
            matrix("epochs", lambda tokens, available, total: f"{tokens / max(available, 1):.3f}"),
            matrix("share", lambda tokens, available, total: f"{100 * tokens / max(total, 1):.2f} %"),
        ]
    )


def _cells(entry: dict, totals: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(entry["bucket_tokens"], totals, strict=False))


def _right_aligned(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Table whose columns, all but the first with names, are texts of numbers."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> list[str]:
        return [cell if column < names else cell.rjust(widths[column]) for column, cell in enumerate(cells)]

    return table(line(header), [line(row) for row in rows])


def _shown(categories: dict[str, dict]) -> dict[str, dict]:
    """The categories with most tokens, in their order; a table of thousands is read by nobody."""
    if len(categories) <= SHOWN_CATEGORIES:
        return categories
    most = sorted(categories, key=lambda name: -categories[name]["tokens"])[:SHOWN_CATEGORIES]
    return {name: entry for name, entry in categories.items() if name in set(most)}


def _available(entry: dict, record: dict) -> int:
    if "available_tokens" in entry:
        return entry["available_tokens"]
    return sum(record["categories"][name]["available_tokens"] for name in entry["categories"])


def _overall_table(record: dict) -> str:
    has_targets = "deviations" in record
    header = ["category", "group", "has documents", "has tokens", "takes tokens", "epochs", "share", "left out"]
    header += ["asked for"] if has_targets else []
    rows = [
        _row(name, entry["group"] or "", entry["documents"], entry["available_tokens"], entry, has_targets)
        for name, entry in _shown(record["categories"]).items()
    ]
    if hidden := len(record["categories"]) - len(rows):
        rows.append([f"and {hidden:,} more", *[""] * (len(header) - 1)])
    for name, entry in record["groups"].items():
        members = [record["categories"][category] for category in entry["categories"]]
        documents, available, left_out = (
            sum(member[key] for member in members) for key in ("documents", "available_tokens", "left_out_documents")
        )
        group = {**entry, "left_out_documents": left_out}
        rows.append(_row("", name, documents, available, group, has_targets))
    return _right_aligned(header, rows, names=2)


def _row(name: str, group: str, documents: int, available: int, entry: dict, has_targets: bool) -> list[str]:
    cells = [
        name,
        group,
        f"{documents:,}",
        f"{available:,}",
        f"{entry['tokens']:,}",
        f"{entry['epochs']:.3f}",
        f"{100 * entry['share']:.2f} %",
        f"{entry['left_out_documents']:,}",
    ]
    return [*cells, f"{100 * entry['requested_share']:.2f} %"] if has_targets else cells


def _deviation_lines(record: dict) -> Sequence[str]:
    if "deviations" not in record:
        return []
    percent = f"{100 * TOLERATED_SHARE:.1f} %"
    if not record["deviations"]:
        return [f"every share is met within {percent} of the tokens, over all and in every bucket"]
    lines = truncate_problems([f"  {line}" for line in record["deviations"]], SHOWN_DEVIATIONS)
    return ["\n".join([f"shares that are not met within {percent} of the tokens:", *lines])]
