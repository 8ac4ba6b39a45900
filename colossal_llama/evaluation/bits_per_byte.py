"""Bits that a model needs for documents: -log2 of the probability of every token, in windows.

A document is scored after BOS, as preparation begins it; where the tokenizer has none (Qwen's),
after EOS. So its first token counts, too. EOS at the end is not scored: it stands for no byte.

A document longer than a window is scored in several. Each token is scored once, in the first window
that holds it, and the overlap is its context:

    max_length 6, stride 4
    ids      B a b c d e f g h i j
    window 1 B a b c d e              scores a b c d e
    window 2         d e f g h i      scores f g h i, after d e
    window 3                 h i j    scores j

This is the layout of the loop in transformers' guide to perplexity.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from colossal_llama.evaluation.scoring import memory_sentence
from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.attention.backends import attention_without_plans
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK_LOGITS = 2**27
"""Logits that are in fp32 at once, 0.5 GB: 1,046 tokens at LLaMA-3's vocabulary."""
_BUFFERED_BATCHES = 16
"""Documents of about this many batches are sorted by length together."""


@dataclass(frozen=True)
class EncodedText:
    """A document as a model reads it.

    Attributes:
        ids: after the token that begins a document.
        unknown_tokens: number of tokens that stand for text that the vocabulary lacks.
        is_lossless: True if the ids decode to the text.
    """

    ids: list[int]
    unknown_tokens: int
    is_lossless: bool


@dataclass(frozen=True)
class Bits:
    """Bits of a document.

    Attributes:
        tokens: that are scored, all of the document.
        bits: that they take together.
        new_token_bits: of these, what the probability of new tokens costs where none follows; 0
            where no number of known tokens is given.
    """

    tokens: int
    bits: float
    new_token_bits: float


def windows(length_tokens: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields begin and end of each window, and its first token that is scored.

    >>> list(windows(11, max_length=6, stride=4))
    [(0, 6, 1), (4, 10, 6), (8, 11, 10)]

    Args:
        length_tokens: of a document with the token that begins it.
        max_length: tokens of a window.
        stride: tokens from the beginning of a window to that of the next. Neighbours share one
            token at least, since the first of a window is not scored.
    """
    overlap = max(1, max_length - stride)
    begin, end, scored = 0, min(max_length, length_tokens), 1
    while scored < length_tokens:
        yield begin, end, scored
        begin, scored = end - overlap, end
        end = min(begin + max_length, length_tokens)


class DocumentEncoder:
    """Encodes documents, and finds those that a tokenizer cannot represent without loss.

    Bits per byte of those are too low: an unknown token stands for any text, and a normalised text
    is another one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._encoder, self._backend = TextEncoder(tokenizer), tokenizer.backend_tokenizer
        self._unknown = tokenizer.unk_token_id
        begin = tokenizer.bos_token_id
        self.beginning_id: int = tokenizer.eos_token_id if begin is None else begin

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes texts that begin a document."""
        encoded = self._encoder.encode_beginning(texts)
        decoded = self._backend.decode_batch(encoded, skip_special_tokens=False)
        return [
            EncodedText([self.beginning_id, *ids], ids.count(self._unknown), back == text)
            for text, ids, back in zip(texts, encoded, decoded, strict=True)
        ]


class BitCounter:
    """Computes the bits of documents with one model, in batches of windows of similar length."""

    def __init__(
        self, model: Any, max_length: int, stride: int, tokens_per_batch: int, known_tokens: int | None = None
    ):
        """Prepares the computation.

        Args:
            model: a causal language model (also a `PeftModel`) in evaluation mode.
            max_length: tokens of a window, with the one that begins a document.
            stride: see `windows`.
            tokens_per_batch: most tokens of a forward pass, padding included.
            known_tokens: ids below are those of the vocabulary before its expansion.
        """
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._device = model.device
        self._window = (max_length, stride)
        self._batch_tokens = max(tokens_per_batch, max_length)
        self._known = known_tokens
        # A plain output layer is applied to chunks of the scored tokens alone. Other architectures
        # do more to their logits.
        self._has_plain_output = find_architecture(model.config.model_type) is not None

    def count(self, documents: Iterable[Sequence[int]]) -> Iterator[Bits]:
        """Yields the bits of each document, in order; a few batches are read ahead.

        Args:
            documents: ids, each after the token that begins a document.
        """
        buffer: list[Sequence[int]] = []
        buffered_tokens = 0
        for ids in documents:
            buffer.append(ids)
            buffered_tokens += len(ids)
            if buffered_tokens >= _BUFFERED_BATCHES * self._batch_tokens:
                yield from self._count(buffer)
                buffer, buffered_tokens = [], 0
        yield from self._count(buffer)

    def _count(self, documents: Sequence[Sequence[int]]) -> Iterator[Bits]:
        pieces = [
            _Piece(number, ids[begin:end], scored - begin)
            for number, ids in enumerate(documents)
            for begin, end, scored in windows(len(ids), *self._window)
        ]
        nats = torch.zeros(len(documents), 2, dtype=torch.float64)
        for batch in self._batches(pieces):
            numbers = torch.tensor([piece.document for piece in batch])
            nats.index_add_(0, numbers, self._nats_in_memory(batch))
        for ids, (all_nats, of_new) in zip(documents, (nats / math.log(2)).tolist(), strict=True):
            yield Bits(len(ids) - 1, all_nats, of_new)

    def _batches(self, pieces: list["_Piece"]) -> Iterator[list["_Piece"]]:
        """Batches of windows of similar length; longest first: out of memory at once or never."""
        batch: list[_Piece] = []
        for piece in sorted(pieces, key=lambda piece: -len(piece.ids)):
            if batch and (len(batch) + 1) * len(batch[0].ids) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(piece)
        if batch:
            yield batch

    def _nats_in_memory(self, batch: Sequence["_Piece"]) -> torch.Tensor:
        """As `_nats`, on the CPU; in smaller batches from here on where memory does not suffice.

        Raises:
            UserError: it does not suffice for one window.
        """
        try:
            return self._nats(batch).cpu()
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UserError(memory_sentence(len(batch[0].ids))) from None
        half = (len(batch) + 1) // 2
        self._batch_tokens = half * len(batch[0].ids)
        log_rank_zero(f"memory does not suffice: batches of {self._batch_tokens:,} tokens from here on")
        return torch.cat([self._nats_in_memory(batch[:half]), self._nats_in_memory(batch[half:])])

    @torch.inference_mode()
    @attention_without_plans()
    def _nats(self, batch: Sequence["_Piece"]) -> torch.Tensor:
        """Nats of each window, and of them those of new tokens: fp64 [windows, 2]."""
        length = len(batch[0].ids)
        # Padding on the right needs no mask: no token attends to what follows.
        ids = torch.tensor([[*piece.ids, *[0] * (length - len(piece.ids))] for piece in batch], device=self._device)
        first, end = torch.tensor([[piece.first, len(piece.ids)] for piece in batch], device=self._device).T[:, :, None]
        place = torch.arange(1, length, device=self._device)
        row, column = ((first <= place) & (place < end)).nonzero(as_tuple=True)
        targets = ids[row, column + 1]
        nats = torch.zeros(len(batch), 2, dtype=torch.float64, device=self._device)
        for begin, logits in self._logits(ids, row, column):
            chosen = slice(begin, begin + len(logits))
            nats.index_add_(0, row[chosen], self._token_nats(logits, targets[chosen]).double())
        return nats

    def _logits(self, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the logits after the chosen tokens in fp32, in chunks with their first index."""
        if self._has_plain_output:
            values = self._model.model(input_ids=ids, use_cache=False)[0]
            output = self._model.lm_head
        else:
            values, output = self._model(input_ids=ids, use_cache=False).logits, torch.nn.Identity()
        size = max(1, _CHUNK_LOGITS // self._model.config.get_text_config().vocab_size)
        for begin in range(0, len(row), size):
            chosen = slice(begin, begin + size)
            yield begin, output(values[row[chosen], column[chosen]]).float()

    def _token_nats(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Nats of tokens, and of them those of new tokens: fp32 [tokens, 2]."""
        logits -= logits.amax(-1, keepdim=True)  # a likely token is the difference of small numbers
        total = logits.logsumexp(-1)
        nats = total - logits.gather(1, targets[:, None])[:, 0]
        of_new = torch.zeros_like(nats)
        if self._known is not None:
            of_new = torch.where(targets < self._known, total - logits[:, : self._known].logsumexp(-1), 0)
        return torch.stack([nats, of_new], dim=1)


@dataclass(frozen=True)
class _Piece:
    """A window: number of its document, its ids, and the place of the first that is scored."""

    document: int
    ids: Sequence[int]
    first: int
