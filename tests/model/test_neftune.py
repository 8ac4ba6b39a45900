"""NEFTune's noise: its size, its scaling by each sample's own length, and when it is absent."""

import pytest
import torch

from colossal_llama.model.neftune import NeftuneNoise


@pytest.fixture
def embedding() -> torch.nn.Embedding:
    torch.manual_seed(0)
    return torch.nn.Embedding(50, 64)


def noise_of(embedding, lengths, alpha=5.0, seed=3, row_lengths=None):
    noise = NeftuneNoise(alpha)
    handle = noise.attach(embedding)
    rows, width = lengths.shape
    noise.prepare(lengths, row_lengths or [width] * rows, [seed + row for row in range(rows)])
    ids = torch.randint(0, 50, lengths.shape, generator=torch.Generator().manual_seed(1))
    noisy = embedding(ids)
    handle.remove()
    return (noisy - embedding(ids)).detach()


def test_noise_is_uniform_within_the_papers_bound(embedding):
    """Each sample is scaled by its own length, also when two are spliced into one row or padded."""
    lengths = torch.tensor([[100] * 100 + [400] * 400])
    noise = noise_of(embedding, lengths)
    for begin, end, length in ((0, 100, 100), (100, 500, 400)):
        bound = 5.0 / (length * 64) ** 0.5
        piece = noise[0, begin:end]
        assert piece.abs().max() <= bound * 1.0001
        assert piece.abs().max() > 0.99 * bound
        assert piece.mean().abs() < 0.03 * bound
        assert piece.std() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_noise_depends_on_the_seed_alone(embedding):
    lengths = torch.full((2, 10), 10)
    torch.manual_seed(1)
    first = noise_of(embedding, lengths)
    torch.manual_seed(2)
    torch.testing.assert_close(noise_of(embedding, lengths), first)
    assert not torch.equal(noise_of(embedding, lengths, seed=4), first)


def test_a_rows_noise_does_not_depend_on_its_neighbours_or_its_padding(embedding):
    """So a run on other ranks, whose micro-batches are made of other rows, has the same."""
    alone = noise_of(embedding, torch.full((1, 7), 7), seed=4)
    beside = noise_of(embedding, torch.full((2, 10), 7), seed=3, row_lengths=[10, 7])
    torch.testing.assert_close(beside[1, :7], alone[0])
    assert beside[1, 7:].abs().max() == 0


def test_no_noise_in_evaluation(embedding):
    embedding.eval()
    assert noise_of(embedding, torch.full((2, 10), 10)).abs().max() == 0
