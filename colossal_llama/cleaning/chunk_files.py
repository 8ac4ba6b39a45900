"""Files of a chunk, and of a part, under work/: written piece by piece, complete or not at all.

work/chunks/chunk-00000.candidates   documents that the first pass has kept, a line each
work/chunks/chunk-00000.places       (candidates, 2) int32: range and row of each
work/chunks/chunk-00000.dropped      documents that the first pass has dropped, a line each
work/chunks/chunk-00000.rejected     rows that are no documents
work/chunks/chunk-00000.json         counts and checksums; written last: the chunk is finished

They are not flushed to the disk, as those of a preparation: their checksums tell what a loss of
power has left.
"""

from collections.abc import Sequence
from pathlib import Path

import orjson
import xxhash

from colossal_llama.dataset.prepare.cache import GrowingFile
from colossal_llama.utils.atomic_io import write_bytes
from colossal_llama.utils.checked_json import DamagedJsonError, read_checked, with_checksum
from colossal_llama.utils.checksums import checksum_of

_SHAPE = {"index": int, "files_xxh3": dict}


class UnitFiles:
    """The files of one unit of work, by ending; `finish` completes them."""

    def __init__(self, base: Path, endings: Sequence[str]):
        """Begins the files.

        Args:
            base: their path without an ending: `work/chunks/chunk-00000`.
            endings: of the files.
        """
        base.parent.mkdir(parents=True, exist_ok=True)
        self._base = base
        self._files = {ending: GrowingFile(_with_ending(base, ending), xxhash.xxh3_128()) for ending in endings}

    def write(self, ending: str, data: bytes | memoryview) -> None:
        """Appends bytes to a file."""
        self._files[ending].write(data)

    def finish(self, facts: dict) -> dict:
        """Completes the files, and writes the facts of the unit, with their checksums, last."""
        facts = {**facts, "files_xxh3": {ending: file.finish() for ending, file in self._files.items()}}
        write_bytes(_with_ending(self._base, "json"), orjson.dumps(with_checksum(facts)), durable=False)
        return facts

    def discard(self) -> None:
        """Removes unfinished files."""
        for file in self._files.values():
            file.discard()


def unit_facts(base: Path, index: int) -> dict | None:
    """Facts of a finished unit; None for an unfinished one.

    Raises:
        DamagedJsonError: its record is not what was written.
    """
    path = _with_ending(base, "json")
    try:
        facts = read_checked(path, _SHAPE)
    except FileNotFoundError:
        return None
    if facts["index"] != index:
        raise DamagedJsonError(path, f"is that of number {facts['index']}")
    return facts


def unit_problem(base: Path, index: int) -> str | None:
    """Names what has changed of a finished unit since it was written; None where it is whole."""
    try:
        facts = unit_facts(base, index)
    except DamagedJsonError as error:
        return f"{base.name}.json {error.reason}"
    for ending, checksum in facts["files_xxh3"].items() if facts else ():
        path = _with_ending(base, ending)
        if not path.is_file():
            return f"{path.name} is missing"
        if checksum_of(path).xxh3_128 != checksum:
            return f"{path.name} has changed since it was written"
    return None


def remove_unit(base: Path) -> None:
    """Removes the record of a unit, so that the unit is made anew."""
    _with_ending(base, "json").unlink(missing_ok=True)


def _with_ending(base: Path, ending: str) -> Path:
    return base.with_name(f"{base.name}.{ending}")
