"""Verifies a finished preparation: re-reads it and checks its manifest and the rules of rows."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import orjson
import pyarrow as pa

from colossal_llama.dataset.prepare.manifest import FURTHER_TOKENS, read_manifest
from colossal_llama.dataset.prepare.part_check import part_problems
from colossal_llama.dataset.prepare.part_writer import DATA_FILE, part_name
from colossal_llama.utils.checked_json import has_checksum
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.fingerprint import fingerprint_file
from colossal_llama.utils.labels import IGNORED_LABEL

ROWS_AT_ONCE = 256


def verify(directory: Path) -> str:
    """Checks every part; returns a message of success.

    Raises:
        UserError: the directory holds no complete preparation, or it differs from its manifest.
    """
    manifest = read_manifest(directory)
    problems = [
        *_name_problems(directory, manifest),
        *_total_problems(manifest),
        *_rejected_problems(directory, manifest),
    ]
    for index, entry in enumerate(progress_bar(manifest["parts"], desc="verify", unit=" parts")):
        problems += [f"{entry['name']}: {problem}" for problem in _part_problems(directory, index, entry, manifest)]
    if problems:
        raise UserError(truncate_problems(problems))
    totals = manifest["totals"]
    counts = f"{len(manifest['parts'])} parts, {totals['rows']:,} rows, {totals['tokens_out']:,} tokens"
    unrecorded = "" if has_checksum(manifest) else " (an earlier version: no checksum of manifest.json is recorded)"
    return f"{directory}: {counts}: all as in the manifest{unrecorded}"


def _name_problems(directory: Path, manifest: dict) -> Iterator[str]:
    expected = [part_name(index) for index in range(manifest["identity"]["arguments"]["num_spliced_dataset_bins"])]
    if [entry["name"] for entry in manifest["parts"]] != expected:
        yield f"the manifest does not list {len(expected)} parts in order"
    for folder, suffix in (("arrow", ""), ("jsonl", ".jsonl")):
        found = {path.name for path in (directory / folder).iterdir()} if (directory / folder).is_dir() else set()
        wanted = {name + suffix for name in expected}
        yield from (f"{folder}/{name} is not in the manifest" for name in sorted(found - wanted))


def _rejected_problems(directory: Path, manifest: dict) -> Iterator[str]:
    path, sha256 = directory / "rejected.jsonl", manifest.get("rejected_sha256")
    if sha256 is not None and not path.is_file():
        yield "rejected.jsonl is missing"
    elif sha256 is not None and fingerprint_file(path) != sha256:
        yield "rejected.jsonl has changed since it was written"


def _total_problems(manifest: dict) -> Iterator[str]:
    totals, parts = manifest["totals"], manifest["parts"]
    for name, total in (("rows", "rows"), ("tokens", "tokens_out"), ("target_tokens", "target_tokens")):
        counted = sum(part[name] for part in parts)
        if counted != totals.get(total, 0):
            yield f"manifest.json: the parts have {counted:,} {name}, the totals say {totals.get(total, 0):,}"
    lost = sum(count for name, count in totals.items() if name.startswith(("cut_tokens.", "dropped_tokens.")))
    repeated = totals.get("repeated_tokens", 0) + totals.get(FURTHER_TOKENS, 0)
    if totals["tokens_in"] + repeated != totals["tokens_out"] + lost:
        tokens_in, tokens_out = totals["tokens_in"], totals["tokens_out"]
        yield f"manifest.json: {tokens_in:,} tokens went in, {tokens_out:,} came out, {lost:,} were cut"


def _part_problems(directory: Path, index: int, entry: dict, manifest: dict) -> Iterator[str]:
    arrow, jsonl = directory / "arrow" / entry["name"], directory / "jsonl" / f"{entry['name']}.jsonl"
    yield from part_problems(directory, index, entry)
    if not (arrow / DATA_FILE).is_file() or not jsonl.is_file():
        return
    try:
        dataset = datasets.load_from_disk(str(arrow))
        with jsonl.open("rb") as lines:
            yield from _row_problems(dataset, lines, entry, manifest)
    except Exception as error:  # pyarrow, datasets and json each raise their own on a damaged file
        yield f"cannot be read: {error}"


def _row_problems(dataset: datasets.Dataset, lines: Iterator[bytes], entry: dict, manifest: dict) -> Iterator[str]:
    max_length, vocab_size = manifest["identity"]["arguments"]["max_length"], manifest["identity"]["vocab_size"]
    counts = {"rows": 0, "tokens": 0, "target_tokens": 0, "segments": 0}
    for batch in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        batch.validate(full=True)  # without it, damaged offsets are followed to anywhere in memory
        rows = zip(
            *(batch[name] for name in ("input_ids", "labels", "document_lengths", "document_categories")), strict=True
        )
        for ids, labels, lengths, categories in ([_array(value) for value in row] for row in rows):
            counts["rows"] += 1
            counts["tokens"] += len(ids)
            counts["target_tokens"] += int((labels != IGNORED_LABEL).sum())
            counts["segments"] += len(lengths)
            where = f"row {counts['rows']}"
            yield from (
                f"{where}: {problem}" for problem in _rule_problems(ids, labels, lengths, max_length, vocab_size)
            )
            line = next(lines, b"")
            content = {
                "input_ids": ids,
                "labels": labels,
                "document_lengths": lengths,
                "document_categories": categories,
            }
            if orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE) != line:
                yield f"{where}: the jsonl file has other content than the arrow file"
    if next(lines, None) is not None:
        yield "the jsonl file has more rows than the arrow file"
    for name, count in counts.items():
        if count != entry[name]:
            yield f"has {count:,} {name}, the manifest says {entry[name]:,}"


def _array(value: pa.ListScalar) -> np.ndarray:
    return np.ascontiguousarray(value.values.to_numpy(zero_copy_only=False))


def _rule_problems(
    ids: np.ndarray, labels: np.ndarray, lengths: np.ndarray, max_length: int, vocab_size: int
) -> Iterator[str]:
    if not len(ids) == len(labels) == lengths.sum():
        yield f"{len(ids)} ids, {len(labels)} labels, documents of {lengths.sum()} tokens in total"
        return
    if len(ids) > max_length:
        yield f"{len(ids)} tokens, more than {max_length}"
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab_size):
        yield f"an id outside of the vocabulary of {vocab_size}"
    targets = labels != IGNORED_LABEL
    if not targets.any():
        yield "no target"
    if (labels[targets] != ids[targets]).any():
        yield "a label that is neither -100 nor the token's id"
    if targets[np.cumsum(lengths) - lengths].any():
        yield "the first token of a document is a target"
