"""Members of tar archives as streams, one after another, and the samples of WebDataset in them."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any, cast

from colossal_llama.readers.compression import READ_BYTES
from colossal_llama.readers.damage import DamagedFileError, UnusableFileError
from colossal_llama.readers.formats import TEXT_KINDS, format_of
from colossal_llama.readers.record import RecordError, Row, parse_row


@dataclass(frozen=True)
class MemberRow:
    """A row of a member.

    Attributes:
        name: of the member.
        unit: what numbers of its rows count: "line", "row", "record", or nothing.
        number: of the row in the member, from 0.
        row: the row.
    """

    name: str
    unit: str
    number: int
    row: Row


class _CheckedMember(tarfile.TarInfo):
    """A member; an archive that ends without its mark, or has no member where one begins, is named.

    Python's tarfile takes both for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        """Reads the header of the next member.

        Raises:
            UnusableFileError: the file is no archive.
            DamagedFileError: there is neither a member nor the mark of the end.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            place = f"at byte {archive.offset:,} of the archive"  # type: ignore[attr-defined]
            if not archive.offset:  # type: ignore[attr-defined]
                raise UnusableFileError(f"it is no tar archive ({error})") from error
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
) -> Iterator[tuple[str, io.BufferedReader | None]]:
    """Yields the files of an archive: name and stream, which is to be read before the next.

    A link has no stream. Hidden files are left out: macOS adds one (`._NAME`) to each.

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
            if PurePosixPath(member.name).name.startswith("."):
                continue
            if member.issym() or member.islnk():
                yield member.name, None
            elif member.isfile():
                yield member.name, cast(io.BufferedReader, archive.extractfile(member))
    while observed.read(READ_BYTES):
        pass


def with_samples(rows: Iterable[MemberRow]) -> Iterator[MemberRow]:
    """Joins a text and the JSON object about it into one row, as WebDataset means them.

        0001.txt, 0001.json  →  {"lang": "en", "text": …}

    Args:
        rows: of the members, in order.
    """
    for _, group in groupby(rows, key=lambda row: _sample_key(row.name)):
        first: list[MemberRow] = []
        try:
            first.extend(islice(group, 3))
        except DamagedFileError:
            yield from first
            raise
        sample = _sample(*first) if len(first) == 2 else None
        yield from first if sample is None else [sample]
        yield from group  # noqa: B031 - the rest of it


def _sample_key(name: str) -> str:
    """WebDataset's: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sample(one: MemberRow, other: MemberRow) -> MemberRow | None:
    """The sample that two members are; None where they are none, or have different texts."""
    kinds = [found.kind if (found := format_of(row.name)) else "" for row in (one, other)]
    if ".json" not in kinds or not TEXT_KINDS & set(kinds):
        return None
    text, about = (one, other) if kinds[1] == ".json" else (other, one)
    try:
        record = parse_row(about.row)
    except RecordError:
        return None
    if not isinstance(text.row, dict) or record.get("text", text.row["text"]) != text.row["text"]:
        return None
    return replace(text, row={**record, **text.row})
