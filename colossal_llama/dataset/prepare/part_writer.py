"""Writes one part: `arrow/part-00000/`, for `datasets.load_from_disk`, and a jsonl file.

The Arrow file is built from flat buffers, without a Python object per token. The two small JSON
files that make a directory a saved data set are written here: importing `datasets` would take
longer than writing a part.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from colossal_llama.dataset.part_facts import part_fingerprint
from colossal_llama.dataset.prepare.cache import PartPlan, TokenStore
from colossal_llama.dataset.splicing import SPLICINGS, Rows, shuffle_rows
from colossal_llama.dataset.tokenization import ID_MASK, TARGET_BIT, labels_of
from colossal_llama.utils.atomic_io import fsync_tree
from colossal_llama.utils.checked_json import read_checked, with_checksum
from colossal_llama.utils.fingerprint import fingerprint_file

BATCH_TOKENS = 1 << 20  # a record batch: large enough that its fixed cost vanishes, 16 MB of buffers
DATA_FILE = "data-00000-of-00001.arrow"
METADATA_FILES = ("state.json", "dataset_info.json")
PART_FILES = (DATA_FILE, *METADATA_FILES, "part.json")
"""Names of the files of a part's directory."""
_PART_SHAPE = {
    **dict.fromkeys(("kind", "fingerprint", "arrow_sha256", "jsonl_sha256"), str),
    **dict.fromkeys(("max_length", "rows", "tokens", "target_tokens", "documents", "segments"), int),
}


@dataclass(frozen=True)
class PartTask:
    """Settings of all parts of a preparation.

    `facts` is copied into every part.json. With `counts_categories` it has the target tokens of
    every category, too, since those of the chunks are not those of a mixture.
    """

    output_dir: Path
    splicing: str
    max_length: int
    seed: int
    categories: tuple[str, ...]
    facts: dict
    counts_categories: bool = False


def part_name(index: int) -> str:
    """Name of a part: `part-00000` and so on."""
    return f"part-{index:05d}"


def part_facts(output_dir: Path, index: int) -> dict | None:
    """Content of a finished part's part.json; None for an unfinished part.

    Raises:
        DamagedJsonError: it is not what was written.
    """
    if not (output_dir / "jsonl" / f"{part_name(index)}.jsonl").is_file():
        return None
    try:
        return read_part_json(output_dir / "arrow" / part_name(index))
    except FileNotFoundError:
        return None


def read_part_json(directory: Path) -> dict:
    """Content of the part.json in a part's directory.

    Raises:
        FileNotFoundError: there is none.
        DamagedJsonError: it is not what was written.
    """
    return read_checked(directory / "part.json", _PART_SHAPE)


def write_part(task: PartTask, index: int) -> dict:
    """Packs and writes a part from the plan and the tokens under cache/.

    The jsonl file is renamed first and the Arrow directory last: a part whose directory exists is
    complete.

    Returns:
        The content of its part.json.
    """
    plan = PartPlan.load(task.output_dir / "cache" / "plan")
    store = TokenStore(task.output_dir / "cache" / "chunks", plan.chunk_starts)
    first, last = plan.part_starts[index : index + 2]
    lengths = np.array(plan.lengths[first:last])
    rows = shuffle_rows(SPLICINGS[task.splicing](lengths, task.max_length), (task.seed, index))

    name = part_name(index)
    scratch = task.output_dir / "cache" / "parts" / f"{name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / name).mkdir(parents=True)
    schema = _schema(task.categories)
    counts = {"rows": len(rows), "tokens": 0, "target_tokens": 0}
    category_targets = np.zeros(len(task.categories), np.int64)
    data_path, jsonl_path = scratch / name / DATA_FILE, scratch / f"{name}.jsonl"
    with data_path.open("wb") as data, jsonl_path.open("wb") as lines, pa.ipc.new_stream(data, schema) as writer:
        for batch in _batches(rows, lengths):
            segments = rows.items[rows.starts[batch.start] : rows.starts[batch.stop]] + first
            columns = _columns(plan, store, segments, rows.starts[batch.start : batch.stop + 1])
            writer.write_batch(_record_batch(columns, schema))
            lines.writelines(_json_lines(columns))
            counts["tokens"] += len(columns.tokens)
            counts["target_tokens"] += int(np.count_nonzero(columns.tokens & TARGET_BIT))
            if task.counts_categories:
                category_targets += _category_targets(columns, len(task.categories))
    facts = {
        **task.facts,
        **counts,
        "documents": int(plan.first_of_document[first:last].sum()),
        "segments": len(lengths),
        "categories": list(task.categories),
        **({"category_target_tokens": category_targets.tolist()} if task.counts_categories else {}),
        "name": name,
        "arrow_sha256": fingerprint_file(data_path),
        "jsonl_sha256": fingerprint_file(jsonl_path),
    }
    return _publish(task, scratch, index, facts)


def _publish(task: PartTask, scratch: Path, index: int, facts: dict) -> dict:
    name = part_name(index)
    facts = {**facts, "fingerprint": part_fingerprint(facts["kind"], facts["jsonl_sha256"], facts["categories"])}
    _write_dataset_metadata(scratch / name, task.categories, facts["fingerprint"])
    facts["metadata_sha256"] = {file: fingerprint_file(scratch / name / file) for file in METADATA_FILES}
    _write_json(scratch / name / "part.json", with_checksum(facts))
    fsync_tree(scratch)
    arrow, jsonl = task.output_dir / "arrow", task.output_dir / "jsonl"
    (scratch / f"{name}.jsonl").replace(jsonl / f"{name}.jsonl")
    if (arrow / name).exists():  # another shard's job has just written the same part
        shutil.rmtree(scratch)
        return facts
    (scratch / name).rename(arrow / name)
    scratch.rmdir()
    return facts


def _batches(rows: Rows, lengths: np.ndarray) -> Iterator[range]:
    """Ranges of rows of about BATCH_TOKENS tokens."""
    if not len(rows):
        return
    ends = np.cumsum(lengths[rows.items])[rows.starts[1:] - 1]
    start = 0
    while start < len(rows):
        limit = (ends[start - 1] if start else 0) + BATCH_TOKENS
        stop = max(int(np.searchsorted(ends, limit, side="right")), start + 1)
        yield range(start, stop)
        start = stop


@dataclass(frozen=True)
class _Columns:
    """Rows as flat arrays.

    Attributes:
        tokens: (tokens,) flagged ids.
        row_starts: (rows + 1,) positions of the rows in `tokens`.
        lengths: (segments,) length of each segment in tokens.
        categories: (segments,) category number of each segment.
        row_segments: (rows + 1,) positions of the rows in `lengths`.
    """

    tokens: np.ndarray
    row_starts: np.ndarray
    lengths: np.ndarray
    categories: np.ndarray
    row_segments: np.ndarray


def _columns(plan: PartPlan, store: TokenStore, segments: np.ndarray, row_segments: np.ndarray) -> _Columns:
    lengths = plan.lengths[segments]
    tokens = store.gather(plan.starts[segments], lengths)
    row_segments = row_segments - row_segments[0]
    row_starts = np.concatenate([[0], np.cumsum(lengths)])[row_segments]
    return _Columns(tokens, row_starts, lengths, plan.categories[segments].astype(np.int64), row_segments)


def _category_targets(columns: _Columns, num_categories: int) -> np.ndarray:
    """Number of targets of each category."""
    is_target = (columns.tokens & TARGET_BIT) != 0
    return np.bincount(np.repeat(columns.categories, columns.lengths)[is_target], minlength=num_categories)


def _record_batch(columns: _Columns, schema: pa.Schema) -> pa.RecordBatch:
    def lists(starts: np.ndarray, values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(_numbers(starts.astype(np.int32)), _numbers(values))

    arrays = [
        lists(columns.row_starts, columns.tokens & ID_MASK),
        lists(columns.row_starts, labels_of(columns.tokens)),
        lists(columns.row_segments, columns.lengths),
        lists(columns.row_segments, columns.categories),
    ]
    return pa.record_batch(arrays, schema=schema)


def _numbers(values: np.ndarray) -> pa.Array:
    """Arrow array over the same memory; `pa.array` would import pandas to check for its types."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _json_lines(columns: _Columns) -> Iterator[bytes]:
    ids, labels = columns.tokens & ID_MASK, labels_of(columns.tokens)
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    token_starts, segment_starts = columns.row_starts.tolist(), columns.row_segments.tolist()
    for row in range(len(token_starts) - 1):
        tokens = slice(token_starts[row], token_starts[row + 1])
        segments = slice(segment_starts[row], segment_starts[row + 1])
        content = {
            "input_ids": ids[tokens],
            "labels": labels[tokens],
            "document_lengths": columns.lengths[segments],
            "document_categories": columns.categories[segments],
        }
        yield orjson.dumps(content, option=option)


# ------------------------------------------------------------------------ the format of `datasets`


def _features(categories: tuple[str, ...]) -> dict:
    numbers = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
    names = {"feature": {"names": list(categories), "_type": "ClassLabel"}, "_type": "List"}
    return {"input_ids": numbers, "labels": numbers, "document_lengths": numbers, "document_categories": names}


def _schema(categories: tuple[str, ...]) -> pa.Schema:
    types = {"document_categories": pa.list_(pa.int64())}
    features = _features(categories)
    fields = [pa.field(name, types.get(name, pa.list_(pa.int32()))) for name in features]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_dataset_metadata(directory: Path, categories: tuple[str, ...], fingerprint: str) -> None:
    """Writes the metadata files that `datasets.load_from_disk` (4.x and 5.x) reads."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": DATA_FILE}],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "features": _features(categories), "homepage": "", "license": ""}
    _write_json(directory / "state.json", state)
    _write_json(directory / "dataset_info.json", info)


def _write_json(path: Path, content: dict) -> None:
    """Writes without an fsync of its own: the scratch directory is flushed once, as a whole."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
