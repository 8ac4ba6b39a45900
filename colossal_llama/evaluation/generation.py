"""Greedy answers to many prompts at once, each as if it were alone.

Prompts that share a prefix are one batch behind its keys and values, without padding in the prompt
(`PackedModel`). Each row has its own positions, and rows that have ended leave the batch.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from colossal_llama.evaluation.packed_model import PackedModel
from colossal_llama.evaluation.prefix_groups import PrefixGroup, prefix_groups, token_batches
from colossal_llama.evaluation.prompts import PromptEncoder
from colossal_llama.evaluation.scoring import default_tokens_per_batch, memory_explained, memory_sentence
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.model.pretrained import stop_token_ids
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STEPS_BETWEEN_CHECKS = 8
"""Tokens that are generated before the host looks which rows have ended, and the device waits."""
_MAX_ROWS = 256
_HOST_CACHE_BYTES = 1 << 30
_DEVICE_CACHE_SHARE = 0.4
"""Of the free memory, for keys and values of a batch."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """A greedy answer.

    Attributes:
        index: of the prompt.
        text: without the stop text and what follows it, control tokens, and white space around it.
        tokens: number of generated tokens, a stop token aside.
        logits: of the wanted tokens at the first position after the prompt.
    """

    index: int
    text: str
    tokens: int
    logits: list[float]


class AnswerGenerator:
    """Generates greedy answers in batches."""

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerFast", tokens_per_batch: int | None = None):
        """Prepares a causal language model in evaluation mode.

        Args:
            model: also a `PeftModel` with LoRA.
            tokenizer: the model's.
            tokens_per_batch: see `Scorer`.
        """
        self._model = PackedModel(model)
        self._alone = TextGenerator(model, tokenizer)
        self._encoder = PromptEncoder(tokenizer)
        self._stop_ids = frozenset(stop_token_ids(model, tokenizer))
        self._tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self._model.device)
        self._most_rows = _MAX_ROWS

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_texts: Sequence[str] = (),
        token_ids: Sequence[int] = (),
    ) -> Iterator[GeneratedAnswer]:
        """Yields the answers, in the order in which they end.

        Args:
            prompts: token ids, BOS included.
            max_new_tokens: of an answer; fewer where the model has no more positions.
            stop_texts: end an answer.
            token_ids: tokens whose logits behind the prompt are wanted.

        Raises:
            UserError: a prompt has no token, or leaves no position for an answer.
        """
        self._model.check_lengths([len(prompt) + 1 if prompt else 0 for prompt in prompts])
        wanted = _Wanted(max_new_tokens, tuple(stop_texts), list(token_ids), self._stop_ids, self._encoder)
        packable = [index for index, prompt in enumerate(prompts) if self._model.can_pack(len(prompt) + max_new_tokens)]
        min_saved_tokens = self._model.min_saved_tokens(max_new_tokens)
        for group in prefix_groups([list(prompts[index]) for index in packable], min_saved_tokens):
            yield from self._group_answers(group, packable, prompts, wanted)
        self._model.drop_prefix()
        for index in sorted(set(range(len(prompts))) - set(packable)):
            with memory_explained(len(prompts[index])):
                yield self._answer_alone(index, list(prompts[index]), wanted)

    def _group_answers(
        self, group: PrefixGroup, packable: Sequence[int], prompts: Sequence[Sequence[int]], wanted: "_Wanted"
    ) -> Iterator[GeneratedAnswer]:
        """Answers to prompts of one prefix, batch by batch."""
        prefix_tokens = len(group.prefix)
        with memory_explained(prefix_tokens):
            self._model.set_prefix(group.prefix)
        indices = [packable[member] for member in group.members]
        while indices:
            longest = len(prompts[indices[0]]) - prefix_tokens
            batch = indices[: self._rows_that_fit(longest + wanted.max_new_tokens)]
            parts = [list(prompts[index][prefix_tokens:]) for index in batch]
            try:
                # A list, and no name for the rows: their memory is free before the next are made.
                answers = list(self._decoded(self._prefilled(parts, batch, wanted), wanted))
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise UserError(memory_sentence(len(prompts[batch[0]]))) from None
                self._most_rows = len(batch) // 2
                self._tokens_per_batch = max(1, self._tokens_per_batch // 2)
                log_rank_zero(f"memory does not suffice: batches of {self._most_rows} answers from here on")
                continue
            yield from answers
            del indices[: len(batch)]

    def _rows_that_fit(self, capacity_tokens: int) -> int:
        """Number of rows whose keys and values of so many tokens fit into memory."""
        device = self._model.device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            available = int(free * _DEVICE_CACHE_SHARE)
        else:
            available = _HOST_CACHE_BYTES
        fitting = available // (capacity_tokens * self._model.cache_bytes_per_token())
        return max(1, min(self._most_rows, fitting))

    def _prefilled(self, parts: Sequence[list[int]], indices: Sequence[int], wanted: "_Wanted") -> "_Rows":
        """Runs the prompts and returns their rows, each with its first token."""
        lengths = [len(part) for part in parts]
        rows = _Rows(list(indices), lengths, capacity=lengths[0] + wanted.max_new_tokens)
        for batch in token_batches(lengths, self._tokens_per_batch):
            chosen = parts[batch]
            places = [end - 1 for end in itertools.accumulate(map(len, chosen))]
            logits = self._model.forward(chosen, places, rows.writer(batch, self._model.device))
            rows.add_first(logits, torch.tensor(wanted.token_ids, device=logits.device, dtype=torch.long))
        return rows

    def _decoded(self, rows: "_Rows", wanted: "_Wanted") -> Iterator[GeneratedAnswer]:
        """Generates until all rows have ended."""
        generated = [torch.cat(rows.first)]
        columns = torch.tensor(rows.lengths, device=generated[0].device)
        step = 1
        while True:
            if step == wanted.max_new_tokens or len(generated) == _STEPS_BETWEEN_CHECKS:
                rows.extend(torch.stack(generated).T.tolist())
                kept = []
                for row in range(len(rows.indices)):
                    answer = wanted.answer(rows, row, is_last=step == wanted.max_new_tokens)
                    if answer is None:
                        kept.append(row)
                    else:
                        yield answer
                if not kept:
                    return
                if len(kept) < len(rows.indices):
                    chosen = torch.tensor(kept, device=columns.device)
                    rows.keep(kept, chosen)
                    columns, generated = columns[chosen], [generated[-1][chosen]]
                last, generated = generated[-1], []
            else:
                last = generated[-1]
            length = max(rows.lengths) + step
            logits = self._model.decode(last, columns, length, rows.keys, rows.values)
            generated.append(logits.argmax(-1))
            columns = columns + 1
            step += 1

    def _answer_alone(self, index: int, prompt: list[int], wanted: "_Wanted") -> GeneratedAnswer:
        """Answers a prompt that cannot be packed, as inference does."""
        logits = self._model.forward_alone(prompt, 1)[0, wanted.token_ids].float().tolist() if wanted.token_ids else []
        sampling = Sampling(do_sample=False, max_new_tokens=wanted.max_new_tokens)
        with self._model.plain_attention():
            completion = self._alone.answer(prompt, self._stop_ids, sampling).finish()
        ids = completion.token_ids
        ids = ids[:-1] if ids and ids[-1] in self._stop_ids else ids
        return GeneratedAnswer(index, wanted.cut(self._encoder.decode(ids)), len(ids), logits)


@dataclass
class _Rows:
    """The prompts of a batch that have not ended, with their keys and values behind the prefix."""

    indices: list[int]
    lengths: list[int]
    capacity: int
    tokens: list[list[int]] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    first: list[torch.Tensor] = field(default_factory=list)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = [[] for _ in self.indices]

    def writer(self, batch: slice, device: torch.device) -> Any:
        """Returns a function that stores a layer's keys and values of some rows."""
        lengths = self.lengths[batch]
        row = torch.tensor(
            [batch.start + at for at, length in enumerate(lengths) for _ in range(length)], device=device
        )
        column = torch.tensor([place for length in lengths for place in range(length)], device=device)

        def write(layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
            for store, states in ((self.keys, key), (self.values, value)):
                if layer not in store:  # zeros: what is not written yet has weight 0, and NaN would stay NaN
                    store[layer] = states.new_zeros(len(self.indices), states.shape[1], self.capacity, states.shape[2])
                store[layer][row, :, column] = states

        return write

    def add_first(self, logits: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Adds what the prompts of the next rows gave."""
        self.first.append(logits.argmax(-1))
        self.logits += logits[:, token_ids].float().tolist()

    def extend(self, more: Sequence[Sequence[int]]) -> None:
        """Adds generated tokens of each row."""
        for tokens, added in zip(self.tokens, more, strict=True):
            tokens.extend(added)

    def keep(self, kept: Sequence[int], chosen: torch.Tensor) -> None:
        """Keeps some rows; `chosen` is `kept` on the device."""
        self.indices, self.lengths = [self.indices[row] for row in kept], [self.lengths[row] for row in kept]
        self.tokens, self.logits = [self.tokens[row] for row in kept], [self.logits[row] for row in kept]
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer][chosen]


@dataclass(frozen=True)
class _Wanted:
    """Settings of the answers: how long they get, and where they end."""

    max_new_tokens: int
    stop_texts: tuple[str, ...]
    token_ids: list[int]
    stop_ids: Collection[int]
    encoder: PromptEncoder

    def answer(self, rows: _Rows, row: int, is_last: bool) -> GeneratedAnswer | None:
        """The answer of a row that has ended; None if it goes on."""
        tokens = rows.tokens[row]
        stop = next((at for at, token in enumerate(tokens) if token in self.stop_ids), None)
        if stop is None and not is_last and not self.stop_texts:
            return None
        ids = tokens[:stop]
        text = self.encoder.decode(ids)
        if stop is None and not is_last and not any(end in text.lstrip() for end in self.stop_texts):
            return None
        return GeneratedAnswer(rows.indices[row], self.cut(text), len(ids), rows.logits[row])

    def cut(self, text: str) -> str:
        """The text before the first stop text, of those behind the white space at its beginning."""
        text = text.lstrip()
        ends = [text.find(stop) for stop in self.stop_texts if stop in text]
        return text[: min(ends, default=len(text))].rstrip()
