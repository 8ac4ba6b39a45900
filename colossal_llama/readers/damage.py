"""The error of a file that cannot be read to its end."""


class DamagedFileError(Exception):
    """A file that cannot be read to its end: it is damaged, or truncated."""
