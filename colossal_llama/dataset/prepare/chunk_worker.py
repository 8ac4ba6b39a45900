"""Reads, checks and tokenizes one chunk of the input: the unit of work of a worker process."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from colossal_llama.dataset.prepare.cache import ChunkWriter
from colossal_llama.dataset.prepare.input_files import Chunk, DamagedFileError, read_rows
from colossal_llama.dataset.records import RecordError, conversation_of, document_of, parse_row
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer

BATCH_BYTES = 4 << 20  # records tokenized together: enough for the tokenizer, and a bound on memory for long chunks


@dataclass
class ChunkJob:
    """What all chunks of a preparation have in common.

    Attributes:
        tokenizer: turns checked records into samples.
        chunk_dir: where finished chunks are written.
        stop_on_bad_record: a bad record ends the run; the remaining records are then only checked.
        bad_record_seen: shared by all workers: somebody found a bad record, nothing needs to be tokenized any more.
    """

    tokenizer: DocumentTokenizer | ConversationTokenizer
    chunk_dir: Path
    stop_on_bad_record: bool
    bad_record_seen: Synchronized | None = None

    @property
    def check_record(self) -> Callable[[dict], Any]:
        """From a JSON object to a checked record."""
        return document_of if isinstance(self.tokenizer, DocumentTokenizer) else conversation_of

    @property
    def checks_only(self) -> bool:
        """Whether tokenizing has become pointless."""
        return self.stop_on_bad_record and self.bad_record_seen is not None and bool(self.bad_record_seen.value)


@dataclass
class _ChunkCounts:
    """What has been read of a chunk so far."""

    rows: int = 0
    records: int = 0
    empty_lines: int = 0
    rejected: list[dict] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)

    def reject(self, row: int, content: bytes | dict, error: RecordError) -> None:
        text = content.decode("utf-8", "backslashreplace") if isinstance(content, bytes) else repr(content)
        self.reasons[error.reason] += 1
        self.rejected.append({"row": row, "reason": error.reason, "message": str(error), "record": text})


def process_chunk(job: ChunkJob, chunk: Chunk) -> dict:
    """Tokenizes a chunk into files under `job.chunk_dir`.

    Returns:
        The chunk's facts: rows, records, empty lines, bad records by reason, SHA-256 of what was
            read, documents, segments,
        tokens and statistics by category. `finished` is False if a bad record stopped the run; then
            `rejected` lists this
        chunk's bad records and nothing is left on the disk.
    """
    digest, reading = hashlib.sha256(), _ChunkCounts()
    writer = ChunkWriter(job.chunk_dir, chunk.index)
    batch: list[Any] = []
    batch_bytes = 0
    try:
        for number, row in _checked_rows(chunk, digest, reading):
            reading.rows = number + 1
            record = _checked(job, reading, number, row)
            if record is None or job.checks_only:
                continue
            batch.append(record)
            batch_bytes += len(row) if isinstance(row, bytes) else len(str(row))
            if batch_bytes >= BATCH_BYTES:
                writer.add(job.tokenizer.tokenize(batch))
                batch, batch_bytes = [], 0
        if job.checks_only:
            return {"index": chunk.index, "finished": False, "rows": reading.rows, "rejected": reading.rejected}
        if batch:
            writer.add(job.tokenizer.tokenize(batch))
        facts = {
            "index": chunk.index,
            "finished": True,
            "rows": reading.rows,
            "records": reading.records,
            "empty_lines": reading.empty_lines,
            "rejected_records": dict(reading.reasons),
            "sha256": digest.hexdigest(),
        }
        return writer.finish(facts, reading.rejected)
    finally:
        writer.discard()


def _checked_rows(chunk: Chunk, digest: Any, reading: _ChunkCounts) -> Iterator[tuple[int, bytes | dict]]:
    """`read_rows` up to the record limit; damage to the file becomes a bad record after the last good row."""
    if chunk.record_limit == 0:
        return
    try:
        for number, row in read_rows(chunk, digest):
            yield number, row
            if reading.records == chunk.record_limit:
                return
    except DamagedFileError as error:
        message = f"the file is damaged, nothing can be read from here on: {error}"
        reading.records += 1
        reading.reject(reading.rows, b"", RecordError("damaged_file", message))


def _checked(job: ChunkJob, reading: _ChunkCounts, number: int, row: bytes | dict) -> Any:
    """The checked record of a row; None if the row is empty or bad, which is counted."""
    if isinstance(row, bytes) and not row.strip():
        reading.empty_lines += 1
        return None
    reading.records += 1
    try:
        return job.check_record(parse_row(row))
    except RecordError as error:
        reading.reject(number, row, error)
        if job.stop_on_bad_record and job.bad_record_seen is not None:
            job.bad_record_seen.value = 1
        return None
