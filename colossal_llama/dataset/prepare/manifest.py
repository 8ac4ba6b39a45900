"""Builds `manifest.json`, and prints it as tables."""

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from colossal_llama.dataset.mixture.plan_tables import plan_summary
from colossal_llama.dataset.prepare.ownership import is_ours
from colossal_llama.dataset.role_names import GIVEN_ROLES
from colossal_llama.readers.directory_listing import unread_message
from colossal_llama.readers.fields import BY_DIRECTORY, CHOSEN
from colossal_llama.readers.file_range import FileRange
from colossal_llama.readers.unread_keys import UNREAD_KEYS, UnreadMembers, bound_names, unread_members_message
from colossal_llama.utils.checked_json import DamagedJsonError, read_checked, with_checksum
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import UserError

MANIFEST_VERSION = 1
LEFT_OUT = "left_out_by_mixture"
"""Reason of documents and tokens that a mixture does not use."""
FURTHER_TOKENS = "further_epoch_tokens"
"""Count of the tokens of documents that a mixture repeats, without their first time."""
PACKAGES = ("numpy", "orjson", "pyarrow", "tokenizers")  # those that may change the bytes
_PART_TEXTS = ("fingerprint", "arrow_sha256", "jsonl_sha256")
_PART_COUNTS = ("rows", "tokens", "target_tokens", "documents", "segments")
IDENTITY_SHAPE = {
    "arguments": {"num_spliced_dataset_bins": int, "max_length": int},
    "vocab_size": int,
    "input_files": [{"name": str, "size_bytes": int}],
}
_SHAPE = {
    "identity": IDENTITY_SHAPE,
    "versions": dict,
    "totals": dict.fromkeys(("records", "rows", "tokens_in", "tokens_out"), int),
    "categories": dict,
    "input_files": [{"name": str, "rows": int, "chunk_sha256": [str]}],
    "parts": [{"name": str, **dict.fromkeys(_PART_COUNTS, int), **dict.fromkeys(_PART_TEXTS, str)}],
}


def read_manifest(output_dir: Path) -> dict:
    """Reads the manifest of a complete preparation.

    Raises:
        UserError: there is none, it is not what was written, or another program wrote it.
    """
    path = output_dir / "manifest.json"
    if not os.path.lexists(path):
        raise UserError(f"{output_dir} has no manifest.json: the preparation is not finished; run its command again")
    if not is_ours(path):
        raise UserError(f"{path} was not written by the prepare scripts, or is damaged beyond recognition")
    try:
        return read_checked(path, _SHAPE)
    except DamagedJsonError as error:
        raise UserError(f"{error}; prepare the data afresh with --overwrite") from error


def versions() -> dict[str, str]:
    """Versions of Python and the packages that may change the bytes of a preparation."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def build_manifest(
    identity: dict,
    chunks: Sequence[dict],
    parts: Sequence[dict],
    ranges: Sequence[Sequence[FileRange]],
    unread_files: dict,
    rejected_sha256: str | None,
    mixture: dict | None = None,
) -> dict:
    """Builds the manifest of a complete preparation.

    Equal input gives an equal manifest, whatever the workers, shards and times were.

    Args:
        identity: of the run, see `output_dir.identity`.
        chunks: facts of all chunks.
        parts: facts of all parts.
        ranges: for every chunk what it reads.
        unread_files: `directory_listing.unread_record`.
        rejected_sha256: of rejected.jsonl; None where no record was rejected.
        mixture: record of the plan of a mixture; None without one.
    """
    statistics = total_statistics(chunks)
    if mixture is not None:
        _count_chosen(statistics, parts, mixture)
    total = bound_names(sum(statistics.values(), Counter()))
    for name in identity["arguments"].get("roles", {}):
        total.setdefault(f"{GIVEN_ROLES}{name}", 0)
    rows = sum(part["rows"] for part in parts)
    tokens = sum(part["tokens"] for part in parts)
    rejected = sum((Counter(chunk["rejected_records"]) for chunk in chunks), Counter())
    capacity = rows * identity["arguments"]["max_length"]
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "identity": identity,
        "versions": versions(),
        **({"grouped_chunks": True} if any(len(listed) > 1 for listed in ranges) else {}),
        **({"divided_files": True} if any(part.is_part for listed in ranges for part in listed) else {}),
        "totals": {
            "records": sum(chunk["records"] for chunk in chunks),
            "empty_lines": sum(chunk["empty_lines"] for chunk in chunks),
            "rejected_records": dict(sorted(rejected.items())),
            "rows": rows,
            "fill": tokens / capacity if capacity else 0.0,
            **dict(sorted(total.items())),
        },
        "categories": {name: dict(sorted(statistics[name].items())) for name in sorted(statistics)},
        **({} if mixture is None else {"mixture": mixture}),
        "input_files": _input_files(chunks, ranges),
        "unread_files": unread_files,
        **({"unread_members": members} if (members := unread_members_of(chunks)) else {}),
        "parts": [{"name": f"part-{index:05d}", **_part_entry(part)} for index, part in enumerate(parts)],
        "rejected_sha256": rejected_sha256,
    }
    return with_checksum(manifest)


def _count_chosen(statistics: dict[str, Counter], parts: Sequence[dict], mixture: dict) -> None:
    """Counts what a mixture left out and repeated; tokens and targets become those of the parts."""
    for number, (name, entry) in enumerate(mixture["categories"].items()):
        once_tokens = entry["available_tokens"] - entry["left_out_tokens"]
        once_documents = entry["documents"] - entry["left_out_documents"]
        counts = {
            f"dropped_documents.{LEFT_OUT}": entry["left_out_documents"],
            f"dropped_tokens.{LEFT_OUT}": entry["left_out_tokens"],
            "further_epoch_documents": entry["chosen_documents"] - once_documents,
            FURTHER_TOKENS: entry["tokens"] - once_tokens,
        }
        statistics[name].update({key: count for key, count in counts.items() if count})
        statistics[name]["tokens_out"] = entry["tokens"]
        statistics[name]["target_tokens"] = sum(part["category_target_tokens"][number] for part in parts)


def total_statistics(chunks: Sequence[dict]) -> dict[str, Counter]:
    """Sums the statistics of all chunks, by category."""
    statistics: dict[str, Counter] = {}
    for chunk in chunks:
        for name, counts in chunk["statistics"].items():
            statistics.setdefault(name, Counter()).update(counts)
    for counter in statistics.values():
        bound_names(counter)
    return statistics


def _input_files(chunks: Sequence[dict], ranges: Sequence[Sequence[FileRange]]) -> list[dict]:
    """Number of rows, and SHA-256 of each range, of every file."""
    entries: dict[str, dict] = {}
    for chunk, listed in zip(chunks, ranges, strict=True):
        for part, (rows, sha256) in zip(listed, chunk["pieces"], strict=True):
            name = part.file.name
            entry = entries.setdefault(name, {"name": name, "rows": 0, "chunk_sha256": []})
            entry["rows"] += rows
            entry["chunk_sha256"].append(sha256)
    return list(entries.values())


def unread_members_of(chunks: Sequence[dict]) -> dict:
    """Sums what the chunks recorded about files in archives that are not read."""
    members = UnreadMembers()
    for chunk in chunks:
        if "unread_members" in chunk:
            members.add_record(chunk["unread_members"])
    return members.record()


def _part_entry(part: dict) -> dict:
    return {name: part[name] for name in (*_PART_COUNTS, *_PART_TEXTS)}


def summary(manifest: dict) -> str:
    """Formats the manifest as tables: categories, parts, and losses by reason."""
    blocks = [
        _category_table(manifest),
        plan_summary(manifest["mixture"]) if "mixture" in manifest else "",
        _part_table(manifest),
        *_loss_lines(manifest),
        _unread_files(manifest),
        unread_members_message(manifest.get("unread_members", {})),
    ]
    return "\n\n".join(block for block in blocks if block)


def _category_table(manifest: dict) -> str:
    header = [
        "category",
        "documents",
        "characters",
        "tokens",
        "tokens/character",
        "targets %",
        "split",
        "cut",
        "dropped",
    ]
    rows = [_category_row(name, counts) for name, counts in manifest["categories"].items()]
    if len(rows) != 1:
        rows.append(_category_row("total", manifest["totals"]))
    return table(header, rows)


def _category_row(name: str, counts: Mapping[str, int]) -> list:
    tokens_in, tokens_out = counts.get("tokens_in", 0), counts.get("tokens_out", 0)
    return [
        name,
        counts.get("documents", 0),
        counts.get("characters", 0),
        tokens_in,
        round(tokens_in / max(counts.get("characters", 0), 1), 3),
        round(100 * counts.get("target_tokens", 0) / max(tokens_out, 1), 1),
        counts.get("documents_split", 0),
        sum(count for key, count in counts.items() if key.startswith("documents_cut.")),
        sum(count for key, count in counts.items() if key.startswith("dropped_documents.")),
    ]


SHOWN_PARTS = 20


def _part_table(manifest: dict) -> str:
    max_length, parts = manifest["identity"]["arguments"]["max_length"], manifest["parts"]
    rows = [_part_row(part["name"], [part], max_length) for part in parts[:SHOWN_PARTS]]
    if len(parts) > SHOWN_PARTS:
        rows.append(_part_row(f"and {len(parts) - SHOWN_PARTS} more", parts[SHOWN_PARTS:], max_length))
    rows.append(_part_row("all parts", parts, max_length))
    return table(["part", "rows", "documents", "tokens", "fill"], rows)


def _part_row(name: str, parts: Sequence[dict], max_length: int) -> list:
    rows, documents, tokens = (sum(part[key] for part in parts) for key in ("rows", "documents", "tokens"))
    return [name, rows, documents, tokens, round(tokens / (rows * max_length), 4) if rows else 0.0]


def _unread_files(manifest: dict) -> str:
    """Names the files that were not read; earlier versions did not record them."""
    return unread_message(manifest["unread_files"]) if "unread_files" in manifest else ""


def _loss_lines(manifest: dict) -> list[str]:
    totals = manifest["totals"]
    lines = [f"rejected records: {reason}  {count:,}" for reason, count in totals["rejected_records"].items()]
    lines += note_lines(totals) + _role_lines(manifest)
    if totals["empty_lines"]:
        lines.append(f"empty lines skipped: {totals['empty_lines']:,}")
    return ["\n".join(lines)] if lines else ["nothing was rejected, cut or dropped"]


def note_lines(totals: Mapping[str, int]) -> list[str]:
    """Says what was noted about records: columns that are read, parts left out, keys not read."""
    lines = []
    for key, count in totals.items():
        if key.startswith(CHOSEN):
            lines.append(f"columns that are read: {key.removeprefix(CHOSEN)}  {count:,}")
        elif key == BY_DIRECTORY:
            lines.append(f"category from the directory's name: {count:,}")
        elif key.startswith(("cut_", "dropped_", "odd_", "untrained_")):
            lost, reason = key.split(".", 1)
            lines.append(f"{lost.replace('_', ' ')}: {reason}  {count:,}")
    return lines + _unread_key_lines(totals)


SHOWN_KEYS = 20


def _role_lines(manifest: dict) -> list[str]:
    """Number of messages of each role of `--roles`; earlier versions did not count them."""
    given, totals = manifest["identity"]["arguments"].get("roles", {}), manifest["totals"]
    counts = {name: totals[f"{GIVEN_ROLES}{name}"] for name in given if f"{GIVEN_ROLES}{name}" in totals}
    return [
        f"--roles {name}={given[name]}: {f'{count:,} messages' if count else 'no message is of this role'}"
        for name, count in counts.items()
    ]


def _unread_key_lines(totals: Mapping[str, int]) -> list[str]:
    """Names of keys that nothing here reads, the most frequent first."""
    unread = Counter({key: count for key, count in totals.items() if key.startswith(UNREAD_KEYS)}).most_common()
    lines = [f"key that is not read: {key.removeprefix(UNREAD_KEYS)}  {count:,}" for key, count in unread[:SHOWN_KEYS]]
    rest = sum(count for _, count in unread[SHOWN_KEYS:])
    return [*lines, f"and {len(unread) - SHOWN_KEYS:,} other keys  {rest:,}"] if rest else lines
