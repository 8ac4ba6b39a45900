"""Opens a model for inference and generates from token ids: streamed as text, keys and values kept between calls."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from colossal_llama.model.loading import load_complete_model
from colossal_llama.model.weights.adapter_files import adapter_base_path, is_adapter
from colossal_llama.model.weights.weight_files import check_safetensors
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_REPLACEMENT = "\ufffd"  # what bytes that are no (whole) character decode to


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedy when `do_sample` is false. `top_k` 0 and `top_p` 1 are off."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Answer:
    """What was generated.

    Attributes:
        text: whole characters only; bytes of one cut off by the token limit are left out.
        token_ids: with the stop token, if one ended it.
        stopped: "end" at a stop token, "length" at the token limit or at the end of the model's positions.
        prompt_tokens: length of the prompt, of which `reused_tokens` had their keys and values already.
        seconds: the prompt's pass included.
    """

    text: str
    token_ids: list[int]
    stopped: str
    prompt_tokens: int
    reused_tokens: int
    seconds: float


def find_model(name: str) -> Path:
    """The directory of a model: `name` itself, or the local copy of a hub model (downloaded when it is not there yet).

    Raises:
        UserError: it is no directory, and no hub model that can be had.
    """
    if Path(name).is_dir():
        return Path(name)
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists()
    if looks_like_a_path:
        raise UserError(f"--model_path {name} is not a directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model_path {name} is neither a directory nor a model of the Hugging Face hub that can be reached: "
            f"{reason}"
        ) from error


def load_for_inference(directory: Path, dtype: str, device: torch.device) -> tuple[Any, PreTrainedTokenizerFast]:
    """Loads a model directory, or a peft adapter on the base model that its adapter_config.json names.

    Args:
        dtype: "auto" (as stored), "float32", "float16" or "bfloat16".

    Returns:
        The model on `device`, in evaluation mode, and its tokenizer (an adapter's own, if it has
            one).

    Raises:
        UserError: model, base model or tokenizer cannot be loaded.
    """
    adapter = directory if is_adapter(directory) else None
    base = _base_of(adapter) if adapter else directory
    has_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(directory if has_tokenizer else base)
    if not (base / "config.json").is_file():
        raise UserError(f"{base} holds no model: config.json is not there")
    check_safetensors(base)
    try:
        torch_dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
        model = load_complete_model(AutoModelForCausalLM, base, torch_dtype=torch_dtype, device_map={"": device})
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model in {directory} cannot be loaded: {error}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer):,} tokens, the model in {base} rows for {rows:,} only")
    return model.eval(), tokenizer


def _base_of(adapter: Path) -> Path:
    base = adapter_base_path(adapter)
    try:
        return find_model(str(base))
    except UserError as error:
        raise UserError(
            f"the base model of the adapter {adapter}, base_model_name_or_path in its adapter_config.json, cannot be "
            "found: "
            f"{base}"
        ) from error


class StreamingDecoder:
    """Turns token ids into text as they come, never giving out half a character.

    A character may be spread over several tokens (LLaMA-2's byte pieces, LLaMA-3's byte-level
    ones). Text is given out when the ids so far decode to whole characters. Decoding begins a few
    ids back, since LLaMA-2 drops the space of a first ▁:

        ids     … 学 <0xE9> <0xBE> <0x98>
        gives   … 学                   龘
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = tokenizer.backend_tokenizer
        # An id before the first, so that the first is decoded as one that follows text.
        self._ids: list[int] = [token.id for token in self._backend.model.tokenize("a")]
        self._window_start = 0
        self._given = len(self._ids)  # ids whose text has been given out

    def push(self, token_id: int) -> str:
        """The text that has become whole with this id, often one word or character, sometimes nothing."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._window_start : self._given])
        after = self._decode(self._ids[self._window_start :])
        if after.endswith(_REPLACEMENT) or len(after) <= len(before):
            return ""
        self._window_start, self._given = self._given, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        # Not tokenizer.decode: with clean_up_tokenization_spaces, as LLaMA-3 has it, " ." becomes
        # ".".
        return self._backend.decode(ids, skip_special_tokens=True)


class _TextStreamer(BaseStreamer):
    """What `generate` calls: first with the prompt, then with every new token."""

    def __init__(self, decoder: StreamingDecoder, stop_ids: Collection[int], on_text: Callable[[str], Any]):
        self._decoder, self._stop_ids, self._on_text = decoder, stop_ids, on_text
        self._is_prompt = True
        self.pieces: list[str] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt [1, length] (once) or a token [1]."""
        if self._is_prompt:
            self._is_prompt = False
            return
        token_id = int(value.reshape(-1)[0])
        text = "" if token_id in self._stop_ids else self._decoder.push(token_id)
        if text:
            self.pieces.append(text)
            self._on_text(text)

    def end(self) -> None:
        """Nothing is held back but bytes that never became a character."""


class TextGenerator:
    """Generates from prompts one after the other; what a prompt shares with the one before is not computed again."""

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
            stop_ids: tokens that end an answer and are not part of its text.
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
        self._cache, self._cached_ids = DynamicCache(), []

    def generate(self, prompt_ids: Sequence[int], on_text: Callable[[str], Any] = lambda text: None) -> Answer:
        """Generates one answer.

        Args:
            prompt_ids: the whole prompt, BOS included.
            on_text: called with every piece of text as it becomes whole.

        Raises:
            UserError: the prompt fills all positions that the model has.
        """
        room = self.max_positions - len(prompt_ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(prompt_ids):,} tokens, the model {self.max_positions:,} positions: shorten it"
            )
        started = time.monotonic()
        reused = self._keep_common_prefix(prompt_ids)
        streamer = _TextStreamer(StreamingDecoder(self._tokenizer), self._stop_ids, on_text)
        generated = self._run(prompt_ids, min(self._max_new_tokens, room), streamer)
        return Answer(
            text="".join(streamer.pieces),
            token_ids=generated,
            stopped="end" if generated[-1] in self._stop_ids else "length",
            prompt_tokens=len(prompt_ids),
            reused_tokens=reused,
            seconds=time.monotonic() - started,
        )

    def _keep_common_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Cuts the cache down to what the prompt begins with; one token at least is left to compute."""
        limit = min(len(self._cached_ids), len(prompt_ids) - 1)
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
        # Should this be interrupted, what has come into the cache beyond _cached_ids is cut off by
        # the next call.
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


def stop_ids_of(model: Any, tokenizer: PreTrainedTokenizerFast, *more: int) -> set[int]:
    """The tokens that end an answer: the tokenizer's EOS, the generation config's (LLaMA-3 names several), and
    `more`.
    """
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *listed, *more}
