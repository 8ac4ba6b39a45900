"""Rows of Parquet files, few of them in memory at once."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from colossal_llama.readers.damage import DamagedFileError
from colossal_llama.readers.line_reader import LongLine

BATCH_ROWS = 32  # in memory at once: a dictionary of 1 MB on the disk may be a cell of every row


def parquet_rows(file: BinaryIO, max_row_bytes: int) -> Iterator[LongLine | dict]:
    """Reads the rows of a Parquet file.

    Args:
        file: opened, with `seek`.
        max_row_bytes: largest row that is read.

    Raises:
        DamagedFileError: the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS):
            yield from _bounded_rows(batch, max_row_bytes)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFileError(str(error)) from error


def _bounded_rows(batch: Any, max_bytes: int) -> Iterator[LongLine | dict]:
    """Rows of a record batch, one at a time where one of them may be too long."""
    if batch.nbytes <= max_bytes:
        yield from batch.to_pylist()
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        yield LongLine(b"", row.nbytes, max_bytes) if row.nbytes > max_bytes else row.to_pylist()[0]
