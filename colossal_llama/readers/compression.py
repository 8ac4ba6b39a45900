"""Streams of the uncompressed bytes of files; what is not compressed as its name says is named."""

import bz2
import gzip
import io
import lzma
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.formats import BINARY_KINDS, Format

READ_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 16  # few, as the estimate of a file's content goes by what has been read
_BEGINNINGS = {
    ".gz": (b"\x1f\x8b",),
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + number,)) + b"\x2a\x4d\x18" for number in range(16))),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
}
"""How files of a compression begin; a `.zst` file may begin with a frame to be skipped."""
_OTHER_CONTENT = {
    **{beginning: f"compressed ({ending})" for ending, all in _BEGINNINGS.items() for beginning in all},
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF file",
}
_ENCODINGS = {  # UTF-32 first, as its mark begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def uncompressed(file: io.BufferedReader, format: Format) -> io.BufferedReader:
    """Returns a stream of the uncompressed bytes of a file.

    Args:
        file: the compressed bytes, at their beginning.
        format: of the file.

    Raises:
        DamagedFileError: the file is empty and should be compressed.
        UnusableFileError: its beginning is not what its name says.
    """
    ending = format.compression
    if ending:
        beginning = file.peek(8)[:8]
        if not beginning:
            raise DamagedFileError(f"it is empty, and a {ending} file never is")
        if not beginning.startswith(_BEGINNINGS[ending]):
            raise UnusableFileError(
                f"it is not compressed as its name says ({ending}), but begins with {beginning!r}: rename it, or "
                "compress it again"
            )
    stream = _opened(file, ending)
    if format.kind not in BINARY_KINDS:
        _refuse_other_content(stream.peek(8)[:8])
    return stream


def _opened(file: io.BufferedReader, ending: str) -> io.BufferedReader:
    if ending == ".zst":
        import pyarrow

        # Reads all frames in blocks, and raises when the last one is truncated.
        return io.BufferedReader(cast(Any, pyarrow.CompressedInputStream(file, "zstd")), READ_BYTES)
    if ending == ".gz":
        return cast(Any, gzip.open(file))
    if ending:
        decompressor = bz2.BZ2Decompressor if ending == ".bz2" else lzma.LZMADecompressor
        return io.BufferedReader(_Streams(file, decompressor), READ_BYTES)
    return file


class _Streams(io.RawIOBase):
    """The content of .bz2 or .xz streams that follow each other to the end of a file.

    Python's own readers take a damaged stream after the first for the end of the file. Zeros after
    a stream are padding.
    """

    def __init__(self, file: io.BufferedReader, make_decompressor: Callable[[], Any]):
        self._file, self._make_decompressor = file, make_decompressor
        self._stream = make_decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads into a buffer; returns the number of bytes, 0 at the end of the last stream.

        Raises:
            EOFError: the file ends inside a stream.
        """
        while True:
            if self._stream.eof:
                begin = self._next_begin()
                if not begin:
                    return 0
                self._stream = self._make_decompressor()
            else:
                begin = self._file.read1(_COMPRESSED_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not begin:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if content := self._stream.decompress(begin, len(buffer)):
                buffer[: len(content)] = content
                return len(content)

    def _next_begin(self) -> bytes:
        """First bytes of the next stream; empty at the end of the file."""
        begin = self._stream.unused_data.lstrip(b"\0")
        while not begin and (block := self._file.read1(_COMPRESSED_BYTES)):
            begin = block.lstrip(b"\0")
        return begin


def _refuse_other_content(beginning: bytes) -> None:
    """Refuses text that is none, or in another encoding than UTF-8.

    Raises:
        UnusableFileError: it is.
    """
    for mark, encoding in _ENCODINGS.items():
        if beginning.startswith(mark):
            raise UnusableFileError(_encoding_problem(encoding))
    for mark, content in _OTHER_CONTENT.items():
        if beginning.startswith(mark):
            raise UnusableFileError(f"it is {content}, which its name does not say: rename it, or unpack it")
    if len(beginning) > 3:
        for zeros, encoding in ((beginning[::2], "UTF-16BE"), (beginning[1::2], "UTF-16LE")):
            if not any(zeros) and any(beginning):
                raise UnusableFileError(_encoding_problem(encoding))


def _encoding_problem(encoding: str) -> str:
    return f"it is in {encoding}, and only UTF-8 is read: convert it (iconv -f {encoding} -t UTF-8)"


def blocks_of(stream: io.BufferedReader, on_bytes: Callable[[bytes], object]) -> Iterator[bytes]:
    """Yields the rest of a stream in blocks, each of which is observed first."""
    while block := stream.read1(READ_BYTES):
        on_bytes(block)
        yield block


def with_seek(stream: io.BufferedReader, on_bytes: Callable[[bytes], object]) -> BinaryIO:
    """Copies a stream into a temporary file without a name, which can be read from any place."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        for block in blocks_of(stream, on_bytes):
            copy.write(block)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return cast(BinaryIO, copy)
