"""Reads, checks and tokenizes one chunk of the input, the unit of work of a worker process."""

import ctypes
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.dataset.prepare.cache import ChunkWriter
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.rejections import SHOWN_BAD_RECORDS, SHOWN_RECORD_CHARACTERS
from colossal_llama.dataset.records import Conversation, conversation_of
from colossal_llama.dataset.role_names import KNOWN_ROLES, RoleNames
from colossal_llama.dataset.template_renderer import ChatTemplateLimitError
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.readers.fields import Document, FieldOptions, document_of, refuse_document, with_category
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import BadRow, RecordError, Row, parse_row
from colossal_llama.readers.rows import DamagedFileError, read_rows, row_places
from colossal_llama.utils.errors import UserError

BATCH_BYTES = 4 << 20  # records tokenized at once, with the bad ones among them: a bound on memory
_OBJECT_BYTES = 500  # of a bad record in memory, besides its text


@dataclass
class ChunkJob:
    """Settings of all chunks of a preparation.

    Attributes:
        tokenizer: tokenizes checked records.
        chunk_dir: directory of finished chunks.
        max_line_bytes: longest line that is read; a longer one is a bad record.
        stop_on_bad_record: a bad record ends the run; the remaining records are then only checked.
        bad_record_seen: flag shared by all workers: one of them has found a bad record.
        fields: which fields of a record are read.
        roles: meanings of the names of roles.
    """

    tokenizer: DocumentTokenizer | ConversationTokenizer
    chunk_dir: Path
    max_line_bytes: int
    stop_on_bad_record: bool
    bad_record_seen: ctypes.c_byte | None = None
    fields: FieldOptions = field(default_factory=FieldOptions)
    roles: RoleNames = KNOWN_ROLES

    def check_record(self, record: dict, file: InputFile) -> Document | Conversation:
        """Checks a JSON object of a file as a record."""
        if isinstance(self.tokenizer, DocumentTokenizer):
            return document_of(record, file, self.fields)
        try:
            return conversation_of(with_category(record, file, self.fields), self.roles)
        except RecordError:
            refuse_document(record)
            raise

    @property
    def checks_only(self) -> bool:
        """True when records are no longer tokenized, since a bad one stops the run."""
        return self.stop_on_bad_record and self.bad_record_seen is not None and bool(self.bad_record_seen.value)


@dataclass
class _ChunkCounts:
    """Counts of what has been read of a chunk, and the bad records that are not written yet."""

    rows: int = 0
    records: int = 0
    empty_lines: int = 0
    rejected: list[dict] = field(default_factory=list)
    rejected_bytes: int = 0
    reasons: Counter = field(default_factory=Counter)

    def reject(self, row: int, text: str, error: RecordError) -> None:
        self.reasons[error.reason] += 1
        self.rejected_bytes += len(text) + _OBJECT_BYTES
        self.rejected.append({"row": row, "reason": error.reason, "message": str(error), "record": text})

    def take_rejected(self) -> list[dict]:
        """The bad records so far, in their order: a template refuses after later checks."""
        rejected = sorted(self.rejected, key=lambda record: record["row"])
        self.rejected, self.rejected_bytes = [], 0
        return rejected


def process_chunk(job: ChunkJob, chunk: Chunk) -> dict:
    """Tokenizes a chunk into files under `job.chunk_dir`.

    Returns:
        The chunk's facts: numbers of rows, records, empty lines, bad records by reason, documents,
            segments and tokens, SHA-256 of what was read, and statistics by category. `finished` is
            False if a bad record stopped the run; then `rejected` lists the first of this chunk's
            bad records, and no files remain.
    """
    digest, counts = hashlib.sha256(), _ChunkCounts()
    writer = ChunkWriter(job.chunk_dir, chunk.index)
    batch = _Batch()
    try:
        for number, row in _limited_rows(job, chunk, digest, counts):
            counts.rows = number + 1
            record = _checked_record(job, counts, chunk.file, number, row)
            if job.checks_only:
                if len(counts.rejected) > SHOWN_BAD_RECORDS:
                    break
                continue
            if record is not None:
                batch.add(record, number, row)
            if batch.size_bytes + counts.rejected_bytes >= BATCH_BYTES:
                _write_batch(job, chunk, counts, writer, batch)
                batch = _Batch()
        if not job.checks_only:
            _write_batch(job, chunk, counts, writer, batch)
        if job.checks_only:
            return {"index": chunk.index, "finished": False, "rows": counts.rows, "rejected": counts.take_rejected()}
        facts = {
            "index": chunk.index,
            "finished": True,
            "rows": counts.rows,
            "records": counts.records,
            "empty_lines": counts.empty_lines,
            "rejected_records": dict(counts.reasons),
            "sha256": digest.hexdigest(),
        }
        return writer.finish(facts)
    finally:
        writer.discard()


@dataclass
class _Batch:
    """Checked records, with their row numbers and rows."""

    records: list[Any] = field(default_factory=list)
    rows: list[tuple[int, Row]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, record: Any, number: int, row: Row) -> None:
        self.records.append(record)
        self.rows.append((number, row))
        self.size_bytes += len(row) if isinstance(row, bytes) else len(str(row))


def _write_batch(job: ChunkJob, chunk: Chunk, counts: _ChunkCounts, writer: ChunkWriter, batch: _Batch) -> None:
    """Tokenizes and writes a batch; records that the chat template refuses become bad records.

    Raises:
        UserError: the template exceeds its limits, as it may for every record.
    """
    if batch.records:
        try:
            tokenized = job.tokenizer.tokenize(batch.records)
        except ChatTemplateLimitError as error:
            (place,) = row_places(chunk.range, [batch.rows[error.conversation][0]])
            raise UserError(f"--chat_template: {place}: {error}") from None
        writer.add(tokenized)
        for number, message in tokenized.refusals.items():
            _reject(job, counts, *batch.rows[number], RecordError("refused_by_chat_template", message))
    if not job.checks_only:
        writer.add_rejected(counts.take_rejected())


def _reject(job: ChunkJob, counts: _ChunkCounts, number: int, row: Row, error: RecordError) -> None:
    content = row.beginning if isinstance(row, LongLine | BadRow) else row
    # Where a bad record stops the run, its beginning alone is shown. A character has up to 4 bytes.
    shown = slice(4 * SHOWN_RECORD_CHARACTERS if job.stop_on_bad_record else None)
    text = content[shown].decode("utf-8", "backslashreplace") if isinstance(content, bytes) else repr(content)[shown]
    counts.reject(number, text, error)
    if job.stop_on_bad_record and job.bad_record_seen is not None:
        job.bad_record_seen.value = 1


def _limited_rows(job: ChunkJob, chunk: Chunk, digest: Any, counts: _ChunkCounts) -> Iterator[tuple[int, Row]]:
    """Rows up to the record limit; damage to the file becomes a bad record after the last row."""
    if chunk.record_limit == 0:
        return
    try:
        for number, row in read_rows(chunk.range, job.max_line_bytes, digest.update):
            yield number, row
            if counts.records == chunk.record_limit:
                return
    except DamagedFileError as error:
        counts.records += 1
        _reject(job, counts, counts.rows, b"", RecordError(error.reason, str(error)))


def _checked_record(job: ChunkJob, counts: _ChunkCounts, file: InputFile, number: int, row: Row) -> Any:
    """Checked record of a row; None for an empty or bad row, which is counted."""
    if isinstance(row, bytes) and not row.strip():
        counts.empty_lines += 1
        return None
    counts.records += 1
    try:
        return job.check_record(parse_row(row), file)
    except RecordError as error:
        _reject(job, counts, number, row, error)
        return None
