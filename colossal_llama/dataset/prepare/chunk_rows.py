"""Reads the rows of a chunk as records, and counts what is empty, bad or not read."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.readers.file_range import ReadingProgress
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import BadRow, RecordError, Row, parse_row
from colossal_llama.readers.rows import DamagedFileError, read_rows
from colossal_llama.readers.unread_keys import UnreadMembers

_OBJECT_BYTES = 500  # of a bad record in memory, besides its text
_REPORT_INTERVAL_S = 0.5
Record = TypeVar("Record")


class ChunkProgress(NamedTuple):
    """Progress within a chunk.

    Attributes:
        chunk_index: number of the chunk.
        size_bytes: of what is read of it, as its files' sizes count.
        documents: read so far.
        units: of these: tokens, characters.
    """

    chunk_index: int
    size_bytes: int
    documents: int
    units: int


class RowPosition(NamedTuple):
    """A row's place in a chunk: the index of its range, and its number in the range, from 0."""

    piece: int
    row: int


@dataclass
class ChunkRows:
    """Rows of a chunk, counts of what has been read, and the bad records not written yet.

    Attributes:
        chunk: to read.
        max_line_bytes: longest line that is read; a longer one is a bad record.
        shown_bytes: how much of a bad record is kept; None keeps all of it.
        on_reject: called for every bad record.
        records: rows read, bad ones included, without empty lines.
        empty_lines: passed over.
        pieces: number of rows and SHA-256 of each range that has been read.
        rejected_bytes: memory of the bad records not taken yet.
        reasons: bad records by reason.
        unread: members of archives that are not read.
    """

    chunk: Chunk
    max_line_bytes: int
    shown_bytes: int | None = None
    on_reject: Callable[[], object] = lambda: None
    records: int = 0
    empty_lines: int = 0
    pieces: list[tuple[int, str]] = field(default_factory=list)
    rejected_bytes: int = 0
    reasons: Counter = field(default_factory=Counter)
    unread: UnreadMembers = field(default_factory=UnreadMembers)
    _rejected: list[dict] = field(default_factory=list)
    _reading: ReadingProgress = field(default_factory=ReadingProgress)
    _reported_s: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[tuple[RowPosition, Row]]:
        """Rows of all ranges, of each up to its record limit.

        Damage to a file becomes a bad record after its last row.
        """
        for index, piece in enumerate(self.chunk.pieces):
            digest, rows = hashlib.sha256(), 0
            last = None if piece.record_limit is None else self.records + piece.record_limit
            on_unread = partial(self.unread.add, piece.range.file.name)
            found = read_rows(piece.range, self.max_line_bytes, digest.update, self._reading, on_unread)
            found = iter(()) if self.records == last else found
            try:
                for number, row in found:
                    rows = number + 1
                    yield RowPosition(index, number), row
                    if self.records == last:
                        break
            except DamagedFileError as error:
                self.records += 1
                self.reject(RowPosition(index, rows), b"", RecordError(error.reason, str(error)))
            self.pieces.append((rows, digest.hexdigest()))

    def file_of(self, position: RowPosition) -> InputFile:
        """The file that a row stands in."""
        return self.chunk.pieces[position.piece].range.file

    def checked(self, position: RowPosition, row: Row, check: Callable[[dict, InputFile], Record]) -> Record | None:
        """Checks a row as a record of its file; None for an empty or bad row, which is counted."""
        if isinstance(row, bytes) and not row.strip():
            self.empty_lines += 1
            return None
        self.records += 1
        try:
            return check(parse_row(row), self.file_of(position))
        except RecordError as error:
            self.reject(position, row, error)
            return None

    def reject(self, position: RowPosition, row: Row, error: RecordError) -> None:
        """Counts and keeps a bad record."""
        content = row.beginning if isinstance(row, LongLine | BadRow) else row
        shown = slice(self.shown_bytes)
        text = (
            content[shown].decode("utf-8", "backslashreplace") if isinstance(content, bytes) else repr(content)[shown]
        )
        self.reasons[error.reason] += 1
        self.rejected_bytes += len(text) + _OBJECT_BYTES
        self._rejected.append({**position._asdict(), "reason": error.reason, "message": str(error), "record": text})
        self.on_reject()

    @property
    def num_rejected(self) -> int:
        """Number of the bad records that have not been taken yet."""
        return len(self._rejected)

    def take_rejected(self) -> list[dict]:
        """The bad records so far, in their order: a template refuses after later checks."""
        rejected = sorted(self._rejected, key=lambda record: (record["piece"], record["row"]))
        self._rejected, self.rejected_bytes = [], 0
        return rejected

    def is_report_due(self) -> bool:
        """True once in a while, for a chunk that takes long."""
        if (now_s := time.monotonic()) <= self._reported_s + _REPORT_INTERVAL_S:
            return False
        self._reported_s = now_s
        return True

    def progress(self, documents: int, units: int) -> ChunkProgress:
        """Progress of the reading, with what the caller has made of it."""
        *read, current = self.chunk.pieces[: len(self.pieces) + 1]
        share = min(1.0, self._reading.share())
        size_bytes = sum(piece.size_bytes for piece in read) + int(share * current.size_bytes)
        return ChunkProgress(self.chunk.index, size_bytes, documents, units)

    def facts(self) -> dict:
        """Counts of what has been read, for the chunk's record."""
        return {
            "index": self.chunk.index,
            "rows": sum(rows for rows, _ in self.pieces),
            "records": self.records,
            "empty_lines": self.empty_lines,
            "rejected_records": dict(self.reasons),
            "pieces": self.pieces,
            **({"unread_members": unread} if (unread := self.unread.record()) else {}),
        }
