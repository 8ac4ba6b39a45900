"""The expanded vocabulary of either family: its files, its report, and writing them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from colossal_llama.tokenizer.expansion.old_ids import verify_old_ids
from colossal_llama.tokenizer.expansion.pieces import Impossible, Piece, PieceFile
from colossal_llama.tokenizer.expansion.pretokenizer_changes import PreTokenizerChanges
from colossal_llama.tokenizer.expansion.reachability import Encode, Reachability
from colossal_llama.tokenizer.loading import REPEATED_FILES, load_with_transformers
from colossal_llama.tokenizer.settings_file import copy_settings, take_definition_as_it_is
from colossal_llama.utils.atomic_io import atomic_directory, write_json
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import UserError

REPORT_FILE = "expansion_report.json"
MAX_UNUSED_IDS = 4_096  # more than any padding of a vocabulary, less than a damaged id leaves free


@dataclass(frozen=True)
class Expansion:
    """A source vocabulary and what was added to it.

    Attributes:
        family: `sentencepiece BPE` or `byte-level BPE`.
        files: name → content of the vocabulary's new files.
        source_size: number of ids of the source vocabulary; the new ids begin here.
        pieces: texts of the new requested pieces, by id.
        intermediates: pieces that were not requested, but are needed to build requested ones, as
            the vocabulary writes them; their ids follow.
        known: requested pieces that the source has already.
        impossible: requested pieces that no text can produce whatever is added, with the reason;
            they are not added.
        encoders: the expanded tokenizer in each of its implementations (sentencepiece, fast); where
            there are two, added tokens are text to them.
        encode_by_merges: encodes by merges alone, if the tokenizer has another way too (LLaMA-3
            looks up whole words).
        letters_before_marks: letters with which the pre-tokenizer keeps marks, if it is extended.
    """

    family: str
    files: Mapping[str, bytes]
    source_size: int
    pieces: Sequence[str]
    intermediates: Sequence[str]
    known: Sequence[Piece]
    impossible: Sequence[Impossible]
    encoders: Sequence[Encode]
    encode_by_merges: Encode | None = None
    letters_before_marks: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Number of ids of the expanded vocabulary."""
        return self.source_size + len(self.pieces) + len(self.intermediates)

    @property
    def piece_ids(self) -> dict[str, int]:
        """Text of each new requested piece → its id."""
        return {piece: self.source_size + number for number, piece in enumerate(self.pieces)}


def unused_entries(ids: Mapping[str, int], size: int) -> Iterator[tuple[str, int]]:
    """Yields an entry for each id below `size` that no token has: `<unused_32001>`, 32001.

    With a gap below the new pieces, the number of tokens would not be the number of embedding rows.

    Args:
        ids: the token ids by content.
        size: number of ids to fill.

    Raises:
        UserError: there are too many unused ids.
    """
    unused = size - len(set(ids.values()))
    if unused > MAX_UNUSED_IDS:
        raise UserError(
            f"the source's ids end at {size - 1:,}, but {unused:,} ids before that have no token, more than "
            f"{MAX_UNUSED_IDS:,}: is one of its files damaged? Else renumber its added tokens"
        )
    for token_id in sorted(set(range(size)).difference(ids.values())) if unused else ():
        name = f"<unused_{token_id}>"
        while name in ids:
            name = f"<{name}>"
        yield name, token_id


def expansion_report(
    expansion: Expansion,
    requested: PieceFile,
    reachability: Reachability,
    pad_to_multiple_of: int,
    changes: PreTokenizerChanges | None = None,
) -> dict:
    """Builds the content of `expansion_report.json`.

    `padded_vocab_size` is the number of embedding rows to give a model of this vocabulary:
    `vocab_size` rounded up to a multiple of `pad_to_multiple_of`. The tokenizer has no ids for the
    padding rows. `extended_pretokenizer` is there only if the pre-tokenizer is extended.
    """
    padded = -(-expansion.size // pad_to_multiple_of) * pad_to_multiple_of
    return {
        "family": expansion.family,
        "asked": requested.lines,
        "duplicate": requested.duplicates,
        "already_known": len(expansion.known),
        "impossible": len(expansion.impossible),
        "impossible_by_cause": impossible_by_cause(expansion),
        "new": len(expansion.pieces),
        "bridges": len(expansion.intermediates),
        "unreachable": len(reachability.unreachable),
        "source_vocab_size": expansion.source_size,
        "vocab_size": expansion.size,
        "pad_to_multiple_of": pad_to_multiple_of,
        "padded_vocab_size": padded,
        **({} if changes is None else {"extended_pretokenizer": asdict(changes)}),
        "proof": {
            "wanted": reachability.checked,
            "at_beginning": reachability.at_beginning,
            "inside": reachability.inside,
            "unreachable": reachability.unreachable,
        },
        "bridge_pieces": list(expansion.intermediates),
        "impossible_pieces": [
            {"piece": left_out.piece.text, "where": left_out.piece.location, "why": left_out.why}
            for left_out in expansion.impossible
        ],
    }


def impossible_by_cause(expansion: Expansion) -> dict[str, int]:
    """Returns cause → number of impossible pieces, the most frequent first."""
    return dict(Counter(str(left_out.cause) for left_out in expansion.impossible).most_common())


def report_table(report: Mapping) -> str:
    """Formats the figures of `expansion_report` as a table."""
    rows = [
        ("requested pieces", report["asked"]),
        ("  duplicate lines", report["duplicate"]),
        ("  already in the source", report["already_known"]),
        ("  impossible, left out", report["impossible"]),
        *((f"    {cause}", number) for cause, number in report["impossible_by_cause"].items()),
        ("  new", report["new"]),
        ("intermediate pieces added for them", report["bridges"]),
        ("unreachable", report["unreachable"]),
        ("source vocabulary", report["source_vocab_size"]),
        ("expanded vocabulary", report["vocab_size"]),
    ]
    if report["pad_to_multiple_of"] > 1:
        rows.append((f"padded to a multiple of {report['pad_to_multiple_of']}", report["padded_vocab_size"]))
    if changes := report.get("extended_pretokenizer"):
        rows += [
            (f"marks stay with letters of {', '.join(changes['scripts'])}", ""),
            ("  old tokens that stood at such a mark", changes["old_tokens_beginning_with_a_mark"]),
            ("  of them no longer produced there", changes["lost_old_tokens"]),
            ("  requested pieces whose source ids differ", changes["changed_pieces"]),
            ("  tokens of all pieces, source's own", changes["piece_tokens_before"]),
            ("  the same, extended, no piece added", changes["piece_tokens_after"]),
        ]
    contexts = [
        (f"reached {position}: {context}", number)
        for position, reached in (("at a text's beginning", "at_beginning"), ("inside a text", "inside"))
        for context, number in report["proof"][reached].items()
    ]
    return table([report["family"], "rows"], rows + contexts)


def write_expansion(source: Path, target: Path, expansion: Expansion, report: Mapping) -> None:
    """Writes the tokenizer's directory, complete or not at all.

    Raises:
        UserError: the directory exists already or cannot be written, or an id of the source would
            change.
    """
    try:
        with atomic_directory(target) as directory:
            copy_settings(source, directory)
            for name, content in {**_repeated_files(source, expansion), **expansion.files}.items():
                (directory / name).write_bytes(content)
            take_definition_as_it_is(directory, lambda: load_with_transformers(source, True).special_tokens_map)
            write_json(directory / REPORT_FILE, report)
            verify_old_ids(source, directory, has_slow="tokenizer.model" in expansion.files)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _repeated_files(source: Path, expansion: Expansion) -> dict[str, bytes]:
    """Content of vocab.json and merges.txt, if the source has them and no tokenizer.model.

    They hold the model of tokenizer.json once more, for slow tokenizers and other programs. Those
    have a pre-tokenizer of their own: with an extended one they would give other ids.
    """
    if "tokenizer.model" in expansion.files or expansion.letters_before_marks:
        return {}
    model = orjson.loads(expansion.files["tokenizer.json"])["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    contents = (orjson.dumps(model["vocab"]), "".join(f"{line}\n" for line in ["#version: 0.2", *merges]).encode())
    repeated = dict(zip(REPEATED_FILES, contents, strict=True))
    return {name: content for name, content in repeated.items() if (source / name).is_file()}
