"""Results that processes append to files of their own, until all are there and become one file.

    OUT/MODEL/NAME.partial-RANK.jsonl

A killed process leaves whole lines and at most one that is cut off, which is no result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

Append = Callable[[Mapping[str, Any]], None]


class PartialResults:
    """The files to which processes append the results of one kind."""

    def __init__(self, directory: Path, name: str):
        """Prepares them; nothing is read or written.

        Args:
            directory: OUT/MODEL.
            name: of the kind.
        """
        self._directory, self._name = directory, name

    def paths(self) -> list[Path]:
        """The files that are there, of however many processes."""
        return sorted(path for path in self._directory.glob(f"{self._name}.partial-*.jsonl") if path.is_file())

    @contextmanager
    def appending(self, rank: int) -> Iterator[Append]:
        """Yields a function that appends a result to the file of a process, as a whole line.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        path = self._directory / f"{self._name}.partial-{rank}.jsonl"
        with path.open("ab", buffering=0) as file:
            if file.tell():
                file.write(b"\n")  # a line that was cut off stays apart

            def append(result: Mapping[str, Any]) -> None:
                """Appends a result as one line."""
                line = orjson.dumps(result) + b"\n"
                try:
                    written = file.write(line)
                    if written < len(line):  # a disk that is full takes a part, which is no result when it is read
                        file.write(line[written:])
                except OSError as error:
                    error.filename = str(path)
                    raise

            yield append

    def remove(self) -> None:
        """Removes the files."""
        for path in self.paths():
            path.unlink()


def read_results(paths: Iterable[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the lines of files that are JSON objects, each with its content."""
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                try:
                    result = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(result, dict):
                    yield line.rstrip(b"\n"), result
