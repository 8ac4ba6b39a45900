"""Reports bad records: as error messages where they stop the run, else in rejected.jsonl."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import orjson

from colossal_llama.dataset.prepare.cache import chunk_rejected
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.readers.fields import OTHER_KIND
from colossal_llama.readers.rows import FileRange, row_places
from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.errors import UserError

SHOWN_BAD_RECORDS = 20
SHOWN_RECORD_CHARACTERS = 80


class BadInputError(UserError):
    """Raised for input that cannot be used; nothing written from it is worth keeping."""


def bad_record_messages(bad: Sequence[tuple[Chunk, dict]]) -> list[str]:
    """Messages for the first bad records: file:line, the reason, and the record's beginning.

    Of records of the other kind the first is named: all the others are likely to be so, too.
    """
    bad, is_of_other_kind = _other_kind_once(bad), bad[0][1]["reason"] in OTHER_KIND
    messages = messages_with_places(bad[:SHOWN_BAD_RECORDS])
    if is_of_other_kind and len(bad) == 1:
        return messages
    count = f"more than {SHOWN_BAD_RECORDS}" if len(bad) > SHOWN_BAD_RECORDS else f"{len(bad)}"
    return [
        *messages,
        f"{count} bad record{'s' if len(bad) > 1 else ''}, so that no part was written. Correct them, or skip them "
        "with --on_bad_record skip, which counts them by reason and lists them in rejected.jsonl.",
    ]


def messages_with_places(bad: Sequence[tuple[Chunk, dict]]) -> list[str]:
    """For each bad record its file and line, what is wrong, and its beginning."""
    located = [(chunk.pieces[record.get("piece", 0)].range, record) for chunk, record in bad]
    rows: dict[FileRange, list[int]] = {}
    for file_range, record in located:
        rows.setdefault(file_range, []).append(record["row"])
    places = {
        (file_range, row): place
        for file_range, listed in rows.items()
        for row, place in zip(listed, row_places(file_range, listed), strict=True)
    }
    return [
        f"{places[file_range, record['row']]}: {record['message']} | {_on_one_line(record['record'])}"
        for file_range, record in located
    ]


def _on_one_line(text: str) -> str:
    """The beginning of a record; line feeds and other control characters are escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in text[:SHOWN_RECORD_CHARACTERS]
    )


def _other_kind_once(bad: Sequence[tuple[Chunk, dict]]) -> list[tuple[Chunk, dict]]:
    first: dict[str, dict] = {}
    return [
        (chunk, record)
        for chunk, record in bad
        if record["reason"] not in OTHER_KIND or first.setdefault(record["reason"], record) is record
    ]


def write_rejected(output_dir: Path, chunk_dir: Path, chunks: Sequence[Chunk], facts: Sequence[dict]) -> str | None:
    """Writes the bad records of all chunks to rejected.jsonl, with line numbers in their files.

    Returns:
        The SHA-256 of the file; None where there is no bad record, and no file.
    """
    if not any(fact["rejected_records"] for fact in facts):
        return None
    digest, next_row = hashlib.sha256(), 0
    with atomic_file(output_dir / "rejected.jsonl") as file:
        for chunk, fact in zip(chunks, facts, strict=True):
            first_rows = []
            for piece, (rows, _) in zip(chunk.pieces, fact["pieces"], strict=True):
                first_rows.append(next_row if piece.range.start else 0)
                next_row = first_rows[-1] + rows
            for record in chunk_rejected(chunk_dir, chunk.index):
                piece = record.pop("piece", 0)
                name = chunk.pieces[piece].range.file.name
                entry = {"file": name, "line": first_rows[piece] + record.pop("row") + 1, **record}
                line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
                file.write(line)
                digest.update(line)
    return digest.hexdigest()
