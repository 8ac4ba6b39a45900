"""The table of file formats: which endings are read, and as what."""

from dataclasses import dataclass

COMPRESSIONS = ("", ".gz", ".zst")
_ENDINGS = {".jsonl": COMPRESSIONS, ".parquet": ("",)}


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        kind: the ending of the content: `.jsonl`, `.parquet`.
        compression: the ending of the compression; empty without one.
    """

    kind: str
    compression: str = ""

    @property
    def ending(self) -> str:
        """Ending of the names of such files."""
        return self.kind + self.compression

    @property
    def is_divisible(self) -> bool:
        """True where a row can be found from any byte of the file."""
        return self == Format(".jsonl")


FORMATS = tuple(Format(kind, compression) for kind, compressions in _ENDINGS.items() for compression in compressions)
ENDINGS = tuple(format.ending for format in FORMATS)


def format_of(name: str) -> Format | None:
    """Returns the format of a file of this name; None if it is not read."""
    return next((format for format in FORMATS if name.endswith(format.ending)), None)
