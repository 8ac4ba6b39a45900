"""The table of file formats: which endings are read, and as what."""

import re
from dataclasses import dataclass

COMPRESSIONS = ("", ".gz", ".zst", ".bz2", ".xz")
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow", ".tar")
TEXT_KINDS = frozenset((".txt", ".md"))
"""A file of these is one document."""
TABLE_KINDS = frozenset((".parquet", ".arrow"))
"""A file of these is binary, and is read from any place in it."""
BINARY_KINDS = TABLE_KINDS | {".tar"}
_READ_BY_PEOPLE = re.compile(
    r"(readme|licen[cs]e)([-_. ]|$)|(notice|changelog|citation|contributing|contributors|authors|copying|requirements"
    r"|(data|model|dataset)[-_ ]?card|datasheet|code[-_ ]of[-_ ]conduct|(md5|sha\d+|check)[-_ ]?sums?)(\.|$)"
)
"""Names of texts, in lower case, that are about data where they lie next to it."""
_OTHER_ENDINGS = {".ndjson": ".jsonl", ".markdown": ".md"}
DESCRIPTION = f"{', '.join(KINDS)}, each also with {', '.join(COMPRESSIONS[1:])}"


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        kind: the ending of the content: one of `KINDS`.
        compression: the ending of the compression: one of `COMPRESSIONS`.
    """

    kind: str
    compression: str = ""

    @property
    def is_divisible(self) -> bool:
        """True where a row can be found from any byte of the file."""
        return self.kind == ".jsonl" and not self.compression


_FORMATS = {
    **{
        ending + compression: Format(kind, compression)
        for ending, kind in (*((kind, kind) for kind in KINDS), *_OTHER_ENDINGS.items())
        for compression in COMPRESSIONS
    },
    ".tgz": Format(".tar", ".gz"),
}
ENDINGS = tuple(sorted(_FORMATS, key=len, reverse=True))
"""Endings of the names of all files that are read, in lower case, the longest first."""


def format_of(name: str) -> Format | None:
    """Returns the format of a file of this name; None if it is not read.

    >>> format_of("Corpus.JSONL.GZ")
    Format(kind='.jsonl', compression='.gz')
    """
    return _FORMATS.get(ending_of(name).lower())


def ending_of(name: str) -> str:
    """Returns the ending of a file's name that names its format; empty if it is not read."""
    lower = name.lower()
    last = lower.rfind(".")
    for start in (lower.rfind(".", 0, max(last, 0)), last):  # .jsonl.gz before .gz
        if start >= 0 and lower[start:] in _FORMATS:
            return name[start - len(lower) :]
    return ""


def is_read_by_people(name: str) -> bool:
    """True for the name of a text that is about data where it lies next to them."""
    format = format_of(name)
    return format is not None and format.kind in TEXT_KINDS and _READ_BY_PEOPLE.match(name.lower()) is not None
