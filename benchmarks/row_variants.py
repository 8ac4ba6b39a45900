"""Initialisations of an expanded model's new rows: init_model.py's, random ones, and others'."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from colossal_llama.model.expansion.mean_init import Constituents, mean_rows
from colossal_llama.model.weights.stored_tensors import StoredTensor

MEANS = ("mean", "norm_matched_mean")
KINDS = {
    "mean": "mean of the pieces' rows (init_model.py's default)",
    "norm_matched_mean": "the same, scaled to the mean norm of the pieces' rows (--init_method norm_matched_mean)",
    "random": "normal, mean 0, standard deviation 0.02, as in a new LLaMA",
    "random_covariance": "normal, with mean and covariance of the old rows",
    "average": "mean of all old rows, as transformers' resize_token_embeddings, without its noise of 1e-9",
    "half_mean": "halfway between `mean` and `average`",
    "first_piece": "the row of the first piece",
}


def new_rows(kind: str, known: torch.Tensor, constituents: Constituents, seed: int = 0) -> torch.Tensor:
    """Computes the new rows of one matrix, float32 (new rows, width).

    Args:
        kind: one of KINDS.
        known: the old rows, any floating dtype (old rows, width), on the CPU.
        constituents: ids of the source pieces of each new row.
        seed: of the random kinds.
    """
    known = known.float()
    average = known.double().mean(dim=0).float()
    count = len(constituents.lengths)
    noise = torch.randn((count, known.shape[1]), generator=torch.Generator().manual_seed(seed))
    if kind in MEANS:
        matrix = StoredTensor.of(known.numpy(), "F32")
        return torch.from_numpy(np.concatenate(list(mean_rows(matrix, constituents, kind, average.numpy()))))
    if kind == "half_mean":
        return (new_rows("mean", known, constituents) + average) / 2
    if kind == "random":
        return 0.02 * noise
    if kind == "average":
        return average.repeat(count, 1)
    if kind == "random_covariance":
        covariance = torch.cov(known.T.double())
        ridge = 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        return average + noise @ torch.linalg.cholesky(covariance + ridge).float().T
    if kind == "first_piece":
        lengths = constituents.lengths
        first = constituents.ids[constituents.offsets[:-1].clip(max=len(constituents.ids) - 1)]
        rows = known[torch.from_numpy(first)]
        rows[torch.from_numpy(lengths == 0)] = average
        return rows
    raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")


@torch.no_grad()
def set_rows(model: PreTrainedModel, first_row: int, input_rows: torch.Tensor, output_rows: torch.Tensor) -> None:
    """Replaces the rows from `first_row` on in input and output matrix, which must not be tied."""
    for matrix, rows in (
        (model.get_input_embeddings().weight, input_rows),
        (model.get_output_embeddings().weight, output_rows),
    ):
        matrix[first_row : first_row + len(rows)] = rows.to(matrix)


def load_model(directory: Path) -> PreTrainedModel:
    """Loads a model in its stored dtype, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False, torch_dtype="auto").to(device).eval()
    )
