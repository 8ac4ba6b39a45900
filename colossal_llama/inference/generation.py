"""Generates text from token ids: streamed, with a key-value cache kept between prompts."""

import inspect
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from colossal_llama.inference.arguments import Sampling
from colossal_llama.model.rope import unscaled_length_tokens
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REPLACEMENT = "\ufffd"  # bytes that form no whole character decode to it


@dataclass
class Completion:
    """Text generated so far, or in full once `finish_reason` is set.

    Attributes:
        prompt_tokens: length of the prompt.
        text: whole characters only; bytes of one cut off by the token limit are left out.
        token_ids: generated ids, with the stop token if one ended the text.
        finish_reason: "end" at a stop token, "length" at the token limit or at the model's last
            position; None until then.
        reused_tokens: tokens of the prompt whose keys and values were in the cache.
        duration_s: wall time, with the forward pass over the prompt (prefill).
    """

    prompt_tokens: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    reused_tokens: int = 0
    duration_s: float = 0.0


class Answer(Iterator[str]):
    """An answer that is being generated: an iterator of pieces of text of whole characters.

    Each step of the iterator runs the model until the next piece is there. Closing it ends the
    generation and frees its keys and values, as does the last reference's end: in
    `for piece in model.stream(text)`, a `break` does.

    Attributes:
        pieces: the generator behind it.
        completion: what has been generated so far.
    """

    def __init__(self, pieces: Generator[str, None, None], completion: Completion):
        self.pieces, self.completion = pieces, completion

    def __next__(self) -> str:
        return next(self.pieces)

    def close(self) -> None:
        """Ends the generation; what has been generated stays in `completion`."""
        self.pieces.close()

    def finish(self) -> Completion:
        """Generates the rest and returns the whole."""
        for _ in self.pieces:
            pass
        return self.completion


class StreamingDecoder:
    """Decodes token ids one by one into text of whole characters.

    A character may be spread over several tokens (LLaMA-2's byte tokens, LLaMA-3's byte-level
    ones). Text is returned when the ids so far decode to whole characters. Decoding begins a few
    ids back, since LLaMA-2 drops the space of a first ▁:

        ids       … 学 <0xE9> <0xBE> <0x98>
        returned  … 学                   龘
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._backend = tokenizer.backend_tokenizer
        # An id before the first, so that the first one is decoded as a continuation.
        self._ids: list[int] = [token.id for token in self._backend.model.tokenize("a")]
        self._window_start = 0
        self._returned = len(self._ids)  # ids whose text has been returned

    def push(self, token_id: int) -> str:
        """Returns the text that this id completes: often a word or character, sometimes nothing."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._window_start : self._returned])
        after = self._decode(self._ids[self._window_start :])
        if after.endswith(_REPLACEMENT) or len(after) <= len(before):
            return ""
        self._window_start, self._returned = self._returned, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        # Not tokenizer.decode: LLaMA-3 sets clean_up_tokenization_spaces, and " ." becomes ".".
        return self._backend.decode(ids, skip_special_tokens=True)


class TextGenerator:
    """Generates from prompts one after the other.

    Keys and values of the prefix that a prompt shares with the one before stay in the cache. An
    answer takes the cache with it and gives it back at its end: one that begins meanwhile has its
    own.
    """

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerFast"):
        """Prepares generation.

        Args:
            model: a causal language model (also a `PeftModel`) in evaluation mode.
            tokenizer: the model's tokenizer.
        """
        self._model, self._tokenizer = model, tokenizer
        self.max_positions: int = model.config.max_position_embeddings
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        can_skip = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self._forward_options = {"logits_to_keep": 1} if can_skip else {}
        self._kept: deque[_Cache] = deque(maxlen=1)  # whose pop and append are atomic among threads
        limit_tokens = unscaled_length_tokens(model.config)
        # Keys in the cache may have been rotated by the frequencies of another length.
        self._may_reuse_cache = limit_tokens is None or limit_tokens >= self.max_positions

    def random_source(self, seed: int | None) -> torch.Generator:
        """Returns a random generator on the model's device; without a seed, its own is random."""
        source = torch.Generator(self._model.device)
        source.seed() if seed is None else source.manual_seed(seed)
        return source

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Checks that a prompt leaves a position for an answer.

        Raises:
            UserError: the prompt is empty, or fills all positions of the model.
        """
        if not prompt_ids:
            raise UserError("the prompt has no token: give a text")
        if len(prompt_ids) >= self.max_positions:
            raise UserError(
                f"the prompt has {len(prompt_ids):,} tokens, the model {self.max_positions:,} positions: shorten it"
            )

    def answer(
        self,
        prompt_ids: Sequence[int],
        stop_ids: Collection[int],
        sampling: Sampling,
        random_source: torch.Generator | None = None,
    ) -> Answer:
        """Returns the answer to one prompt, of which nothing has been generated yet.

        Args:
            prompt_ids: the whole prompt, BOS included.
            stop_ids: tokens that end an answer and are not part of its text.
            sampling: how the next token is chosen.
            random_source: draws the tokens; without it, one is made from the sampling's seed.

        Raises:
            UserError: see `check_prompt`.
        """
        self.check_prompt(prompt_ids)
        completion = Completion(len(prompt_ids))
        source = random_source or self.random_source(sampling.seed)
        return Answer(self._pieces(list(prompt_ids), frozenset(stop_ids), sampling, source, completion), completion)

    def _pieces(
        self,
        prompt_ids: list[int],
        stop_ids: frozenset[int],
        sampling: Sampling,
        random_source: torch.Generator,
        completion: Completion,
    ) -> Generator[str, None, None]:
        """Generates token by token, yields what becomes text, and keeps `completion` up to date."""
        started = time.monotonic()
        cache = self._take_cache(prompt_ids)
        completion.reused_tokens = len(cache.ids)
        decoder, choice = StreamingDecoder(self._tokenizer), _logits_processors(sampling)
        new_ids = prompt_ids[len(cache.ids) :]
        limit_tokens = min(sampling.max_new_tokens, self.max_positions - len(prompt_ids))
        try:
            while completion.finish_reason is None:
                token_id = self._next_token(new_ids, cache, choice, random_source if sampling.do_sample else None)
                new_ids = [token_id]
                completion.token_ids.append(token_id)
                completion.duration_s = time.monotonic() - started
                text = "" if token_id in stop_ids else decoder.push(token_id)
                completion.text += text
                if token_id in stop_ids:
                    completion.finish_reason = "end"
                elif len(completion.token_ids) == limit_tokens:
                    completion.finish_reason = "length"
                if text:
                    yield text
        except GeneratorExit:  # closed early: its keys and values go with it
            raise
        except BaseException:  # Ctrl-C: the next prompt probably begins like this one
            self._kept.append(cache)
            raise
        self._kept.append(cache)

    def _take_cache(self, prompt_ids: list[int]) -> "_Cache":
        """Takes the cache, cropped to the prompt's prefix; one token at least is computed."""
        try:
            kept = self._kept.pop()
        except IndexError:
            return _Cache()
        limit = min(len(kept.ids), len(prompt_ids) - 1) if self._may_reuse_cache else 0
        common = next((i for i in range(limit) if kept.ids[i] != prompt_ids[i]), limit)
        if common == 0:
            return _Cache()
        kept.crop(common)
        return kept

    @torch.inference_mode()  # here, so that it does not reach the code that the pieces are yielded to
    def _next_token(
        self, new_ids: list[int], cache: "_Cache", choice: LogitsProcessorList, random_source: torch.Generator | None
    ) -> int:
        """Runs the model over new ids, whose keys and values enter the cache; chooses the next.

        Args:
            new_ids: ids after those in the cache.
            cache: of the ids before.
            choice: changes the logits before sampling.
            random_source: samples; None takes the most probable token.
        """
        inputs = torch.tensor([new_ids], device=self._model.device)
        output = self._model(
            input_ids=inputs, past_key_values=cache.keys_and_values, use_cache=True, **self._forward_options
        )
        cache.ids.extend(new_ids)
        logits = choice(inputs, output.logits[:, -1].float())
        if random_source is None:
            return int(logits.argmax(-1))
        return int(torch.multinomial(logits.softmax(-1), num_samples=1, generator=random_source))


@dataclass
class _Cache:
    """Keys and values of ids that have been through the model."""

    ids: list[int] = field(default_factory=list)
    keys_and_values: DynamicCache = field(default_factory=DynamicCache)

    def crop(self, length_tokens: int) -> None:
        """Keeps the first ids; an interrupted forward pass has left more in some layers."""
        del self.ids[length_tokens:]
        layers = getattr(self.keys_and_values, "layers", None)
        if layers is None:
            self.keys_and_values.crop(length_tokens)
            return
        for layer in layers:  # transformers 5 takes the number of tokens to remove, as a negative number
            layer.crop(length_tokens - layer.get_seq_length())


def _logits_processors(sampling: Sampling) -> LogitsProcessorList:
    """Returns the processors that transformers' `generate` has for these settings, in its order."""
    processors = LogitsProcessorList()
    if sampling.do_sample and sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.do_sample and sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.do_sample and sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors
