"""Scores what follows prompts: logits of the next token, log-likelihoods of continuations.

Each prompt goes through the model once, and only as far as it differs from others. The prefix that
several share is computed once (`prefix_groups`); the rest is packed into batches by tokens, without
padding (`PackedModel`). Logits are computed after the prompts alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from colossal_llama.evaluation.packed_model import PackedModel
from colossal_llama.evaluation.prefix_groups import PrefixGroup, prefix_groups, token_batches
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

GPU_TOKENS_PER_BATCH = 16_384
CPU_TOKENS_PER_BATCH = 4_096
"""Enough for matrix products to be at full speed; more only takes memory."""


@dataclass(frozen=True)
class LogLikelihood:
    """Score of a continuation.

    Attributes:
        index: of the prompt.
        total: sum of the log-probabilities of the continuation's tokens, in nats.
        tokens: number of them.
        is_greedy: True where each is the most probable one.
    """

    index: int
    total: float
    tokens: int
    is_greedy: bool


class Scorer:
    """Scores prompts by a model, in batches.

    Results come in an order of their own (by prefix, then longest first) that the prompts alone
    determine. In fp32 they depend on the batch by rounding only; in half precision by as much as
    the logits are rounded.

    Attributes:
        model: it.
        tokens_per_batch: of a forward pass, as far as memory has sufficed.
    """

    def __init__(self, model: Any, tokens_per_batch: int | None = None):
        """Prepares a causal language model in evaluation mode.

        Args:
            model: also a `PeftModel` with LoRA.
            tokens_per_batch: of a forward pass, the shared prefix aside; None: by the device. It is
                halved whenever memory does not suffice.
        """
        self.model = model
        self._packed = PackedModel(model)
        self.tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self._packed.device)
        if reason := self._packed.slow_attention_reason():
            log_rank_zero(f"attention is computed prompt by prompt, which is slower: {reason}")

    def next_token_logits(
        self, prompts: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[float]]]:
        """Yields each prompt's index and the logits of some tokens at the position after it.

        Args:
            prompts: token ids, BOS included.
            token_ids: the tokens.

        Raises:
            UserError: a prompt is longer than the model has positions.
        """
        wanted = torch.tensor(token_ids, device=self._packed.device)
        lasts = [1] * len(prompts)
        waiting: tuple[tuple[int, ...], torch.Tensor] | None = None
        for members, logits in self._last_logits([list(prompt) for prompt in prompts], lasts):
            found = (members, logits[:, wanted].float())
            if waiting:  # the device computes the next batch while this one's results are read
                yield from zip(waiting[0], waiting[1].tolist(), strict=True)
            waiting = found
        if waiting:
            yield from zip(waiting[0], waiting[1].tolist(), strict=True)

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Iterator[LogLikelihood]:
        """Yields the log-likelihood of each continuation behind its prompt.

        Continuations that differ in their last token share one pass.

        Args:
            prompts: token ids, BOS included; the same prompt may come several times.
            continuations: token ids, one at least, of each.

        Raises:
            UserError: a prompt with its continuation is longer than the model has positions.
        """
        pairs_of: dict[tuple[int, ...], list[int]] = {}
        for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            pairs_of.setdefault((*prompt, *continuation[:-1]), []).append(index)
        sequences = list(pairs_of)
        lasts = [max(len(continuations[index]) for index in pairs_of[sequence]) for sequence in sequences]
        for members, logits in self._last_logits([list(sequence) for sequence in sequences], lasts):
            begin = 0
            for member in members:
                end = begin + lasts[member]
                log_probabilities = logits[begin:end].float().log_softmax(-1)
                for index in pairs_of[sequences[member]]:
                    yield _log_likelihood(index, log_probabilities, continuations[index])
                begin = end

    def _last_logits(
        self, sequences: Sequence[list[int]], lasts: Sequence[int]
    ) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
        """Yields indices of a batch's sequences and, one after the other, their last logits."""
        self._packed.check_lengths([len(sequence) for sequence in sequences])
        packable = [index for index, sequence in enumerate(sequences) if self._packed.can_pack(len(sequence))]
        # A sequence's wanted logits are all behind the prefix.
        heads = [sequences[index][: len(sequences[index]) - lasts[index] + 1] for index in packable]
        for group in prefix_groups(heads, self._packed.min_saved_tokens()):
            yield from self._group_logits(group, packable, sequences, lasts)
        self._packed.drop_prefix()
        for index in sorted(set(range(len(sequences))) - set(packable)):
            with memory_explained(len(sequences[index])):
                logits = self._packed.forward_alone(sequences[index], lasts[index])
            yield (index,), logits

    def _group_logits(
        self, group: PrefixGroup, packable: Sequence[int], sequences: Sequence[list[int]], lasts: Sequence[int]
    ) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
        """As `_last_logits`, for sequences of one prefix."""
        prefix_tokens = len(group.prefix)
        with memory_explained(prefix_tokens):
            self._packed.set_prefix(group.prefix)
        indices = [packable[member] for member in group.members]
        while indices:
            lengths = [len(sequences[index]) - prefix_tokens for index in indices]
            batch = tuple(indices[next(token_batches(lengths, self.tokens_per_batch))])
            try:
                logits = self._batch_logits([sequences[index][prefix_tokens:] for index in batch], batch, lasts)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise UserError(memory_sentence(len(sequences[batch[0]]))) from None
                self.tokens_per_batch = sum(lengths[: len(batch)]) // 2
                log_rank_zero(f"memory does not suffice: batches of {self.tokens_per_batch:,} tokens from here on")
                continue
            yield batch, logits
            del indices[: len(batch)]

    def _batch_logits(self, parts: Sequence[list[int]], batch: Sequence[int], lasts: Sequence[int]) -> torch.Tensor:
        """Logits of the last tokens of each part."""
        places: list[int] = []
        end = 0
        for index, part in zip(batch, parts, strict=True):
            end += len(part)
            places.extend(range(end - lasts[index], end))
        return self._packed.forward(parts, places)


def default_tokens_per_batch(device: torch.device) -> int:
    """Tokens of a forward pass on a device."""
    return GPU_TOKENS_PER_BATCH if device.type == "cuda" else CPU_TOKENS_PER_BATCH


def _log_likelihood(index: int, log_probabilities: torch.Tensor, continuation: Sequence[int]) -> LogLikelihood:
    """Reads a continuation's score from log-probabilities whose last row is of its last token."""
    rows = log_probabilities[-len(continuation) :]
    ids = torch.tensor(continuation, device=rows.device)
    found = rows.gather(1, ids[:, None]).sum()
    return LogLikelihood(index, float(found), len(continuation), bool((rows.argmax(-1) == ids).all()))


@contextmanager
def memory_explained(length_tokens: int) -> Iterator[None]:
    """Explains that memory does not suffice for one sequence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(memory_sentence(length_tokens)) from None


def memory_sentence(length_tokens: int) -> str:
    """Says that memory does not suffice for one prompt, and what to do."""
    return (
        f"the device's memory does not suffice for one prompt of {length_tokens:,} tokens: give a smaller "
        "--max_length, --dtype bf16, or a device with more memory"
    )
