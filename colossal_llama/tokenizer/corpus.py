"""Streams the documents of a corpus, or a random sample of them.

A corpus is files of any format of `readers`: documents, conversations, and plain texts.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from colossal_llama.readers.column_messages import ColumnMessages
from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.directory_listing import unread_message
from colossal_llama.readers.fields import FieldOptions, PlainText, plain_text_of
from colossal_llama.readers.formats import TEXT_KINDS
from colossal_llama.readers.input_doubts import doubts_about
from colossal_llama.readers.input_paths import outermost
from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB, LongLine
from colossal_llama.readers.listing import InputFile, find_input_files
from colossal_llama.readers.record import RecordError, Row, parse_row
from colossal_llama.readers.rows import FileRange, read_rows, read_text_blocks, row_places
from colossal_llama.readers.unread_keys import UnreadMembers, unread_members_message
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

TEXT_BLOCK_BYTES = 64 << 10
"""A plain text file of any size is read as documents of about this length."""
_LONGEST_ROW_BYTES = MAX_LINE_MB * BYTES_PER_MB


@dataclass(frozen=True)
class CorpusText:
    """A document or a block of one.

    Attributes:
        text: the text.
        category: the record's own, else the name of the file's directory (`fields.FieldOptions`).
        location: `file:number` of the document, which its blocks share.
    """

    text: str
    category: str
    location: str


def find_files(
    paths: Sequence[Path | str], option: str = "--data_input_dirs", excluded: Path | None = None
) -> list[InputFile]:
    """Lists the files, and all that are read below the directories, sorted by path; each once.

    Logs which other files there are.

    Args:
        paths: files and directories.
        option: under which they were given, for messages.
        excluded: directory whose files are not read: that of the output.

    Raises:
        UserError: a directory holds no such file, or one cannot be reached.
    """
    files, unread = find_input_files(outermost(paths), excluded, option)
    for message in filter(None, (unread_message(unread), doubts_about(files))):
        log_rank_zero(message)
    return sorted(files, key=lambda file: file.path.parts)


def read_texts(
    files: Sequence[InputFile],
    share: float = 1.0,
    seed: int = 0,
    block_characters: int | None = None,
    fields: FieldOptions | None = None,
    text_block_bytes: int | None = TEXT_BLOCK_BYTES,
    on_problem: Callable[[UserError], None] | None = None,
) -> Iterator[CorpusText]:
    """Streams the documents, or a random sample of them.

    A record's text is that of the document (source and target) or of the conversation (its messages
    line by line). One record at a time is in memory.

    Args:
        files: from `find_files`.
        share: the probability with which a document is sampled.
        seed: of the sample, which is the same for the same files.
        block_characters: longer documents are split into blocks of at most this length, which are
            sampled one by one. The sample then has the expected size however few and long the
            documents are. None: documents stay whole.
        fields: which columns of a record are read; None as without options.
        text_block_bytes: length of the documents that a plain text file is read as; None: the file
            is one.
        on_problem: receives what would be raised of a record, an empty text included, or of a file;
            what can be read of the others is yielded.

    Raises:
        UserError: names file and line of a record that has no text, is not JSON or is too long, or
            a file that is damaged.
    """
    fields = fields or FieldOptions()
    generator, messages = random.Random(seed), ColumnMessages()
    for file in files:
        notes: dict[str, Counter[str]] = {}
        for number, row in _rows(file, text_block_bytes, on_problem):
            size = _size(row)
            longest = block_characters or size
            is_split = share < 1.0 and size > longest
            if not size or (share < 1.0 and not is_split and generator.random() >= share):
                continue
            document = _document_or_problem(file, number, row, fields, on_problem)
            if document is None:
                continue
            notes.setdefault(document.category, Counter()).update(document.chosen)
            for text in split_into_blocks(document.text, longest) if is_split else [document.text]:
                if text and (not is_split or generator.random() < share):
                    yield CorpusText(text, document.category, f"{file.path}:{number + 1}")
        messages.say(file.name, notes)
    messages.finish()


Problems = Callable[[UserError], None] | None


def _rows(file: InputFile, text_block_bytes: int | None, on_problem: Problems) -> Iterator[tuple[int, Row]]:
    try:
        yield from _rows_to_damage(file, text_block_bytes)
    except UserError as error:
        if on_problem is None:
            raise
        on_problem(error)


def _rows_to_damage(file: InputFile, text_block_bytes: int | None) -> Iterator[tuple[int, Row]]:
    try:
        if text_block_bytes is not None and file.format.kind in TEXT_KINDS:
            yield from read_text_blocks(file, text_block_bytes, _LONGEST_ROW_BYTES)
        else:
            members = UnreadMembers()
            yield from read_rows(FileRange(file), _LONGEST_ROW_BYTES, on_unread=partial(members.add, file.name))
            if message := unread_members_message(members.record()):
                log_rank_zero(message)
    except UnusableFileError as error:
        raise UserError(f"{file.path}: {error}") from error
    except DamagedFileError as error:
        raise UserError(f"{file.path} is damaged ({error.args[0]}): compress or copy it again") from error


def _size(row: Row) -> int:
    """Bytes of a line, else characters of the row's texts, at least those of its text; else 0."""
    if isinstance(row, bytes):
        return len(row) if row.strip() else 0
    if isinstance(row, dict):
        return sum(len(value) for value in row.values() if isinstance(value, str)) or 1
    return 1  # to be refused


def _document_or_problem(
    file: InputFile, number: int, row: Row, fields: FieldOptions, on_problem: Problems
) -> PlainText | None:
    if on_problem is None:
        return _document(file, number, row, fields)
    try:
        document = _document(file, number, row, fields)
        if not document.text:
            raise UserError(f"{_place(file, number)}: the text is empty")
    except UserError as error:
        on_problem(error)
        return None
    return document


def _document(file: InputFile, number: int, row: Row, fields: FieldOptions) -> PlainText:
    if isinstance(row, LongLine):
        raise UserError(f"{_place(file, number)}: {row} Split it")
    try:
        return plain_text_of(parse_row(row), file, fields)
    except RecordError as error:
        raise UserError(f"{_place(file, number)}: {error}") from error


def _place(file: InputFile, number: int) -> str:
    return row_places(FileRange(file), [number])[0]


def split_into_blocks(text: str, max_characters: int) -> Iterator[str]:
    r"""Splits a text into blocks, each of which ends at the last line, else word, that fits.

    >>> list(split_into_blocks("one two\nthree four", 9))
    ['one two\n', 'three ', 'four']
    """
    begin = 0
    while len(text) - begin > max_characters:
        limit = begin + max_characters
        end = text.rfind("\n", begin, limit) + 1 or text.rfind(" ", begin, limit) + 1 or limit
        yield text[begin:end]
        begin = end
    yield text[begin:]
