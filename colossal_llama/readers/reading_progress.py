"""Progress within a file, for who shows it."""

from collections.abc import Callable


class ReadingProgress:
    """Share of a range that is read so far: its reader sets it, and who takes its rows asks.

    Attributes:
        share: gives it, from 0 to 1.
    """

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 0.0

    def set(self, share: float) -> None:
        """Sets a share that stays until the next."""
        self.share = lambda: share
