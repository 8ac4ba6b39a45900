"""NEFTune: noise on the embeddings during fine-tuning (Jain et al., https://arxiv.org/abs/2310.05914)."""

from collections.abc import Sequence

import torch
from torch import nn


class NeftuneNoise:
    """Adds uniform noise to the output of the embedding layer in training.

    For a sample of L tokens and width d every component gets noise from [−1, 1] times alpha /
    sqrt(L · d). L is the sample's own length, without padding and the other samples of its row. The
    noise depends only on a seed per row, not on the state of a generator, other rows or padding. So
    a resumed run draws the same noise as an uninterrupted one, and so does one on another number of
    ranks.

        noise = NeftuneNoise(alpha=5.0)
        noise.attach(model.get_input_embeddings())
        noise.prepare(document_lengths_of_tokens, row_lengths, row_seeds)   # before each forward
    """

    def __init__(self, alpha: float):
        self.alpha = alpha
        self._lengths: torch.Tensor | None = None
        self._rows: list[tuple[int, int]] = []

    def attach(self, embedding: nn.Module) -> torch.utils.hooks.RemovableHandle:
        """Registers the forward hook on an embedding layer; the handle's `remove()` removes it."""
        return embedding.register_forward_hook(self._add)

    def prepare(self, token_lengths: torch.Tensor, row_lengths: Sequence[int], row_seeds: Sequence[int]) -> None:
        """Sets lengths and seeds of the next micro-batch.

        Args:
            token_lengths: (rows, length): for each token, the length of the document that it
                belongs to.
            row_lengths: tokens of each row without padding, which gets no noise.
            row_seeds: of each row's noise; must differ between rows and be equal within a
                tensor-parallel group.
        """
        self._lengths = token_lengths
        self._rows = list(zip(row_lengths, row_seeds, strict=True))

    def _add(self, embedding: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not embedding.training or self._lengths is None:
            return output
        generator = torch.Generator(device=output.device)
        noise = torch.zeros_like(output, dtype=torch.float32)
        for index, (length, seed) in enumerate(self._rows):
            noise[index, :length].uniform_(-1.0, 1.0, generator=generator.manual_seed(seed))
        scale = self.alpha / (self._lengths.to(output.device, torch.float32) * output.shape[-1]).sqrt()
        return output + (noise * scale.unsqueeze(-1)).to(output.dtype)
