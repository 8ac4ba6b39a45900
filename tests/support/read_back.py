"""Reads files as the scripts do, and gathers what is read and what is refused."""

from pathlib import Path

from colossal_llama.readers.listing import find_input_files
from colossal_llama.readers.record import RecordError, parse_row
from colossal_llama.readers.rows import DamagedFileError, FileRange, read_rows, row_places

MAX_BYTES = 1 << 20


def written(directory: Path, name: str, content: bytes) -> Path:
    """A file with this content."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_back(path: Path, max_bytes: int = MAX_BYTES) -> tuple[list[dict], list[str]]:
    """Records of a file or directory, and what is refused: `place: reason: message`."""
    records: list[dict] = []
    refused: list[str] = []

    def refuse(part: FileRange, number: int, error: RecordError | DamagedFileError) -> None:
        (place,) = row_places(part, [number])
        refused.append(f"{place}: {error.reason}: {error}".replace(f"{part.file.path.parent}/", ""))

    for file in find_input_files([path])[0]:
        part, last = FileRange(file), -1
        try:
            for number, row in read_rows(part, max_bytes):
                assert number > last
                last = number
                if not isinstance(row, bytes) or row.strip():
                    try:
                        records.append(parse_row(row))
                    except RecordError as error:
                        refuse(part, number, error)
        except DamagedFileError as error:
            refuse(part, last + 1, error)
    return records, refused
