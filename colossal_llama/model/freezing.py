"""Freezing: training the embeddings alone, to align new rows with an otherwise finished model."""

from transformers import LlamaForCausalLM


def freeze_all_but_embeddings(model: LlamaForCausalLM) -> None:
    """Leaves the input and the output embeddings trainable and nothing else."""
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    model.get_output_embeddings().requires_grad_(True)
