"""Reads one chunk of the input, applies what one document decides, and notes its signatures.

The unit of work of a worker. Documents are judged in batches: short ones would cost as much as
long ones otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from colossal_llama.cleaning.candidate_store import PLACE, chunk_base
from colossal_llama.cleaning.candidates import Candidate, conversation_candidate, document_candidate
from colossal_llama.cleaning.chunk_files import UnitFiles
from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.signatures import BlockNumbers, Signatures
from colossal_llama.cleaning.stages import Stages, StageSettings
from colossal_llama.dataset.prepare.chunk_rows import ChunkRows
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.worker_pool import ProgressReports
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.readers.fields import CONVERSATION, DOCUMENT, OTHER_KIND, FieldOptions, refuse_document
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 20_000  # of empty or short texts
_OTHER_PRESET = {
    CONVERSATION: "--preset conversations cleans them",
    DOCUMENT: "another --preset than conversations cleans them",
}
"""What to do with records of the other kind."""
_FILES = ("candidates", "places", "dropped", "hits", "rejected")


@dataclass
class FirstPass:
    """Settings of the first pass.

    Attributes:
        work_dir: directory of the intermediates.
        max_line_bytes: longest line that is read.
        fields: which fields of a record are read.
        roles: of the messages, where records are conversations; else None.
        settings: of the stages, which each worker opens once.
        blocks: numbers of the blocks of all chunks.
        reports: take the progress of chunks that take long.
    """

    work_dir: Path
    max_line_bytes: int
    fields: FieldOptions
    roles: RoleNames | None
    settings: StageSettings
    blocks: BlockNumbers
    reports: ProgressReports = field(default_factory=ProgressReports)

    @cached_property
    def stages(self) -> Stages:
        """The stages of this process."""
        return Stages(self.settings)

    def check(self, record: dict, file: InputFile) -> Candidate:
        """Checks a JSON object of a file as a record."""
        try:
            if self.roles is None:
                return document_candidate(record, file, self.fields)
            return self._conversation(record, file, self.roles)
        except RecordError as error:
            if error.reason not in OTHER_KIND:
                raise
            advice = str(error).replace(OTHER_KIND[error.reason], _OTHER_PRESET[error.reason])
            raise RecordError(error.reason, advice) from None

    def _conversation(self, record: dict, file: InputFile, roles: RoleNames) -> Candidate:
        try:
            return conversation_candidate(record, file, self.fields, roles)
        except RecordError:
            refuse_document(record)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "stages"}


def clean_chunk(job: FirstPass, chunk: Chunk) -> dict:
    """Runs the first pass over a chunk.

    Returns:
        The facts of the chunk: numbers of rows, records, empty lines, bad records by reason,
            documents and characters; number of rows and SHA-256 of each range; number of candidates
            and first byte of each block; checksums of the signatures.
    """
    rows = ChunkRows(chunk, job.max_line_bytes)
    files = UnitFiles(chunk_base(job.work_dir, chunk.index), _FILES)
    signatures = Signatures(job.work_dir, job.settings.rules, job.blocks.of_chunk(chunk.index))
    output = _ChunkOutput(files)
    try:
        for batch in _batches(job, rows, output):
            kept, dropped = job.stages.apply(batch)
            signatures.add([candidate.document for candidate in kept], output.candidates_bytes)
            output.add(kept, dropped)
            _write_rejected(rows, files)
        _write_rejected(rows, files)
        counts = {"documents": output.documents, "characters": output.characters, **signatures.finish()}
        return files.finish({**rows.facts(), **counts, "statistics": output.statistics})
    finally:
        files.discard()


@dataclass
class _ChunkOutput:
    """Writes the documents of a chunk, and counts them."""

    files: UnitFiles
    documents: int = 0
    characters: int = 0
    candidates_bytes: int = 0
    statistics: dict[str, dict[str, int]] = field(default_factory=dict)
    """By category: notes of records, for instance which keys are not read."""

    def add(self, kept: list[Candidate], dropped: list[tuple[Candidate, Verdict]]) -> None:
        """Writes the documents of a batch, and what was found in them."""
        lines = b"".join(candidate.as_json() for candidate in kept)
        self.files.write("candidates", lines)
        places = np.array([candidate.place for candidate in kept], PLACE).reshape(-1, 2)
        self.files.write("places", places.tobytes())
        self.files.write("dropped", b"".join(map(_dropped_line, dropped)))
        for candidate in sorted([*kept, *(candidate for candidate, _ in dropped)], key=lambda one: one.place):
            for hit in candidate.hits:
                line = orjson.dumps({"place": tuple(candidate.place), **hit}, option=orjson.OPT_APPEND_NEWLINE)
                self.files.write("hits", line)
        self.candidates_bytes += len(lines)

    def note(self, candidate: Candidate) -> None:
        """Counts a document as it came in, and the notes about its record."""
        self.documents += 1
        self.characters += candidate.document.length_characters
        if candidate.notes:
            counts = self.statistics.setdefault(candidate.category, {})
            for name in candidate.notes:
                counts[name] = counts.get(name, 0) + 1


def _batches(job: FirstPass, rows: ChunkRows, output: _ChunkOutput) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    characters = 0
    for position, row in rows:
        if rows.is_report_due():
            job.reports.report(rows.progress(output.documents, output.characters))
        candidate = rows.checked(position, row, job.check)
        if candidate is not None:
            candidate.place = position
            candidate.document.position = position.row + 1
            output.note(candidate)
            batch.append(candidate)
            characters += candidate.document.length_characters
        if characters + rows.rejected_bytes >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_rejected(rows: ChunkRows, files: UnitFiles) -> None:
    for record in rows.take_rejected():
        files.write("rejected", orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _dropped_line(dropped: tuple[Candidate, Verdict]) -> bytes:
    """A dropped document as a line; the second pass knows the number of its row in the file."""
    candidate, verdict = dropped
    content = {
        "place": tuple(candidate.place),
        "verdict": (verdict.reason, verdict.figure, verdict.limit),
        "file": candidate.document.file,
        "characters": candidate.original_characters,
        "record": candidate.original_record(),
    }
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
