"""Files of a finished cleaning: their lengths, lines and checksums, and the records in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.utils.checksums import ChecksumBuilder

REPORT = "cleaning.json"
FIGURE = "cleaning.png"
REJECTED = "rejected.jsonl"
WORK = "work"
LAST_RUN = "last_run.json"
"""Times of the run: the only output that differs between equal cleanings."""
DOCUMENTS, DROPPED = "documents", "dropped"
_BLOCK_BYTES = 4 << 20


class BrokenRecordError(Exception):
    """Raised for a line of an output file that is no record as the pipeline writes it."""


def output_files(directory: Path) -> list[str]:
    """Names of all files but report, figure, times of the run, `work/` and hidden ones; sorted."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(path.as_posix() for path in visible if path.parts[0] not in (WORK, LAST_RUN, REPORT, FIGURE))


def file_entries(directory: Path) -> dict[str, dict]:
    """Entries of all files for the report: bytes and checksum, of jsonl also the lines."""
    return {name: _entry(directory / name) for name in output_files(directory)}


def _entry(path: Path) -> dict:
    builder, block, lines = ChecksumBuilder(), bytearray(_BLOCK_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            builder.update(memoryview(block)[:count])
            lines += block.count(b"\n", 0, count)
    checksum = builder.result()
    counted = {"lines": lines} if path.suffix == ".jsonl" else {}
    return {"bytes": checksum.bytes, "xxh3_128": checksum.xxh3_128, **counted}


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Reads the records of an output file, with the numbers of their lines.

    Raises:
        BrokenRecordError: a line is no JSON object, or the last one is cut off.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                raise BrokenRecordError(f"line {number} is cut off")
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise BrokenRecordError(f"line {number} is no JSON: {error}") from None
            if not isinstance(record, dict):
                raise BrokenRecordError(f"line {number} is no JSON object")
            yield number, record


def texts_of(record: dict[str, Any]) -> list[str]:
    """Texts of a written record: source and target, or the contents of messages.

    Raises:
        BrokenRecordError: it has neither.
    """
    messages = record.get("messages")
    listed = [record.get("source"), record.get("target")]
    if messages is not None:
        is_list = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
        listed = [message.get("content") for message in messages] if is_list else [None]
    texts = [text for text in listed if isinstance(text, str)]
    if len(texts) != len(listed):
        raise BrokenRecordError("has no source and target, and no messages")
    return texts


def text_of(record: dict[str, Any]) -> str:
    """Text of a record, for a sample: what is not empty of source and target, or of messages."""
    return "\n".join(text for text in texts_of(record) if text)
