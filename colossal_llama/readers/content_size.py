"""Size of the uncompressed content of input files, estimated without reading all of it."""

import io
import lzma
import zlib
from collections.abc import Sequence
from typing import cast

from colossal_llama.readers.compression import READ_BYTES, uncompressed
from colossal_llama.readers.damage import DamagedFileError
from colossal_llama.readers.listing import InputFile

_PROBED_BLOCKS = 8  # decompressors read up to 128 KiB ahead, a twentieth of the compressed size of 8 MiB


def total_bytes(files: Sequence[InputFile]) -> int:
    """Returns the uncompressed size of the files, with all that is in them, not texts alone.

    A compressed file's is estimated from the compression ratio of its first 8 MiB, a Parquet file's
    from its description. One that is damaged counts as it is on the disk: who reads it names it.
    """
    return sum(map(content_bytes, files))


def content_bytes(file: InputFile) -> int:
    """Returns the uncompressed size of a file, see `total_bytes`."""
    try:
        if file.format.compression:
            return _probed_bytes(file)
        return _parquet_bytes(file) if file.format.kind == ".parquet" else file.size_bytes
    except (DamagedFileError, EOFError, OSError, lzma.LZMAError, zlib.error):
        return file.size_bytes


def _probed_bytes(file: InputFile) -> int:
    with file.path.open("rb", buffering=READ_BYTES) as opened:
        stream, size_bytes = uncompressed(cast(io.BufferedReader, opened), file.format), 0
        for _ in range(_PROBED_BLOCKS):
            block = stream.read(1 << 20)
            size_bytes += len(block)
            if len(block) < 1 << 20:
                return size_bytes
        return round(size_bytes * file.size_bytes / max(1, opened.tell()))


def _parquet_bytes(file: InputFile) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        with file.path.open("rb") as opened:
            metadata = parquet.read_metadata(opened)
    except pyarrow.ArrowException as error:
        raise DamagedFileError(str(error)) from error
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
