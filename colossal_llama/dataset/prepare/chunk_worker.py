"""Reads, checks and tokenizes one chunk of the input, the unit of work of a worker process."""

import ctypes
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from colossal_llama.dataset.prepare.cache import ChunkWriter
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.rejections import SHOWN_BAD_RECORDS, SHOWN_RECORD_CHARACTERS
from colossal_llama.dataset.prepare.worker_pool import ProgressReports
from colossal_llama.dataset.records import Conversation, conversation_of
from colossal_llama.dataset.role_names import KNOWN_ROLES, RoleNames
from colossal_llama.dataset.template_renderer import ChatTemplateLimitError
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.readers.fields import Document, FieldOptions, document_of, refuse_document, with_category
from colossal_llama.readers.file_range import ReadingProgress
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import BadRow, RecordError, Row, parse_row
from colossal_llama.readers.rows import DamagedFileError, read_rows, row_places
from colossal_llama.readers.unread_keys import UnreadMembers
from colossal_llama.utils.errors import UserError

BATCH_BYTES = 4 << 20  # records tokenized at once, with the bad ones among them: a bound on memory
_OBJECT_BYTES = 500  # of a bad record in memory, besides its text
_REPORT_INTERVAL_S = 0.5


class ChunkProgress(NamedTuple):
    """Progress within a chunk.

    Attributes:
        chunk_index: number of the chunk.
        size_bytes: of what is read of it, as its files' sizes count.
        documents: tokenized so far.
        tokens: of these.
    """

    chunk_index: int
    size_bytes: int
    documents: int
    tokens: int


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
        reports: take the `ChunkProgress` of chunks that take long.
    """

    tokenizer: DocumentTokenizer | ConversationTokenizer
    chunk_dir: Path
    max_line_bytes: int
    stop_on_bad_record: bool
    bad_record_seen: ctypes.c_byte | None = None
    fields: FieldOptions = field(default_factory=FieldOptions)
    roles: RoleNames = KNOWN_ROLES
    reports: ProgressReports = field(default_factory=ProgressReports)

    def check_record(self, record: dict, file: InputFile) -> Document | Conversation:
        """Checks a JSON object of a file as a record."""
        if isinstance(self.tokenizer, DocumentTokenizer):
            return document_of(record, file, self.fields)
        try:
            columns = self.fields.source_field, self.fields.target_field
            return conversation_of(with_category(record, file, self.fields), self.roles, columns=columns)
        except RecordError as error:
            if error.reason == "missing_field":
                refuse_document(record)
            raise

    @property
    def checks_only(self) -> bool:
        """True when records are no longer tokenized, since a bad one stops the run."""
        return self.stop_on_bad_record and self.bad_record_seen is not None and bool(self.bad_record_seen.value)


class _Position(NamedTuple):
    """A row's place in a chunk: the index of its range, and its number in the range, from 0."""

    piece: int
    row: int


@dataclass
class _ChunkCounts:
    """Counts of what has been read of a chunk, and the bad records that are not written yet."""

    records: int = 0
    empty_lines: int = 0
    pieces: list[tuple[int, str]] = field(default_factory=list)
    """Number of rows and SHA-256 of each range that has been read."""
    rejected: list[dict] = field(default_factory=list)
    rejected_bytes: int = 0
    reading: ReadingProgress = field(default_factory=ReadingProgress)
    """Of the range that is being read."""
    unread: UnreadMembers = field(default_factory=UnreadMembers)
    reasons: Counter = field(default_factory=Counter)

    def reject(self, position: _Position, text: str, error: RecordError) -> None:
        self.reasons[error.reason] += 1
        self.rejected_bytes += len(text) + _OBJECT_BYTES
        self.rejected.append({**position._asdict(), "reason": error.reason, "message": str(error), "record": text})

    def take_rejected(self) -> list[dict]:
        """The bad records so far, in their order: a template refuses after later checks."""
        rejected = sorted(self.rejected, key=lambda record: (record["piece"], record["row"]))
        self.rejected, self.rejected_bytes = [], 0
        return rejected


def process_chunk(job: ChunkJob, chunk: Chunk) -> dict:
    """Tokenizes a chunk into files under `job.chunk_dir`.

    Returns:
        The chunk's facts: numbers of rows, records, empty lines, bad records by reason, documents,
            segments and tokens, and statistics by category; number of rows and SHA-256 of each
            range. `finished` is False if a bad record stopped the run; then `rejected` lists the
            first of this chunk's bad records, and no files remain.
    """
    counts, writer = _ChunkCounts(), ChunkWriter(job.chunk_dir, chunk.index)
    try:
        _process_rows(job, chunk, counts, writer)
        if job.checks_only:
            return {"index": chunk.index, "finished": False, "rejected": counts.take_rejected()}
        facts = {
            "index": chunk.index,
            "finished": True,
            "rows": sum(rows for rows, _ in counts.pieces),
            "records": counts.records,
            "empty_lines": counts.empty_lines,
            "rejected_records": dict(counts.reasons),
            "pieces": counts.pieces,
            **({"unread_members": unread} if (unread := counts.unread.record()) else {}),
        }
        return writer.finish(facts)
    finally:
        writer.discard()


def _process_rows(job: ChunkJob, chunk: Chunk, counts: _ChunkCounts, writer: ChunkWriter) -> None:
    batch, reported_s = _Batch(), time.monotonic()
    for position, row in _rows_of_pieces(job, chunk, counts):
        if (now_s := time.monotonic()) > reported_s + _REPORT_INTERVAL_S:
            reported_s = now_s
            job.reports.report(_progress(chunk, counts, writer))
        record = _checked_record(job, counts, chunk.pieces[position.piece].range.file, position, row)
        if job.checks_only:
            if len(counts.rejected) > SHOWN_BAD_RECORDS:
                return
            continue
        if record is not None:
            batch.add(record, position, row)
        if batch.size_bytes + counts.rejected_bytes >= BATCH_BYTES:
            _write_batch(job, chunk, counts, writer, batch)
            batch = _Batch()
    if not job.checks_only:
        _write_batch(job, chunk, counts, writer, batch)


def _progress(chunk: Chunk, counts: _ChunkCounts, writer: ChunkWriter) -> ChunkProgress:
    *read, current = chunk.pieces[: len(counts.pieces) + 1]
    size_bytes = sum(piece.size_bytes for piece in read) + int(min(1.0, counts.reading.share()) * current.size_bytes)
    return ChunkProgress(chunk.index, size_bytes, writer.documents, writer.tokens)


@dataclass
class _Batch:
    """Checked records, with their rows."""

    records: list[Any] = field(default_factory=list)
    rows: list[tuple[_Position, Row]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, record: Any, position: _Position, row: Row) -> None:
        self.records.append(record)
        self.rows.append((position, row))
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
            position = batch.rows[error.conversation][0]
            (place,) = row_places(chunk.pieces[position.piece].range, [position.row])
            raise UserError(f"--chat_template: {place}: {error}") from None
        writer.add(tokenized)
        for number, message in tokenized.refusals.items():
            _reject(job, counts, *batch.rows[number], RecordError("refused_by_chat_template", message))
    if not job.checks_only:
        writer.add_rejected(counts.take_rejected())


def _reject(job: ChunkJob, counts: _ChunkCounts, position: _Position, row: Row, error: RecordError) -> None:
    content = row.beginning if isinstance(row, LongLine | BadRow) else row
    # Where a bad record stops the run, its beginning alone is shown. A character has up to 4 bytes.
    shown = slice(4 * SHOWN_RECORD_CHARACTERS if job.stop_on_bad_record else None)
    text = content[shown].decode("utf-8", "backslashreplace") if isinstance(content, bytes) else repr(content)[shown]
    counts.reject(position, text, error)
    if job.stop_on_bad_record and job.bad_record_seen is not None:
        job.bad_record_seen.value = 1


def _rows_of_pieces(job: ChunkJob, chunk: Chunk, counts: _ChunkCounts) -> Iterator[tuple[_Position, Row]]:
    """Rows of all ranges, of each up to its record limit.

    Damage to a file becomes a bad record after its last row.
    """
    for index, piece in enumerate(chunk.pieces):
        digest, rows = hashlib.sha256(), 0
        last = None if piece.record_limit is None else counts.records + piece.record_limit
        on_unread = partial(counts.unread.add, piece.range.file.name)
        found = read_rows(piece.range, job.max_line_bytes, digest.update, counts.reading, on_unread)
        found = iter(()) if counts.records == last else found
        try:
            for number, row in found:
                rows = number + 1
                yield _Position(index, number), row
                if counts.records == last:
                    break
        except DamagedFileError as error:
            counts.records += 1
            _reject(job, counts, _Position(index, rows), b"", RecordError(error.reason, str(error)))
        counts.pieces.append((rows, digest.hexdigest()))


def _checked_record(job: ChunkJob, counts: _ChunkCounts, file: InputFile, position: _Position, row: Row) -> Any:
    """Checked record of a row; None for an empty or bad row, which is counted."""
    if isinstance(row, bytes) and not row.strip():
        counts.empty_lines += 1
        return None
    counts.records += 1
    try:
        return job.check_record(parse_row(row), file)
    except RecordError as error:
        _reject(job, counts, position, row, error)
        return None
