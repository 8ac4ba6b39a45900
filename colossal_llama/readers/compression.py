"""Opens files as streams of their uncompressed bytes."""

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

from colossal_llama.readers.formats import Format

READ_BYTES = 1 << 20


def open_stream(path: Path, format: Format) -> BinaryIO:
    """Opens a file of a format for reading from its beginning, uncompressed."""
    if format.compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    file = path.open("rb", buffering=READ_BYTES)
    if format.compression == ".zst":
        import pyarrow

        # Reads all frames in blocks, and raises when the last one is truncated.
        stream = pyarrow.CompressedInputStream(file, "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, READ_BYTES))
    return file
