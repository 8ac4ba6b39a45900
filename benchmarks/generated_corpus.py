"""Large corpora out of a small one: documents of the same form, in which other words stand.

A copy of the corpus replaces each word (each character of scripts without spaces) by another of
about the same frequency, the same throughout a document. So lines, punctuation, lengths and
repetition inside a document are those of the corpus, while documents of different copies share
little more than the commonest words. One document in twenty stays as it is: a duplicate.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from colossal_llama.utils.console import progress_bar

FILE_BYTES = 200_000_000
DUPLICATE_SHARE = 0.05
_UNIT = re.compile(r"[㐀-鿿豈-﫿]|[^\W_㐀-鿿豈-﫿]+|[\W_]+")
_COMMON_UNITS = 60  # stay as they are: words of grammar
_NEIGHBOURS = 400  # a unit is replaced by one of so many of about the same frequency
_MAPPINGS = 16  # of a copy


def generate(directory: Path, source: Path, size_bytes: int) -> int:
    """Writes .jsonl files of about `size_bytes` together; returns their size."""
    return write_files(directory, _Corpus(source).records(), size_bytes, FILE_BYTES)


def write_files(directory: Path, records: Iterator[dict[str, Any]], size_bytes: int, file_bytes: int) -> int:
    """Writes endless records as .jsonl files of about `file_bytes` each; returns their size."""
    directory.mkdir(parents=True)
    written = 0
    with progress_bar(total=size_bytes, desc="making the corpus", unit="B", unit_scale=True) as bar:
        for number in range(-(-size_bytes // file_bytes)):
            end = min((number + 1) * file_bytes, size_bytes)
            with (directory / f"part-{number:03d}.jsonl").open("wb") as file:
                while written < end:
                    line = orjson.dumps(next(records), option=orjson.OPT_APPEND_NEWLINE)
                    written += file.write(line)
                    bar.update(len(line))
    return written


class _Corpus:
    """Documents of a corpus as numbers of their units."""

    def __init__(self, source: Path):
        counts: Counter[str] = Counter()
        numbers: dict[str, int] = {}
        self._documents: list[tuple[np.ndarray, str]] = []
        for path in sorted(source.rglob("*.jsonl")):
            for line in path.open("rb"):
                record = orjson.loads(line)
                units = _UNIT.findall(record["target"])
                counts.update(units)
                found = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], np.int32)
                self._documents.append((found, record["category"]))
        self._units = np.array(list(numbers), object)
        words = [unit for unit, _ in counts.most_common() if unit[0].isalnum()]
        kinds = [[word for word in words if word.isascii()], [word for word in words if not word.isascii()]]
        self._kinds = [np.array([numbers[word] for word in kind], np.int32) for kind in kinds]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields documents without end, each copy of the corpus in another order."""
        generator = np.random.default_rng(0)
        while True:
            mappings = [self._mapping(generator) for _ in range(_MAPPINGS)]
            for at in generator.permutation(len(self._documents)):
                units, category = self._documents[at]
                is_duplicate = generator.random() < DUPLICATE_SHARE
                mapping = self._units if is_duplicate else mappings[generator.integers(_MAPPINGS)]
                yield {"source": "", "target": "".join(mapping[units].tolist()), "category": category}

    def _mapping(self, generator: np.random.Generator) -> np.ndarray:
        mapping = self._units.copy()
        for words in self._kinds:
            for begin in range(_COMMON_UNITS, len(words), _NEIGHBOURS):
                near = words[begin : begin + _NEIGHBOURS]
                mapping[near] = self._units[generator.permutation(near)]
        return mapping
