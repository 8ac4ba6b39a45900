"""Rows of Parquet and Arrow files, few of them in memory at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.file_range import ReadingProgress
from colossal_llama.readers.line_reader import LongLine
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import Row

BATCH_ROWS = 32  # in memory at once: a dictionary of 1 MB on the disk may be a cell of every row
BUFFER_BYTES = 1 << 20  # of each column that is read
_MARK = b"\xff\xff\xff\xff"
"""Begins each part of Arrow's streaming format since version 0.15; an empty part ends it."""


Groups = tuple[int, int] | None
"""First of the row groups or record batches that are read, and the one after the last; or all."""


def group_weights(file: InputFile) -> list[int]:
    """Sizes, to be compared, of the row groups or record batches, which can be read by themselves.

    There are none where a table is read as a whole. A damaged one is, so that it is said once what
    is wrong with it. So is an Arrow stream with dictionaries, which may change behind each batch.
    """
    import pyarrow

    if not isinstance(file.path, Path) or file.format.compression:
        return []
    with suppress(pyarrow.ArrowException, DamagedFileError, OSError):
        return _parquet_weights(file.path) if file.format.kind == ".parquet" else _arrow_weights(file.path)
    return []


def _parquet_weights(path: Path) -> list[int]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as table:
        _refuse_doubled_columns(table.schema_arrow)
        numbers = range(table.metadata.num_row_groups)
        return [table.metadata.row_group(number).total_byte_size for number in numbers]


def _arrow_weights(path: Path) -> list[int]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        if _beginning(source) == b"ARROW1":
            with pyarrow.ipc.open_file(source) as reader:
                _refuse_doubled_columns(reader.schema)
                return [1] * reader.num_record_batches
        schema, *messages = pyarrow.ipc.MessageReader.open_stream(source)
        _refuse_doubled_columns(pyarrow.ipc.read_schema(schema))
        _check_end(source)
        has_batches_only = all(message.type == "record batch" for message in messages)
        return [message.body.size for message in messages] if has_batches_only else []


def rows_before_group(file: InputFile, number: int) -> int:
    """Number of rows in the row groups or record batches before one."""
    import pyarrow
    from pyarrow import parquet

    if file.format.kind == ".parquet":
        metadata = parquet.read_metadata(file.path)
        return sum(metadata.row_group(earlier).num_rows for earlier in range(number))
    with pyarrow.memory_map(str(file.path)) as source:
        return sum(batch.num_rows for batch, _, _ in _arrow_batches(source, (0, number)))


def parquet_rows(
    file: BinaryIO, max_row_bytes: int, progress: ReadingProgress | None = None, groups: Groups = None
) -> Iterator[Row]:
    """Reads the rows of a Parquet file.

    Args:
        file: opened, with `seek`.
        max_row_bytes: largest row that is read.
        progress: told how many of the rows are read.
        groups: row groups that are read.

    Raises:
        DamagedFileError: the file is damaged.
        UnusableFileError: two columns have one name.
    """
    import pyarrow
    from pyarrow import parquet

    progress = progress or ReadingProgress()
    if _beginning(file)[:4] not in (b"PAR1", b"PARE"):
        raise UnusableFileError(f"it does not begin as a Parquet file does, but with {_beginning(file)!r}")
    try:
        # Buffered: else a whole column of a row group is in memory, which may be all of the file.
        table = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        _refuse_doubled_columns(table.schema_arrow)
        numbers = range(*groups) if groups else range(table.metadata.num_row_groups)
        count, total = 0, sum(table.metadata.row_group(number).num_rows for number in numbers)
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=numbers):
            progress.set(count / max(1, total))
            yield from _bounded_rows(batch, max_row_bytes)
            count += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFileError(str(error)) from error


def arrow_rows(
    file: Path | BinaryIO, max_row_bytes: int, progress: ReadingProgress | None = None, groups: Groups = None
) -> Iterator[Row]:
    """Reads the rows of an Arrow file, of either of its two formats.

    Args:
        file: a path, which is mapped into memory, or an opened file with `seek`.
        max_row_bytes: largest row that is read.
        progress: told how much of the file, or of its record batches, is read.
        groups: record batches that are read.

    Raises:
        DamagedFileError: the file is damaged, or has no end.
        UnusableFileError: two columns have one name, or it is no Arrow file.
    """
    import pyarrow

    progress = progress or ReadingProgress()
    try:
        with pyarrow.memory_map(str(file)) if isinstance(file, Path) else pyarrow.PythonFile(file, "r") as source:
            for batch, before, after in _arrow_batches(source, groups):
                batch.validate(full=True)  # wrong offsets would end the process
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    progress.set(before + (after - before) * start / batch.num_rows)
                    yield from _bounded_rows(batch.slice(start, BATCH_ROWS), max_row_bytes)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFileError(str(error)) from error


def _arrow_batches(source: Any, groups: Groups) -> Iterator[tuple[Any, float, float]]:
    """Record batches, with the shares of all that are read before and after each."""
    import pyarrow

    beginning = _beginning(source)
    if beginning == b"ARROW1":
        with pyarrow.ipc.open_file(source) as reader:
            _refuse_doubled_columns(reader.schema)
            first, end = groups or (0, reader.num_record_batches)
            for number in range(first, end):
                yield reader.get_batch(number), (number - first) / (end - first), (number + 1 - first) / (end - first)
        return
    if beginning[:4] == b"FEA1":
        raise UnusableFileError("it is in version 1 of the Feather format: write it again with a pyarrow of today")
    if b"\0" not in beginning[:4] and not beginning.startswith(_MARK):  # the first part's length, before 0.15
        raise UnusableFileError(f"it does not begin as an Arrow file does, but with {beginning!r}")
    if groups:
        yield from _batches_of_stream(source, *groups)
        return
    with pyarrow.ipc.open_stream(source) as reader:
        _refuse_doubled_columns(reader.schema)
        before = 0.0
        for batch in reader:
            after = source.tell() / source.size()
            yield batch, before, after
            before = after
    _check_end(source)


def _batches_of_stream(source: Any, first: int, end: int) -> Iterator[tuple[Any, float, float]]:
    """Some record batches of a stream without dictionaries; those before are not decoded."""
    import pyarrow

    messages = iter(pyarrow.ipc.MessageReader.open_stream(source))
    schema, count = pyarrow.ipc.read_schema(next(messages)), end - first
    for number, message in enumerate(islice(messages, first, end)):
        yield pyarrow.ipc.read_record_batch(message, schema), number / count, (number + 1) / count


def _check_end(source: Any) -> None:
    """Refuses a stream that has been read, and has no mark of the end."""
    end = _MARK + bytes(4) if _beginning(source).startswith(_MARK) else bytes(4)
    source.seek(max(0, source.size() - len(end)))
    if source.read(len(end)) != end:
        raise DamagedFileError("it ends without the mark of the end: it was not written or copied to its end")


def _beginning(file: Any) -> bytes:
    """First bytes of a file that has some; it is at its beginning afterwards."""
    file.seek(0)
    beginning: bytes = file.read(6)
    file.seek(0)
    if not beginning:
        raise DamagedFileError("it is empty")
    return beginning


def _refuse_doubled_columns(schema: Any) -> None:
    if doubled := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise UnusableFileError(f"two columns are named {doubled[0]!r}: rename or remove one of them")


def _bounded_rows(batch: Any, max_bytes: int) -> Iterator[LongLine | dict]:
    """Rows of a record batch, one at a time where one of them may be too long."""
    binary = [field.name for field in batch.schema if _is_binary(field.type)]
    if batch.nbytes <= max_bytes:
        for row in batch.to_pylist():
            yield _with_text(row, binary) if binary else row
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > max_bytes:
            yield LongLine(b"", row.nbytes, max_bytes, "row")
        else:
            yield _with_text(row.to_pylist()[0], binary)


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _with_text(row: dict, binary: list[str]) -> dict:
    """Decodes binary columns that are UTF-8: some programs write texts so."""
    for name in binary:
        if isinstance(row[name], bytes):
            try:
                row[name] = row[name].decode("utf-8")
            except UnicodeDecodeError:
                continue  # refused, where it is a field that is read
    return row
