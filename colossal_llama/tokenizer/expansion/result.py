"""What an expanded vocabulary is, whichever family it belongs to: its files, its figures, and where they are written."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from colossal_llama.tokenizer.expansion.pieces import Piece, PieceFile
from colossal_llama.tokenizer.expansion.reachability import Encode, Proof
from colossal_llama.utils.atomic_io import atomic_directory, write_json
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import UserError

# Settings travel as they are; the vocabulary itself (tokenizer.model, tokenizer.json) is written
# anew.
SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
REPORT_FILE = "expansion_report.json"


@dataclass(frozen=True)
class Expansion:
    """A source vocabulary and what was added to it.

    Attributes:
        family: `sentencepiece BPE` or `byte-level BPE`.
        files: name → content of the vocabulary's new files.
        source_size: rows of the source vocabulary; the new ids begin here.
        pieces: texts of the new pieces in the order of their ids.
        bridges: names, as the vocabulary writes them, of the pieces that nobody asked for and others need; their ids follow.
        known: asked pieces that the source has already.
        impossible: asked pieces that no text can produce whatever is added, with the reason; they are not added.
        encoders: the finished tokenizer, in each of its implementations, from texts to ids without special tokens.
        merge_alone: ids of a text by merges alone, if the tokenizer has another way too (LLaMA-3 looks up whole words).
    """

    family: str
    files: Mapping[str, bytes]
    source_size: int
    pieces: Sequence[str]
    bridges: Sequence[str]
    known: Sequence[Piece]
    impossible: Sequence[tuple[Piece, str]]
    encoders: Sequence[Encode]
    merge_alone: Encode | None = None

    @property
    def size(self) -> int:
        """Rows of the expanded vocabulary."""
        return self.source_size + len(self.pieces) + len(self.bridges)

    @property
    def wanted(self) -> dict[str, int]:
        """Text of each new piece that was asked for → its id."""
        return {piece: self.source_size + place for place, piece in enumerate(self.pieces)}


def expansion_record(expansion: Expansion, asked: PieceFile, proof: Proof, pad_to_multiple_of: int) -> dict:
    """The content of `expansion_report.json`.

    `padded_vocab_size` is the number of embedding rows to give a model of this vocabulary:
    `vocab_size` rounded up to a multiple of `pad_to_multiple_of`. The tokenizer has no ids for the
    padding rows.
    """
    padded = -(-expansion.size // pad_to_multiple_of) * pad_to_multiple_of
    return {
        "family": expansion.family,
        "asked": asked.asked,
        "duplicate": asked.duplicates,
        "already_known": len(expansion.known),
        "impossible": len(expansion.impossible),
        "new": len(expansion.pieces),
        "bridges": len(expansion.bridges),
        "unreachable": len(proof.unreachable),
        "source_vocab_size": expansion.source_size,
        "vocab_size": expansion.size,
        "pad_to_multiple_of": pad_to_multiple_of,
        "padded_vocab_size": padded,
        "proof": asdict(proof),
        "bridge_pieces": list(expansion.bridges),
        "impossible_pieces": [
            {"piece": piece.text, "where": piece.where, "why": reason} for piece, reason in expansion.impossible
        ],
    }


def record_table(record: Mapping) -> str:
    """The figures of `expansion_record` for a person."""
    rows = [
        ("pieces asked for", record["asked"]),
        ("  duplicate lines", record["duplicate"]),
        ("  already in the source", record["already_known"]),
        ("  impossible, left out", record["impossible"]),
        ("  new", record["new"]),
        ("bridges added for them", record["bridges"]),
        ("unreachable", record["unreachable"]),
        ("source vocabulary", record["source_vocab_size"]),
        ("expanded vocabulary", record["vocab_size"]),
    ]
    if record["pad_to_multiple_of"] > 1:
        rows.append((f"padded to a multiple of {record['pad_to_multiple_of']}", record["padded_vocab_size"]))
    proofs = [
        (f"proved {place}: {context}", number)
        for place, found in (("at a text's beginning", "at_beginning"), ("inside a text", "inside"))
        for context, number in record["proof"][found].items()
    ]
    return table([record["family"], "rows"], rows + proofs)


def write_expansion(source: Path, target: Path, expansion: Expansion, record: Mapping) -> None:
    """Writes the tokenizer's directory, complete or not at all.

    Raises:
        UserError: the directory exists already or cannot be written.
    """
    try:
        with atomic_directory(target) as directory:
            for name in SETTINGS_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, directory / name)
            for name, content in expansion.files.items():
                (directory / name).write_bytes(content)
            write_json(directory / REPORT_FILE, record)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
