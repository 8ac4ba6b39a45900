"""Parts of given rows, written without a preparation: only the lengths and categories matter."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from colossal_llama.dataset.part_facts import part_fingerprint

FILE = "data-00000-of-00001.arrow"


def write_part(
    root: Path,
    number: int,
    rows: Sequence[Sequence[tuple[int, int]]],
    categories: Sequence[str],
    max_length: int,
    rows_per_batch: int = 3,
) -> Path:
    """Writes a part.

    Args:
        root: the part goes into `arrow/` below it.
        number: of the part.
        rows: the length and category of each segment of each row.
        categories: their names.
        max_length: of the preparation.
        rows_per_batch: in the Arrow file.
    """
    part = root / "arrow" / f"part-{number:05d}"
    part.mkdir(parents=True)
    lengths = [[length for length, _ in row] for row in rows]
    ids = [list(range(sum(row))) for row in lengths]
    columns = {"input_ids": ids, "labels": ids, "document_lengths": lengths}
    types = [(name, pa.list_(pa.int32())) for name in columns]
    columns["document_categories"] = [[category for _, category in row] for row in rows]
    schema = pa.schema([*types, ("document_categories", pa.list_(pa.int64()))])
    with (part / FILE).open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.table(columns, schema), max_chunksize=rows_per_batch)
    facts = {"kind": "pretrain", "name": part.name, "tokens": sum(map(sum, lengths)), "max_length": max_length}
    facts |= {"rows": len(rows), "categories": list(categories), "jsonl_sha256": "0" * 64}
    facts["fingerprint"] = part_fingerprint("pretrain", "0" * 64, categories)
    (part / "part.json").write_text(json.dumps(facts))
    (part / "state.json").write_text(json.dumps({"_data_files": [{"filename": FILE}]}))
    (part / "dataset_info.json").write_text("{}")
    return part
