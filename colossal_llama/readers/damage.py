"""The errors of files that cannot be read to their end."""


class DamagedFileError(Exception):
    """A file that cannot be read to its end: it is damaged, or truncated.

    Attributes:
        reason: one word, for counting.
    """

    reason = "damaged_file"

    def __str__(self) -> str:
        return f"the file is damaged, nothing can be read from here on: {super().__str__()}"


class DamagedPartError(DamagedFileError):
    """Row groups or record batches of a table that cannot be read; others may be."""

    def __str__(self) -> str:
        return f"a part of the file is damaged, nothing more can be read of it: {Exception.__str__(self)}"


class UnusableFileError(DamagedFileError):
    """A file whose content is not what its name says, or of a form that is not read."""

    reason = "unusable_file"

    def __str__(self) -> str:
        return f"the file cannot be used: {Exception.__str__(self)}"
