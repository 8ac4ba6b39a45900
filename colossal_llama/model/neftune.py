"""NEFTune: noise on the embeddings during fine-tuning (Jain et al., https://arxiv.org/abs/2310.05914)."""

import torch
from torch import nn


class NeftuneNoise:
    """Adds uniform noise to what the embedding layer gives, while the model trains.

    For a sample of L tokens and width d every component gets noise from [−1, 1] times alpha / sqrt(L · d). L is the sample's
    own length: padding and the samples spliced beside it do not count. The noise is a function of the seed given with each
    micro-batch, not of a generator that runs on: a resumed run draws the same noise as one that was never stopped.

        noise = NeftuneNoise(alpha=5.0)
        noise.attach(model.get_input_embeddings())
        noise.prepare(document_lengths_of_each_token, seed)   # before each forward
    """

    def __init__(self, alpha: float):
        self.alpha = alpha
        self._lengths: torch.Tensor | None = None
        self._seed = 0

    def attach(self, embedding: nn.Module) -> torch.utils.hooks.RemovableHandle:
        """Hooks the noise onto an embedding layer; the handle's `remove()` takes it off."""
        return embedding.register_forward_hook(self._add)

    def prepare(self, token_lengths: torch.Tensor, seed: int) -> None:
        """Tells of the next micro-batch.

        Args:
            token_lengths: (rows, length): for each token, the length of the document that it belongs to.
            seed: decides the noise; must differ between micro-batches and data-parallel ranks and agree within a tensor-parallel group.
        """
        self._lengths = token_lengths
        self._seed = seed

    def _add(self, embedding: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not embedding.training or self._lengths is None:
            return output
        generator = torch.Generator(device=output.device).manual_seed(self._seed)
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1.0, 1.0, generator=generator)
        scale = self.alpha / (self._lengths.to(output.device, torch.float32) * output.shape[-1]).sqrt()
        return output + (noise * scale.unsqueeze(-1)).to(output.dtype)
