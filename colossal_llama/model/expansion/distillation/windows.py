"""Windows of text to distil on: read, encoded by both tokenizers, chosen, and put into batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.model.expansion.distillation.alignment import common_ends
from colossal_llama.readers.content_size import total_bytes
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.corpus import find_files, read_texts, split_into_blocks
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.token_bytes import token_bytes
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONGEST_WINDOW = 1000  # characters
_CANDIDATES = 4
"""Tokens that are read for each token of the budget; windows with rare tokens are chosen among
them."""
_BYTES_PER_TOKEN = 4
_LEAST_SAMPLE_BYTES = 16_000_000
_SAMPLED_WINDOWS = 8
"""Windows in a row that are sampled together."""
_ORDINARY_SHARE = 0.25
"""Part of the budget that is chosen at random, whatever tokens are in it."""
_WANTED_OCCURRENCES = (10, 100)
_ENCODED_TOGETHER = 512
_SORTED_BATCHES = 64
"""Batches whose windows are sorted by length, so that little is padding."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as windows need it: ids after the token that begins a text, and their bytes."""

    beginning: int
    batch: BatchEncoder
    bytes_of: list[bytes]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "Encoder":
        """Prepares a tokenizer; without BOS a text begins after EOS, as `loss_per_byte` has it."""
        encoder = TextEncoder(tokenizer)
        definition = encoder.definition()
        beginning = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if beginning is None:
            raise UserError("the tokenizer has neither BOS nor EOS: a text needs one before it; name one in its files")
        size = max(tokenizer.get_vocab().values()) + 1
        return cls(beginning, BatchEncoder(encoder, definition), token_bytes(definition, size))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts, each with the beginning: int32 arrays."""
        ids, lengths = self.batch.encode(texts, [True] * len(texts))
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        return [np.concatenate([[self.beginning], part]).astype(np.int32) for part in parts]


@dataclass(frozen=True)
class Windows:
    """Windows in both tokenizations.

    Attributes:
        source: ids of each window by the source's tokenizer.
        target: ids by the expanded one.
    """

    source: list[np.ndarray]
    target: list[np.ndarray]

    @property
    def tokens(self) -> int:
        """Tokens of all windows by the expanded tokenizer."""
        return sum(map(len, self.target))


def read_windows(
    paths: Sequence[Path | str],
    fields: FieldOptions,
    source: Encoder,
    target: Encoder,
    first_new: int,
    budget_tokens: int,
    max_positions: int,
    seed: int,
) -> Windows:
    """Reads a sample of the texts and chooses windows of it, about `budget_tokens` of them.

    Args:
        paths: files and directories.
        fields: which columns of a record are read.
        source: the source's tokenizer.
        target: the expanded one.
        first_new: the first id of a new token.
        budget_tokens: by the expanded tokenizer.
        max_positions: of the model; a window fits whatever its characters are.
        seed: of sample and choice.

    Raises:
        UserError: there is no text, or none of it has a new token.
    """
    files = find_files(paths, "--distill_data")
    sample_bytes = max(_LEAST_SAMPLE_BYTES, budget_tokens * _CANDIDATES * _BYTES_PER_TOKEN)
    share = min(1.0, sample_bytes / max(1, total_bytes(files)))
    length = max(1, min(_LONGEST_WINDOW, (max_positions - 2) // 4))
    texts: list[str] = []
    documents = read_texts(files, share, seed, _SAMPLED_WINDOWS * length, fields)
    with progress_bar(documents, unit="text", desc="reading") as bar:
        for document in bar:
            texts += (block for block in split_into_blocks(document.text, length) if block.strip())
    if not texts:
        raise UserError("--distill_data holds no text to distil on")
    encoded = _encoded(target, texts, "encoding")
    new = [ids[ids >= first_new] - first_new for ids in encoded]
    if not any(map(len, new)):
        raise UserError(
            "--distill_data has none of the new tokens: give texts in which they occur, such as those from which their "
            "pieces were learned"
        )
    chosen = choose_windows(new, [len(ids) for ids in encoded], budget_tokens, seed)
    chosen_texts = [texts[index] for index in chosen]
    return Windows(_encoded(source, chosen_texts, "encoding as before"), [encoded[index] for index in chosen])


def _encoded(encoder: Encoder, texts: Sequence[str], description: str) -> list[np.ndarray]:
    result: list[np.ndarray] = []
    with progress_bar(total=len(texts), unit="window", desc=description) as bar:
        for begin in range(0, len(texts), _ENCODED_TOGETHER):
            result += encoder.encode(texts[begin : begin + _ENCODED_TOGETHER])
            bar.update(min(_ENCODED_TOGETHER, len(texts) - begin))
    return result


def choose_windows(new: Sequence[np.ndarray], lengths: Sequence[int], budget_tokens: int, seed: int) -> list[int]:
    """Chooses windows until they have `budget_tokens`, or all of them.

    A quarter is a random choice, so that frequent tokens and the old languages are seen as often as
    they occur. Then come windows with a token that was chosen fewer than 10 times, then 100 times,
    then a random choice again.

    Args:
        new: of each window, the numbers of its new rows, as often as they occur.
        lengths: tokens of each window.
        budget_tokens: of the sum of lengths, which the last window may exceed.
        seed: of the order.

    Returns:
        Numbers of windows.
    """
    order = np.random.default_rng(seed).permutation(len(new)).tolist()
    occurrences = np.zeros(1 + max((int(rows.max()) for rows in new if len(rows)), default=0), np.int64)
    is_chosen, chosen, tokens = np.zeros(len(new), bool), [], 0
    everything = [(None, _ORDINARY_SHARE * budget_tokens)]
    for fewer_than, limit in (*everything, *((n, budget_tokens) for n in _WANTED_OCCURRENCES), (None, budget_tokens)):
        for index in order:
            if tokens >= limit:
                break
            if is_chosen[index] or (fewer_than is not None and not (occurrences[new[index]] < fewer_than).any()):
                continue
            np.add.at(occurrences, new[index], 1)
            is_chosen[index] = True
            chosen.append(index)
            tokens += lengths[index]
    return chosen


def plan_batches(windows: Windows, batch_tokens: int, budget_tokens: int, seed: int) -> list[np.ndarray]:
    """Puts windows into batches, pass after pass in another order, until the budget is used.

    Returns:
        Numbers of the windows of each batch. Padded to the longest, it has at most `batch_tokens`
        in either tokenization, or one window.
    """
    lengths = np.array([len(ids) for ids in windows.target])
    padded = np.maximum(lengths, [len(ids) for ids in windows.source])
    batches: list[np.ndarray] = []
    passes, tokens = 0, 0
    while tokens < budget_tokens:
        generator = np.random.default_rng((seed, passes))
        for batch in _batches_of_pass(padded, batch_tokens, generator):
            batches.append(batch)
            tokens += int(lengths[batch].sum())
            if tokens >= budget_tokens:
                break
        passes += 1
    return batches


def _batches_of_pass(padded: np.ndarray, batch_tokens: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    order = generator.permutation(len(padded))
    group = max(1, _SORTED_BATCHES * batch_tokens // max(1, int(padded.mean())))
    for begin in range(0, len(order), group):
        some = order[begin : begin + group]
        some = some[np.argsort(padded[some], kind="stable")]
        cuts, first = [], 0
        for position in range(1, len(some)):
            if padded[some[position]] * (position + 1 - first) > batch_tokens:
                cuts.append(position)
                first = position
        batches = np.split(some, cuts)
        yield from (batches[number] for number in generator.permutation(len(batches)))


@dataclass(frozen=True)
class Batch:
    """Padded windows of a step; positions are those in the flattened arrays.

    Attributes:
        source_ids: int64 [windows, longest].
        target_ids: the same by the expanded tokenizer.
        labels: int64 [windows × longest], the next token, -100 where there is none.
        source_positions: tokens that end where one of the expanded tokenizer ends, after the
            window's first new token.
        target_positions: those tokens of the expanded tokenizer.
    """

    source_ids: np.ndarray
    target_ids: np.ndarray
    labels: np.ndarray
    source_positions: np.ndarray
    target_positions: np.ndarray


def batch_of(windows: Windows, source: Encoder, target: Encoder, first_new: int, numbers: np.ndarray) -> Batch:
    """Aligns windows, and pads them on the right, where it changes nothing for a causal model."""
    source_ids, target_ids = ([ids[number] for number in numbers] for ids in (windows.source, windows.target))
    padded_source, padded_target = _padded(source_ids, 0), _padded(target_ids, 0)
    labels = _padded([ids[1:] for ids in target_ids], -100, padded_target.shape[1])
    positions: list[tuple[np.ndarray, np.ndarray]] = []
    for row, (old, new) in enumerate(zip(source_ids, target_ids, strict=True)):
        first = int(np.argmax(new >= first_new)) if (new >= first_new).any() else len(new)
        of_new, of_old = common_ends(
            [target.bytes_of[index] for index in new[1:]], [source.bytes_of[index] for index in old[1:]]
        )
        kept = of_new + 1 >= first
        positions.append(
            (of_old[kept] + 1 + row * padded_source.shape[1], of_new[kept] + 1 + row * padded_target.shape[1])
        )
    of_source, of_target = (np.concatenate(parts) for parts in zip(*positions, strict=True))
    return Batch(padded_source, padded_target, labels.reshape(-1), of_source, of_target)


def _padded(rows: Sequence[np.ndarray], filler: int, length: int | None = None) -> np.ndarray:
    result = np.full((len(rows), length or max(map(len, rows))), filler, np.int64)
    for row, ids in zip(result, rows, strict=True):
        row[: len(ids)] = ids
    return result
