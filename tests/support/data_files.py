"""Writes records as files of every format that the scripts read, each in every compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPRESSIONS = ("", ".gz", ".zst", ".bz2", ".xz")


def compressed(content: bytes, ending: str) -> bytes:
    """The content as a file of a compression has it; `ending` may be in any case."""
    compress = {"": bytes, ".gz": gzip.compress, ".zst": _zstd, ".bz2": bz2.compress, ".xz": lzma.compress}
    return compress[ending.lower()](content)


def _zstd(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Format:
    """A way to keep records in a directory.

    Attributes:
        name: as the table of docs/data.md shows it.
        write: writes records into a directory, compressed.
        is_text: True where a file is one text, without fields.
        is_compressible: False for a directory that has no compressed form.
        given: what is named on the command line, below the directory; the directory by default.
    """

    name: str
    write: Callable[[Path, Sequence[dict], str], None]
    is_text: bool = False
    is_compressible: bool = True
    given: tuple[str, ...] = ("",)


def _one_file(name: str, content: Callable[[Sequence[dict]], bytes]) -> Callable[[Path, Sequence[dict], str], None]:
    def write(directory: Path, records: Sequence[dict], compression: str) -> None:
        (directory / f"{name}{compression}").write_bytes(compressed(content(records), compression))

    return write


def _a_file_each(ending: str, content: Callable[[dict], bytes]) -> Callable[[Path, Sequence[dict], str], None]:
    def write(directory: Path, records: Sequence[dict], compression: str) -> None:
        for number, record in enumerate(records):
            path = directory / f"{number:03d}{ending}{compression}"
            path.write_bytes(compressed(content(record), compression))

    return write


def json_lines(records: Sequence[dict]) -> bytes:
    """A JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def json_array(records: Sequence[dict]) -> bytes:
    """All records as one array, pretty-printed."""
    return json.dumps(list(records), ensure_ascii=False, indent=2).encode()


def csv_table(records: Sequence[dict]) -> bytes:
    """A header and a row for each record, quoted where it must be."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def parquet_table(records: Sequence[dict]) -> bytes:
    """A Parquet file."""
    import pyarrow
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink)
    return sink.getvalue()


def arrow_stream(records: Sequence[dict]) -> bytes:
    """Arrow's streaming format, in which `datasets` keeps its files."""
    return _arrow(records, "new_stream")


def arrow_file(records: Sequence[dict]) -> bytes:
    """Arrow's file format, also called Feather."""
    return _arrow(records, "new_file")


def _arrow(records: Sequence[dict], opener: str) -> bytes:
    import pyarrow

    table = pyarrow.Table.from_pylist(list(records))
    sink = io.BytesIO()
    with getattr(pyarrow.ipc, opener)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)  # several batches
    return sink.getvalue()


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar archive of members (name, content)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def _tar_of_lines(records: Sequence[dict]) -> bytes:
    half = len(records) // 2
    return tar_of([("shard/0.jsonl", json_lines(records[:half])), ("shard/1.jsonl", json_lines(records[half:]))])


def _saved_dataset(directory: Path, records: Sequence[dict], _: str) -> None:
    from datasets import Dataset

    Dataset.from_list(list(records)).save_to_disk(str(directory / "saved"))


def _saved_splits(directory: Path, records: Sequence[dict], _: str) -> None:
    from datasets import Dataset, DatasetDict

    half = len(records) // 2
    splits = {"test": Dataset.from_list(records[:half]), "train": Dataset.from_list(records[half:])}
    DatasetDict(splits).save_to_disk(str(directory / "saved"))


def _text(record: dict) -> bytes:
    return (record["text"] if "text" in record else record["target"]).encode()


FORMATS = (
    Format("`.jsonl`", _one_file("all.jsonl", json_lines)),
    Format("`.json`, one array", _one_file("all.json", json_array)),
    Format("`.json`, an object a file", _a_file_each(".json", lambda record: json.dumps(record, indent=4).encode())),
    Format("`.json`, an object a line", _one_file("all.json", json_lines)),
    Format("`.csv`", _one_file("all.csv", csv_table)),
    Format("`.txt`", _a_file_each(".txt", _text), is_text=True),
    Format("`.md`", _a_file_each(".md", _text), is_text=True),
    Format("`.parquet`", _one_file("all.parquet", parquet_table)),
    Format("`.arrow`, stream", _one_file("all.arrow", arrow_stream)),
    Format("`.arrow`, file", _one_file("all.arrow", arrow_file)),
    Format("`.tar` of `.jsonl`", _one_file("all.tar", _tar_of_lines)),
    Format("`save_to_disk`, a data set", _saved_dataset, is_compressible=False),
    Format(
        "`save_to_disk`, splits, each named",
        _saved_splits,
        is_compressible=False,
        given=("saved/test", "saved/train"),
    ),
)
