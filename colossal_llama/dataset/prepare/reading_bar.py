"""The progress bar of reading chunks, which moves within chunks that take long, too."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from colossal_llama.dataset.prepare.chunk_rows import ChunkProgress
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.utils.console import progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm


class ReadingBar:
    """Sum of the finished chunks, and of what workers report of those that they work on."""

    def __init__(self, bar: "tqdm", num_chunks: int, unit: str):
        self._bar, self._num_chunks, self._unit, self._started_s = bar, num_chunks, unit, time.perf_counter()
        self._finished = self._documents = self._units = 0
        self._begun: dict[int, ChunkProgress] = {}

    @classmethod
    @contextmanager
    def over(
        cls, chunks: Sequence[Chunk], description: str = "tokenize", unit: str = "tokens"
    ) -> Iterator["ReadingBar"]:
        """Shows the bar of the chunks, until the block ends.

        Args:
            chunks: that are read.
            description: of the bar.
            unit: name, in the facts of chunks, of what is counted next to documents.
        """
        with progress_bar(total=sum(map(_bar_bytes, chunks)), desc=description, unit="B", unit_scale=True) as bar:
            yield cls(bar, len(chunks), unit)

    def take(self, report: ChunkProgress) -> None:
        """Takes a report from within a chunk, which moves the bar."""
        before = self._begun.get(report.chunk_index)
        self._begun[report.chunk_index] = report
        self._move(report.size_bytes - (before.size_bytes if before else 0))

    def finish(self, chunk: Chunk, facts: dict) -> None:
        """Counts a finished chunk by its facts."""
        before = self._begun.pop(chunk.index, None)
        self._finished += 1
        self._documents += facts["documents"]
        self._units += facts[self._unit]
        self._move(_bar_bytes(chunk) - (before.size_bytes if before else 0))

    def _move(self, size_bytes: int) -> None:
        elapsed_s = time.perf_counter() - self._started_s
        documents = self._documents + sum(chunk.documents for chunk in self._begun.values())
        units = self._units + sum(chunk.units for chunk in self._begun.values())
        self._bar.set_postfix_str(
            f"chunk {self._finished:,} of {self._num_chunks:,}, {documents / elapsed_s:,.0f} documents/s, "
            f"{units / elapsed_s:,.0f} {self._unit}/s",
            refresh=False,  # else each of 50,000 small chunks draws the bar
        )
        self._bar.update(size_bytes)


def _bar_bytes(chunk: Chunk) -> int:
    """Size of a chunk, at least 1, so that the progress bar moves over empty files."""
    return max(1, chunk.size_bytes)
