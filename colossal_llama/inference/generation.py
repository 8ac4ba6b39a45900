"""Generates text from token ids: streamed, with a key-value cache kept between prompts."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from colossal_llama.model.rope import unscaled_length_tokens
from colossal_llama.utils.errors import UserError

_REPLACEMENT = "\ufffd"  # bytes that form no whole character decode to it


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters: greedy decoding without `do_sample`; `top_k` 0 and `top_p` 1 are off."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Completion:
    """Generated text.

    Attributes:
        text: whole characters only; bytes of one cut off by the token limit are left out.
        token_ids: generated ids, with the stop token if one ended the text.
        finish_reason: "end" at a stop token, "length" at the token limit or at the model's last
            position.
        prompt_tokens: length of the prompt.
        reused_tokens: tokens of the prompt whose keys and values were in the cache.
        duration_s: wall time, with the forward pass over the prompt (prefill).
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    duration_s: float


class StreamingDecoder:
    """Decodes token ids one by one into text of whole characters.

    A character may be spread over several tokens (LLaMA-2's byte tokens, LLaMA-3's byte-level
    ones). Text is returned when the ids so far decode to whole characters. Decoding begins a few
    ids back, since LLaMA-2 drops the space of a first ▁:

        ids       … 学 <0xE9> <0xBE> <0x98>
        returned  … 学                   龘
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
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


class _TextStreamer(BaseStreamer):
    """Receives the prompt and then every new token from transformers' `generate`."""

    def __init__(self, decoder: StreamingDecoder, stop_ids: Collection[int], on_text: Callable[[str], Any]):
        self._decoder, self._stop_ids, self._on_text = decoder, stop_ids, on_text
        self._is_prompt = True
        self.pieces: list[str] = []

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt [1, length] (once) or a token [1]."""
        if self._is_prompt:
            self._is_prompt = False
            return
        token_id = int(value.reshape(-1)[0])
        text = "" if token_id in self._stop_ids else self._decoder.push(token_id)
        if text:
            self.pieces.append(text)
            self._on_text(text)

    def end(self) -> None:
        """Does nothing: only bytes that never became a character are left."""


class TextGenerator:
    """Generates from prompts one after the other.

    Keys and values of the prefix that a prompt shares with the one before stay in the cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        stop_ids: Collection[int],
        sampling: Sampling,
        max_new_tokens: int,
    ):
        """Prepares generation.

        Args:
            model: a causal language model (also a `PeftModel`) in evaluation mode.
            tokenizer: the model's tokenizer.
            stop_ids: tokens that end an answer and are not part of its text.
            sampling: how the next token is chosen.
            max_new_tokens: the most tokens of one answer.
        """
        self._model, self._tokenizer = model, tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._max_new_tokens = max_new_tokens
        self.max_positions: int = model.config.max_position_embeddings
        choice = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p") if sampling.do_sample}
        self._config = GenerationConfig(
            do_sample=sampling.do_sample,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=min(self._stop_ids),  # never used: one sequence has no padding
            **choice,
        )
        self._cache = DynamicCache()
        self._cached_ids: list[int] = []
        limit_tokens = unscaled_length_tokens(model.config)
        # Keys in the cache may have been rotated by the frequencies of another length.
        self._may_reuse_cache = limit_tokens is None or limit_tokens >= self.max_positions

    def generate(self, prompt_ids: Sequence[int], on_text: Callable[[str], Any] = lambda text: None) -> Completion:
        """Generates from one prompt.

        Args:
            prompt_ids: the whole prompt, BOS included.
            on_text: called with every piece of text of whole characters.

        Raises:
            UserError: the prompt fills all positions of the model.
        """
        free_positions = self.max_positions - len(prompt_ids)
        if free_positions < 1:
            raise UserError(
                f"the prompt has {len(prompt_ids):,} tokens, the model {self.max_positions:,} positions: shorten it"
            )
        started = time.monotonic()
        reused = self._keep_common_prefix(prompt_ids)
        streamer = _TextStreamer(StreamingDecoder(self._tokenizer), self._stop_ids, on_text)
        generated = self._run(prompt_ids, min(self._max_new_tokens, free_positions), streamer)
        return Completion(
            text="".join(streamer.pieces),
            token_ids=generated,
            finish_reason="end" if generated[-1] in self._stop_ids else "length",
            prompt_tokens=len(prompt_ids),
            reused_tokens=reused,
            duration_s=time.monotonic() - started,
        )

    def _keep_common_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Crops the cache to the prompt's prefix; at least one token is left to compute."""
        limit = min(len(self._cached_ids), len(prompt_ids) - 1) if self._may_reuse_cache else 0
        common = next((i for i in range(limit) if self._cached_ids[i] != prompt_ids[i]), limit)
        if common == 0:
            self._cache = DynamicCache()
        else:
            self._cache.crop(common)
        self._cached_ids = self._cached_ids[:common]
        return common

    @torch.inference_mode()
    def _run(self, prompt_ids: Sequence[int], max_new_tokens: int, streamer: BaseStreamer) -> list[int]:
        inputs = torch.tensor([list(prompt_ids)], device=self._model.device)
        # After an interrupt, the next call crops what the cache holds beyond _cached_ids.
        output = self._model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=self._config,
            max_new_tokens=max_new_tokens,
            past_key_values=self._cache,
            streamer=streamer,
            use_model_defaults=False,  # else the model's generation_config.json would override silently
        )
        ids = output[0].tolist()
        self._cached_ids = ids[: self._cache.get_seq_length()]  # the last token has not been through the model
        return ids[len(prompt_ids) :]
