"""Reads the file of requested pieces: jsonl, one `{"piece": "…"}` a line."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.tokenizer.token_bytes import SPACE_MARK
from colossal_llama.utils.errors import UserError, truncate_problems

MAX_PIECE_CHARACTERS = 2_048  # the plan of merges for one takes 2 s, the time of its second power
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    """A requested piece.

    Attributes:
        text: the text it stands for, spaces as spaces.
        location: `file:line` of its first occurrence, for messages.
    """

    text: str
    location: str


class Cause(StrEnum):
    """Kinds of reasons why no text can produce a piece, as counts of pieces name them."""

    LENGTH = "too long"
    ADDED_TOKEN = "with an added token"
    NORMALISATION = "changed by the text normalisation"
    PRE_TOKENIZER = "split by the pre-tokenizer"
    CONTROL_TOKEN = "spelling a control token with another piece"
    CONTROL_CHARACTER = "with a control character"
    MERGES = "kept apart by the source's own merges"


@dataclass(frozen=True)
class Impossible:
    """A requested piece that no text can produce, whatever is added.

    Attributes:
        piece: the piece.
        cause: the kind of the reason.
        why: the reason.
    """

    piece: Piece
    cause: Cause
    why: str


@dataclass(frozen=True)
class PieceFile:
    """The content of a file of pieces.

    Attributes:
        lines: number of lines that hold a piece.
        pieces: the distinct pieces, in the order of the file.
    """

    lines: int
    pieces: tuple[Piece, ...]

    @property
    def duplicates(self) -> int:
        """Number of lines that repeat an earlier one."""
        return self.lines - len(self.pieces)


def read_pieces(path: Path, control_tokens: Iterable[str]) -> PieceFile:
    """Reads and checks a file of pieces.

    A space may be written as a space or as sentencepiece's `▁`; both are the same piece. Blank
    lines are skipped.

    Args:
        path: jsonl, one object with a string `piece` a line.
        control_tokens: the control and byte tokens of the source's model (`<s>`, `<0x0A>` …),
            which no piece may contain. (For added tokens see `sift_pieces`.)

    Raises:
        UserError: names file and line of what cannot be read, is not a string, is empty or all
            spaces, or contains a control token; or the file holds no piece.
    """
    control = _any_of(control_tokens)
    first_location: dict[str, str] = {}
    problems = []
    count = 0
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = _piece_of_line(line, control)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        count += 1
        first_location.setdefault(text, f"{path}:{number}")
    if problems:
        raise UserError(truncate_problems(problems))
    if not count:
        raise UserError(f'{path} holds no piece: give one {{"piece": "…"}} a line')
    return PieceFile(count, tuple(Piece(text, location) for text, location in first_location.items()))


def sift_pieces(
    pieces: Sequence[Piece], added_tokens: Mapping[str, bool]
) -> tuple[list[Piece], list[Piece], list[Impossible]]:
    """Separates pieces that are too long, and those that an added token cuts out of a text first.

    Args:
        pieces: the requested pieces.
        added_tokens: content of each added token → true if it is special.

    Returns:
        (others, known, impossible): the pieces to add; those that are an added token; those that
        are too long or contain an added token, with the reason.
    """
    special = {token.replace(SPACE_MARK, " "): is_special for token, is_special in added_tokens.items()}
    pattern = _any_of(special)
    others, known, impossible = [], [], []
    for piece in pieces:
        found = pattern.search(piece.text)
        if piece.text in special:
            known.append(piece)
        elif len(piece.text) > MAX_PIECE_CHARACTERS:
            length = f"it has {len(piece.text):,} characters, and a piece at most {MAX_PIECE_CHARACTERS:,}"
            impossible.append(Impossible(piece, Cause.LENGTH, length))
        elif found is not None:
            kind = "control" if special[found.group()] else "added"
            reason = f"it contains the {kind} token {found.group()!r}, which the tokenizer cuts out of a text first"
            impossible.append(Impossible(piece, Cause.ADDED_TOKEN, reason))
        else:
            others.append(piece)
    return others, known, impossible


def _any_of(strings: Iterable[str]) -> re.Pattern:
    longest_first = sorted(filter(None, strings), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _piece_of_line(line: bytes, control: re.Pattern) -> str:
    """Parses and checks one line.

    Raises:
        ValueError: the line holds no usable piece; the message gives the reason.
    """
    record = _parse(line)
    if not isinstance(record, dict) or "piece" not in record:
        raise ValueError('is not an object with the key "piece": write {"piece": "…"}')
    text = record["piece"]
    if not isinstance(text, str):
        raise ValueError(f"piece {json.dumps(text)} is not a string")
    text = text.replace(SPACE_MARK, " ")
    if not text:
        raise ValueError("the piece is empty")
    if not text.strip():
        raise ValueError(
            f"piece {text!r} is all spaces: the source's own pieces of spaces are kept, new ones are refused"
        )
    clash = control.search(text)
    if clash is not None:
        raise ValueError(
            f"piece {text!r} contains the control token {clash.group()}, which the tokenizer cuts out of a text first"
        )
    return text


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:  # the standard library's parser gives the reason and the position
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 (byte {error.start}): {error.reason}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise ValueError("is not JSON of an object: it is nested too deeply") from error
        if _SURROGATE.search(json.dumps(record, ensure_ascii=False)):
            raise ValueError("holds half a surrogate pair, which is not a character") from None
        return record
