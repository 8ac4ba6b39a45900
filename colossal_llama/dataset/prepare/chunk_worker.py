"""Reads, checks and tokenizes one chunk of the input, the unit of work of a worker process."""

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.dataset.prepare.cache import ChunkWriter
from colossal_llama.dataset.prepare.chunk_rows import ChunkRows, RowPosition
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.rejections import SHOWN_BAD_RECORDS, SHOWN_RECORD_CHARACTERS
from colossal_llama.dataset.prepare.worker_pool import ProgressReports
from colossal_llama.dataset.records import Conversation, conversation_of
from colossal_llama.dataset.role_names import KNOWN_ROLES, RoleNames
from colossal_llama.dataset.template_renderer import ChatTemplateLimitError
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.readers.fields import Document, FieldOptions, document_of, refuse_document, with_category
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError, Row
from colossal_llama.readers.rows import row_places
from colossal_llama.utils.errors import UserError

BATCH_BYTES = 4 << 20  # records tokenized at once, with the bad ones among them: a bound on memory


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

    def note_bad_record(self) -> None:
        """Tells all workers that a bad record stops the run, where it does."""
        if self.stop_on_bad_record and self.bad_record_seen is not None:
            self.bad_record_seen.value = 1

    @property
    def checks_only(self) -> bool:
        """True when records are no longer tokenized, since a bad one stops the run."""
        return self.stop_on_bad_record and self.bad_record_seen is not None and bool(self.bad_record_seen.value)


def process_chunk(job: ChunkJob, chunk: Chunk) -> dict:
    """Tokenizes a chunk into files under `job.chunk_dir`.

    Returns:
        The chunk's facts: numbers of rows, records, empty lines, bad records by reason, documents,
            segments and tokens, and statistics by category; number of rows and SHA-256 of each
            range. `finished` is False if a bad record stopped the run; then `rejected` lists the
            first of this chunk's bad records, and no files remain.
    """
    # Where a bad record stops the run, its beginning alone is shown. A character has up to 4 bytes.
    shown_bytes = 4 * SHOWN_RECORD_CHARACTERS if job.stop_on_bad_record else None
    rows = ChunkRows(chunk, job.max_line_bytes, shown_bytes, job.note_bad_record)
    writer = ChunkWriter(job.chunk_dir, chunk.index)
    try:
        _process_rows(job, rows, writer)
        if job.checks_only:
            return {"index": chunk.index, "finished": False, "rejected": rows.take_rejected()}
        return writer.finish({"finished": True, **rows.facts()})
    finally:
        writer.discard()


def _process_rows(job: ChunkJob, rows: ChunkRows, writer: ChunkWriter) -> None:
    batch = _Batch()
    for position, row in rows:
        if rows.is_report_due():
            job.reports.report(rows.progress(writer.documents, writer.tokens))
        record = rows.checked(position, row, job.check_record)
        if job.checks_only:
            if rows.num_rejected > SHOWN_BAD_RECORDS:
                return
            continue
        if record is not None:
            batch.add(record, position, row)
        if batch.size_bytes + rows.rejected_bytes >= BATCH_BYTES:
            _write_batch(job, rows, writer, batch)
            batch = _Batch()
    if not job.checks_only:
        _write_batch(job, rows, writer, batch)


@dataclass
class _Batch:
    """Checked records, with their rows."""

    records: list[Any] = field(default_factory=list)
    rows: list[tuple[RowPosition, Row]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, record: Any, position: RowPosition, row: Row) -> None:
        self.records.append(record)
        self.rows.append((position, row))
        self.size_bytes += len(row) if isinstance(row, bytes) else len(str(row))


def _write_batch(job: ChunkJob, rows: ChunkRows, writer: ChunkWriter, batch: _Batch) -> None:
    """Tokenizes and writes a batch; records that the chat template refuses become bad records.

    Raises:
        UserError: the template exceeds its limits, as it may for every record.
    """
    if batch.records:
        try:
            tokenized = job.tokenizer.tokenize(batch.records)
        except ChatTemplateLimitError as error:
            position = batch.rows[error.conversation][0]
            (place,) = row_places(rows.chunk.pieces[position.piece].range, [position.row])
            raise UserError(f"--chat_template: {place}: {error}") from None
        writer.add(tokenized)
        for number, message in tokenized.refusals.items():
            rows.reject(*batch.rows[number], RecordError("refused_by_chat_template", message))
    if not job.checks_only:
        writer.add_rejected(rows.take_rejected())
