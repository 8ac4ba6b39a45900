"""Says once a file which columns are read where several fit, and where no category is."""

from collections.abc import Mapping

from colossal_llama.readers.fields import BY_DIRECTORY, CHOSEN, printable
from colossal_llama.utils.console import log_rank_zero

SHOWN_MESSAGES = 10


class ColumnMessages:
    """Messages of all files of a run: the first are printed, the others counted."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, files: str, statistics: Mapping[str, Mapping[str, int]]) -> None:
        """Prints what has not been said yet, above a progress bar.

        Args:
            files: name of the file that the records stand in, or names of the first and the last.
            statistics: counts by category (`tokenization.TokenizedBatch`).
        """
        for message in column_messages(files, statistics):
            if message not in self._said and len(self._said) < SHOWN_MESSAGES:
                log_rank_zero(message)
            self._said.add(message)

    def finish(self) -> None:
        """Prints how many messages were not printed."""
        if (hidden := len(self._said) - SHOWN_MESSAGES) > 0:
            log_rank_zero(f"and {hidden:,} more messages of this kind about columns and categories")


def column_messages(files: str, statistics: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Messages about the columns of files' records, from their counts by category."""
    name = printable(files)
    chosen = sorted({key for counts in statistics.values() for key in counts if key.startswith(CHOSEN)})
    messages = [
        f"{name}: {key.removeprefix(CHOSEN)} is read; --text_field, --source_field or --target_field chooses another"
        for key in chosen
    ]
    return messages + [
        f"{name}: records without a category are of {category!r}, the directory's name; --category_field or "
        "--category_from chooses another"
        for category, counts in statistics.items()
        if counts.get(BY_DIRECTORY)
    ]
