"""Dropped documents: a line each with rule, figure and limit, gathered in a file for each reason.

    {"reason": "length", "figure": 12, "limit": 50, "file": "web/a.jsonl", "position": 7,
     "source": "", "target": "…", "category": "web"}

The record is as it came in. `position` is a line where the file has lines, else a record.
"""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from colossal_llama.cleaning.document import Verdict
from colossal_llama.utils.atomic_io import atomic_file

_BEGINNING, _END = b'{"reason":"', b'"'


def dropped_line(
    verdict: Verdict, file: str, position: int, record: dict[str, Any], kept: tuple[str, int] | None = None
) -> bytes:
    """A line of `dropped/REASON.jsonl`.

    Args:
        verdict: why the document is dropped.
        file: that it stands in.
        position: line or record number there.
        record: as it came in.
        kept: file and position of the document that stays in place of a duplicate.
    """
    content = {
        "reason": verdict.reason,
        "figure": verdict.figure,
        "limit": verdict.limit,
        "file": file,
        "position": position,
        **({} if kept is None else {"kept_file": kept[0], "kept_position": kept[1]}),
        **record,
    }
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def gather_dropped(parts: Iterable[Path], directory: Path) -> None:
    """Writes one file for each reason from the lines of all parts, in their order.

    Args:
        parts: files of lines.
        directory: is emptied and receives `REASON.jsonl`.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with ExitStack() as files:
        opened: dict[bytes, BinaryIO] = {}
        for part in parts:
            with part.open("rb") as lines:
                for line in lines:
                    reason = line[len(_BEGINNING) : line.index(_END, len(_BEGINNING))]
                    if reason not in opened:
                        opened[reason] = files.enter_context(atomic_file(directory / f"{reason.decode()}.jsonl"))
                    opened[reason].write(line)


def join_files(parts: Iterable[Path], target: Path) -> None:
    """Writes the lines of all parts into one file."""
    with atomic_file(target) as file:
        for part in parts:
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, file)
