"""Members of tar archives as streams, one after another, without unpacking the archive."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, cast

from colossal_llama.readers.compression import READ_BYTES
from colossal_llama.readers.damage import DamagedFileError


class _CheckedMember(tarfile.TarInfo):
    """A member; an archive that ends without its mark, or has no member where one begins, is named.

    Python's tarfile takes both for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            place = f"at byte {archive.offset:,} of the archive"  # type: ignore[attr-defined]
            reason = "it was not written or copied to its end" if "empty" in str(error) else str(error)
            raise DamagedFileError(f"{place}, where a member or the mark of the end is expected: {reason}") from error


class _Observed(io.RawIOBase):
    """A stream of which everything that is read is observed."""

    def __init__(self, stream: io.BufferedReader, on_bytes: Callable[[bytes], object]):
        self._stream, self._on_bytes = stream, on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read1(len(buffer))
        self._on_bytes(block)
        buffer[: len(block)] = block
        return len(block)


def tar_members(
    stream: io.BufferedReader, on_bytes: Callable[[bytes], object]
) -> Iterator[tuple[str, io.BufferedReader]]:
    """Yields the files of an archive: name and stream, which is to be read before the next.

    Hidden files are left out: macOS adds one (`._NAME`) to each.

    Args:
        stream: the archive, uncompressed, at its beginning.
        on_bytes: called with everything that is read.

    Raises:
        DamagedFileError: the archive has no member or end where one is expected.
        tarfile.TarError: it is damaged otherwise; also raised where the stream of a member is read.
    """
    observed = io.BufferedReader(_Observed(stream, on_bytes), READ_BYTES)
    with tarfile.open(fileobj=observed, mode="r|", tarinfo=_CheckedMember) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them
            if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
                yield member.name, cast(io.BufferedReader, archive.extractfile(member))
    while observed.read(READ_BYTES):
        pass
