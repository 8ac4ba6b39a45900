"""Doubts about the files that are read: texts, splits and copies that may not be meant."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

from colossal_llama.readers.formats import TEXT_KINDS, ending_of
from colossal_llama.readers.listing import InputFile

_SHOWN = 5
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)


def doubts_about(files: Sequence[InputFile]) -> str:
    """Names the files that may not be meant to be read, as lines; empty if there are none.

    Args:
        files: that are read.
    """
    return "\n".join((*_texts_with_records(files), *_splits(files), *_copies(files)))


def _texts_with_records(files: Sequence[InputFile]) -> Iterable[str]:
    texts = [file for file in files if file.format.kind in TEXT_KINDS]
    if texts and len(texts) < len(files):
        counts = Counter(file.format.kind for file in files)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
        yield f"files that are read: {kinds}; each text is one document: {_named([file.name for file in texts])}"


def _splits(files: Sequence[InputFile]) -> Iterable[str]:
    """A line for each directory that holds a training split and another."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        parent = file.path.parent
        if split := _SPLIT.match(file.path.name):
            found[str(parent)][split[1]] += 1
        if split := _SPLIT.fullmatch(parent.name):
            found[str(parent.parent)][split[1]] += 1
    for directory, counts in islice(
        ((place, counts) for place, counts in found.items() if _is_doubtful(counts)), _SHOWN
    ):
        named = ", ".join(f"{split} ({count:,})" for split, count in sorted(counts.items()))
        train = next(split for split in counts if split.lower() == "train")
        yield (
            f"{directory} holds files of the splits {named}, and all are read: if only one is meant, give "
            f"'{directory}/{train}*'"
        )


def _is_doubtful(counts: Counter[str]) -> bool:
    return len(counts) > 1 and any(split.lower() == "train" for split in counts)


def _copies(files: Sequence[InputFile]) -> Iterable[str]:
    """A line for files of one directory and name that differ in their compression alone."""
    by_content: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        stem = file.name[: len(file.name) - len(ending_of(file.path.name))]
        by_content[stem, file.format.kind].append(file.name)
    doubled = [" and ".join(names) for names in by_content.values() if len(names) > 1]
    if doubled:
        yield f"files that differ in their compression, and are all read: {_named(doubled)}; are they copies?"


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {rest:,} more" if rest > 0 else "")
