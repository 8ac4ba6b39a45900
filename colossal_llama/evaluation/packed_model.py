"""A model that computes many sequences behind one prefix, whose keys and values it keeps."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from colossal_llama.evaluation.prefix_groups import common_tokens
from colossal_llama.model.architectures import find_architecture, head_width, key_value_heads
from colossal_llama.model.attention.backends import attention_without_plans
from colossal_llama.model.attention.shared_prefix import (
    DecodedRows,
    KeysAndValues,
    PackedSequences,
    kernel_unavailable_reason,
    packed,
)
from colossal_llama.model.rope import unscaled_length_tokens
from colossal_llama.utils.errors import UserError

_ONE_VALUE = (1, 1, 1, 1)
"""Shape of the mask, which transformers hands down unread if it has four dimensions."""
# Tokens that cost as much time as two more passes, and as one step of generation. On a GPU a small
# pass takes as long as launching its kernels does, 32 layers as long as 1,500 tokens of 7 B.
_GPU_PASS_TOKENS, _GPU_STEP_TOKENS = 4096, 1024
_CPU_PASS_TOKENS, _CPU_STEP_TOKENS = 512, 16


class PackedModel:
    """Runs packed sequences, and single ones where the model does not allow packing.

    Attributes:
        device: where the tokens go.
        max_positions: of the model.
        prefix_tokens: length of the prefix that is set.
    """

    def __init__(self, model: Any):
        """Prepares a causal language model (also a `PeftModel` with LoRA) in evaluation mode."""
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = config = self._model.config
        self.device: torch.device = self._model.device
        self.max_positions: int = config.max_position_embeddings
        self.prefix_tokens = 0
        self._prefix_ids: list[int] = []
        self._prefix: dict[int, KeysAndValues] = {}
        self._can_select = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._is_known = find_architecture(config.model_type) is not None and self._can_select
        limits = (unscaled_length_tokens(config), getattr(config, "sliding_window", None), self.max_positions)
        self._packed_limit_tokens = min(limit for limit in limits if limit) if self._is_known else 0

    def slow_attention_reason(self) -> str | None:
        """Names the reason why a GPU computes in half precision without its kernel; None else."""
        dtype, config = self._model.dtype, self.config
        if self.device.type != "cuda" or dtype == torch.float32 or not self._packed_limit_tokens:
            return None
        heads = (config.num_attention_heads, key_value_heads(config), head_width(config))
        return kernel_unavailable_reason(self.device, dtype, *heads)

    def can_pack(self, length_tokens: int) -> bool:
        """True where a sequence's keys do not depend on its neighbours, nor a window hides any.

        Rotary embeddings of type dynamic or longrope have other frequencies for long sequences.
        """
        return length_tokens <= self._packed_limit_tokens

    def min_saved_tokens(self, steps: int = 0) -> int:
        """Tokens that a group of its own must save to be worth its forward passes.

        Args:
            steps: number of tokens that are generated, each by one more pass.
        """
        if self.device.type == "cuda":
            return _GPU_PASS_TOKENS + steps * _GPU_STEP_TOKENS
        return _CPU_PASS_TOKENS + steps * _CPU_STEP_TOKENS

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Checks that sequences have a token, and the model positions for all.

        Raises:
            UserError: says how long the longest is.
        """
        if lengths and min(lengths) < 1:
            raise UserError("a prompt has no token: the tokenizer adds no BOS, and the prompt is empty")
        if lengths and max(lengths) > self.max_positions:
            raise UserError(
                f"a prompt has {max(lengths):,} tokens, and the model {self.max_positions:,} positions "
                f"(max_position_embeddings in its config.json): give --max_length {self.max_positions} or less"
            )

    @torch.no_grad()  # not inference_mode: a buffer that it makes could not be trained with
    def set_prefix(self, ids: Sequence[int]) -> None:
        """Computes the keys and values of a prefix; those that it shares with the last are kept."""
        ids = list(ids)
        shared = common_tokens(self._prefix_ids, ids)
        self._crop(shared)
        if shared < len(ids):
            added: dict[int, KeysAndValues] = {}

            def keep(layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
                added[layer] = (key, value)

            self.forward([ids[shared:]], [-1], keep)
            self._prefix = {
                layer: _joined(self._prefix.get(layer), new) if shared else _copied(new) for layer, new in added.items()
            }
            self._prefix_ids, self.prefix_tokens = ids, len(ids)

    def cache_bytes_per_token(self) -> int:
        """Bytes that the keys and values of a token take in all layers."""
        values = self.config.num_hidden_layers * key_value_heads(self.config) * head_width(self.config)
        return 2 * values * self._model.dtype.itemsize

    def drop_prefix(self) -> None:
        """Frees the keys and values of the prefix."""
        self._crop(0)

    def _crop(self, length_tokens: int) -> None:
        self._prefix_ids, self.prefix_tokens = self._prefix_ids[:length_tokens], length_tokens
        prefix = self._prefix if length_tokens else {}
        self._prefix = {layer: (key[:length_tokens], value[:length_tokens]) for layer, (key, value) in prefix.items()}

    @torch.no_grad()
    def forward(
        self,
        sequences: Sequence[Sequence[int]],
        places: Sequence[int],
        keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Runs sequences behind the prefix, one after the other in a row.

        Args:
            sequences: tokens behind the prefix.
            places: of the row's tokens whose logits are returned.
            keep: receives each layer's keys and values, (tokens, key-value heads, width).

        Returns:
            Logits (places, vocabulary).
        """
        lengths = [len(sequence) for sequence in sequences]
        positions = [self.prefix_tokens + at for length in lengths for at in range(length)]
        ids = [token for sequence in sequences for token in sequence]
        rows = self._on_device(
            [ids, positions, [place % len(ids) for place in places] + [0] * (len(ids) - len(places))]
        )
        layout = PackedSequences(lengths, self._prefix, keep)
        return self._run(layout, rows[0], rows[1], rows[2, : len(places)])

    @torch.no_grad()
    def decode(
        self,
        ids: torch.Tensor,
        columns: torch.Tensor,
        length_tokens: int,
        keys: dict[int, torch.Tensor],
        values: dict[int, torch.Tensor],
    ) -> torch.Tensor:
        """Runs one new token for each row; see `DecodedRows`.

        Returns:
            Logits (rows, vocabulary).
        """
        layout = DecodedRows(columns, length_tokens, self._prefix, keys, values)
        everywhere = torch.arange(ids.shape[0], device=self.device)
        return self._run(layout, ids, columns + self.prefix_tokens, everywhere)

    @attention_without_plans()
    def _run(
        self, layout: PackedSequences | DecodedRows, ids: torch.Tensor, positions: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        mask = torch.zeros(_ONE_VALUE, dtype=torch.int32, device=self.device)
        with packed(self._model, layout):
            output = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=places,
            )
        return output.logits[0]

    @torch.no_grad()
    @attention_without_plans()
    def forward_alone(self, sequence: Sequence[int], last: int) -> torch.Tensor:
        """Runs one whole sequence as transformers does.

        Args:
            sequence: all of its tokens.
            last: number of last tokens whose logits are returned.

        Returns:
            Logits (last, vocabulary).
        """
        options = {"logits_to_keep": last} if self._can_select else {}
        with self.plain_attention():
            output = self._model(input_ids=self._on_device([list(sequence)]), use_cache=False, **options)
        return output.logits[0, -last:]

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Within it the model takes sequences as transformers does; in training it needs a mask."""
        before = self.config._attn_implementation
        if self._is_known:
            self.config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            self.config._attn_implementation = before

    def _on_device(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows).to(self.device, non_blocking=True)


def _joined(old: KeysAndValues | None, new: KeysAndValues) -> KeysAndValues:
    assert old is not None, "the prefix has every layer"
    return torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]])


def _copied(new: KeysAndValues) -> KeysAndValues:
    """Contiguous copies, since keys may be views of all that a layer computed."""
    return new[0].clone(memory_format=torch.contiguous_format), new[1].clone(memory_format=torch.contiguous_format)
