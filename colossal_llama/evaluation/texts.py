"""Bits per byte of texts: reads the documents, and measures them with one model after the other."""

import hashlib
import heapq
import math
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.evaluation.result_file import ResultFile
from colossal_llama.evaluation.text_arguments import TextArguments
from colossal_llama.readers.fields import FieldOptions, with_file_categories
from colossal_llama.readers.listing import InputFile
from colossal_llama.tokenizer.corpus import CorpusText, find_files, read_texts
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError, truncate_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from colossal_llama.evaluation.bits_per_byte import BitCounter, Bits, DocumentEncoder, EncodedText
    from colossal_llama.evaluation.ranks import Ranks

RESULTS = "texts"
"""Name of a model's results: OUT/MODEL/texts.jsonl."""
_BEGINNING_CHARACTERS = 80
_SHOWN_PROBLEMS = 20
_ENCODED_TOGETHER = 64
_SIGNS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\s{_SIGNS}]+")


@dataclass(frozen=True)
class TextDocument:
    """A document that is measured, without its text.

    Attributes:
        file: that it stands in.
        number: of its line, else of its record, from 1.
        category: of the record, or the directory.
        text_hash: checksum of the text.
        bytes: of the text in UTF-8.
        words: runs between white space; a Chinese or Japanese character is a word.
        beginning: first characters of the text, on one line.
    """

    file: str
    number: int
    category: str
    text_hash: str
    bytes: int
    words: int
    beginning: str


@dataclass(frozen=True)
class Texts:
    """The documents of `--texts`.

    Attributes:
        documents: that are measured, by their place among all that can be read.
        problems: records and files that cannot be read.
        left_out: number of documents beyond `--text_limit`.
    """

    files: tuple[InputFile, ...]
    fields: FieldOptions
    documents: dict[int, TextDocument]
    problems: tuple[str, ...]
    left_out: int

    def read(self, places: set[int]) -> Iterator[tuple[int, str]]:
        """Reads the texts of some documents, with their places.

        Raises:
            UserError: a file has changed meanwhile.
        """
        if not places:
            return
        last = max(places)
        for place, document in enumerate(_documents(self.files, self.fields, [])):
            if place in places:
                if _text_hash(document.text) != self.documents[place].text_hash:
                    raise UserError(f"{document.location} has changed since this run began: run it again")
                yield place, document.text
            if place == last:
                return
        raise UserError("files of --texts have become shorter since this run began: run it again")


def open_texts(arguments: TextArguments, output_dir: Path | None = None) -> Texts:
    """Reads all documents once, chooses those that are measured, and says what cannot be read.

    Args:
        arguments: options of texts.
        output_dir: whose files are no texts, also where it lies in a directory of texts.

    Raises:
        UserError: no file is found, or no text in them.
    """
    files = with_file_categories(find_files(arguments.texts, "--texts", output_dir), arguments.fields)
    problems: list[str] = []
    kept: dict[str, list[tuple[int, int, TextDocument]]] = defaultdict(list)
    total = 0
    for place, text in enumerate(_documents(files, arguments.fields, problems)):
        total += 1
        document = _described(text)
        entry = (_reversed_order(document), -place, document)
        if arguments.text_limit is None or len(kept[document.category]) < arguments.text_limit:
            heapq.heappush(kept[document.category], entry)
        else:
            heapq.heappushpop(kept[document.category], entry)
    chosen = {-place: document for entries in kept.values() for _, place, document in entries}
    _say_problems(problems)
    if not chosen:
        raise UserError(["--texts: there is no text in these files", *problems[:_SHOWN_PROBLEMS]])
    return Texts(tuple(files), arguments.fields, dict(sorted(chosen.items())), tuple(problems), total - len(chosen))


def _documents(files: Iterable[InputFile], fields: FieldOptions, problems: list[str]) -> Iterator[CorpusText]:
    return read_texts(
        list(files),
        fields=fields,
        text_block_bytes=None,
        on_problem=lambda error: problems.extend(error.problems),
    )


def _described(document: CorpusText) -> TextDocument:
    file, _, number = document.location.rpartition(":")
    beginning = " ".join(document.text[: 4 * _BEGINNING_CHARACTERS].split())[:_BEGINNING_CHARACTERS]
    size = len(document.text.encode("utf-8"))
    words = sum(1 for _ in _WORD.finditer(document.text))
    return TextDocument(file, int(number), document.category, _text_hash(document.text), size, words, beginning)


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def _reversed_order(document: TextDocument) -> int:
    """Random number of a document: in a heap the largest ones, which go, come first.

    Its line has a part in it, lest all copies of a text be chosen together.
    """
    content = f"{document.number} {document.text_hash}"
    return -int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


def _say_problems(problems: Sequence[str]) -> None:
    if problems:
        log_rank_zero(f"--texts: {len(problems):,} records or files cannot be read, and are left out:")
        log_rank_zero("\n".join(truncate_problems(list(problems), _SHOWN_PROBLEMS)))


@dataclass(frozen=True)
class Measurement:
    """Settings of the measurement.

    Attributes:
        max_length: tokens of a window.
        stride: tokens between the beginnings of two windows.
        tokens_per_batch: most tokens of a forward pass; it decides the speed alone.
    """

    max_length: int
    stride: int
    tokens_per_batch: int


def measurement_of(arguments: TextArguments, max_length: int, tokens_per_batch: int) -> Measurement:
    """Completes the options: the stride is half of a window by default."""
    return Measurement(max_length, arguments.stride or max(1, max_length // 2), tokens_per_batch)


def text_results(directory: Path, model: Mapping[str, str], dtype: str, measurement: Measurement) -> ResultFile:
    """Prepares the file of a model's bits.

    Args:
        directory: OUT/MODEL.
        model: fingerprints of the model and its tokenizer.
        dtype: of the computation.
        measurement: how texts are measured.
    """
    windows = {"max_length": measurement.max_length, "stride": measurement.stride}
    settings = {**model, "dtype": dtype, **windows}
    return ResultFile(directory, RESULTS, "text_hash", settings)


def known_tokens(tokenizer: "PreTrainedTokenizerFast", base: "PreTrainedTokenizerFast") -> int | None:
    """Number of tokens that a tokenizer had before its expansion; None if it is no expansion.

    Args:
        tokenizer: to which tokens may have been added.
        base: as it was before.
    """
    vocabulary, before = tokenizer.get_vocab(), base.get_vocab()
    if len(before) >= len(vocabulary) or max(before.values()) != len(before) - 1:
        return None
    return len(before) if all(vocabulary.get(token) == token_id for token, token_id in before.items()) else None


def measure_texts(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    texts: Texts,
    measurement: Measurement,
    results: ResultFile,
    ranks: "Ranks",
    known: int | None = None,
) -> None:
    """Measures all documents with one model; what is on disk already is not computed again.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: the model's.
        texts: the documents.
        measurement: how.
        results: where the bits are kept.
        ranks: processes that share the documents.
        known: tokens of the vocabulary before its expansion (`known_tokens`), for
            `new_token_bits`.

    Raises:
        UserError: the results on disk are of other settings, or a loss is not finite.
    """
    from colossal_llama.evaluation.bits_per_byte import BitCounter, DocumentEncoder

    ranks.first(results.begin)
    done = _measured_hashes(results, known)
    ranks.begin_count()
    ranks.gather(None)  # all have read before the first appends
    unmeasured = {each.text_hash: place for place, each in texts.documents.items() if each.text_hash not in done}
    absent = list(unmeasured.values())
    mine = set(ranks.share(absent, [texts.documents[place].bytes for place in absent]))
    counter = BitCounter(model, measurement.max_length, measurement.stride, measurement.tokens_per_batch, known)
    bar = progress_bar(total=len(absent), desc="texts", unit="document")

    def show(done: int) -> None:
        bar.update(done - bar.n)

    with ranks.stage(), results.appending(ranks.rank) as append, bar:
        for place, encoded, bits in _measured(texts.read(mine), DocumentEncoder(tokenizer), counter):
            document = texts.documents[place]
            if not math.isfinite(bits.bits):
                raise UserError(_not_finite(document, str(model.dtype).removeprefix("torch.")))
            append(_result(document, encoded, bits, known))
            show(ranks.count_done(1))
        ranks.wait_for(len(absent), show)


def _measured(
    texts: Iterable[tuple[int, str]], encoder: "DocumentEncoder", counter: "BitCounter"
) -> Iterator[tuple[int, "EncodedText", "Bits"]]:
    waiting: deque[tuple[int, EncodedText]] = deque()

    def ids() -> Iterator[list[int]]:
        stream = iter(texts)
        while chunk := list(islice(stream, _ENCODED_TOGETHER)):
            for (place, _), encoded in zip(chunk, encoder.encode([text for _, text in chunk]), strict=True):
                waiting.append((place, encoded))
                yield encoded.ids

    for bits in counter.count(ids()):
        yield *waiting.popleft(), bits


def _result(document: TextDocument, encoded: "EncodedText", bits: "Bits", known: int | None) -> dict[str, Any]:
    of_new = {} if known is None else {"known_tokens": known, "new_token_bits": bits.new_token_bits}
    return {
        **asdict(document),
        "tokens": bits.tokens,
        "bits": bits.bits,
        "unknown_tokens": encoded.unknown_tokens,
        "is_lossless": encoded.is_lossless,
        **of_new,
    }


def _measured_hashes(results: ResultFile, known: int | None) -> set[str]:
    return {key for key, result in results.read().items() if known in (None, result.get("known_tokens"))}


def is_complete(texts: Texts, results: ResultFile, known: int | None = None) -> bool:
    """True when all documents are measured; see `measure_texts`."""
    return {document.text_hash for document in texts.documents.values()} <= _measured_hashes(results, known)


def ordered(texts: Texts, results: ResultFile) -> list[dict[str, Any]]:
    """Results of all documents in their order; equal texts have been measured once.

    Raises:
        UserError: some are absent.
    """
    found = results.read()
    if absent := sum(document.text_hash not in found for document in texts.documents.values()):
        raise UserError(
            f"{absent:,} results are absent next to {results.path}: every process must write into the same "
            "directory; give an --output_dir that all hosts share"
        )
    return [{**found[document.text_hash], **asdict(document)} for document in texts.documents.values()]


def _not_finite(document: TextDocument, dtype: str) -> str:
    return f"{document.file}:{document.number}: the loss is not a finite number in {dtype}: " + (
        "give --dtype bf16 or fp32" if dtype == "float16" else "the model's weights may be damaged"
    )
