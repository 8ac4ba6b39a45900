"""Restores a prepared model's optimizer, loss scale and random generators from a checkpoint."""

import contextlib

import torch
import torch.distributed as dist

from colossal_llama.engine.backend import Backend
from colossal_llama.engine.loss_scale import restore_loss_scale
from colossal_llama.training.checkpoint.model_files import fp32_weights
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer, restore_states
from colossal_llama.training.checkpoint.rng_state import restore_random_states
from colossal_llama.training.checkpoint.state import OPTIMIZER, RUNNING_STATES, Checkpoint
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.errors import UserError


def restore(checkpoint: Checkpoint, backend: Backend, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores moments, master weights, step counts, loss scale and random states.

    The model's own weights are loaded before. Plugin and number of ranks may differ from the
    checkpoint's. With another number of ranks the random generators begin at the seed.

    A collective.

    Raises:
        CollectiveError: the checkpoint is damaged, or of a run that trained other parameters.
    """
    shards = backend.optimizer_shards(model, optimizer)
    with consensus.raise_on_all_ranks():
        with contextlib.closing(SavedOptimizer(checkpoint.path / OPTIMIZER)) as saved:
            saved.refuse_frozen_rows(optimizer)
            restore_states(saved, shards, fp32_weights(checkpoint.model_path))
        _restore_loss_scale(optimizer, checkpoint)
        if checkpoint.running_states["world_size"] == dist.get_world_size():
            restore_random_states(checkpoint.path, dist.get_rank())


def _restore_loss_scale(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    try:
        restore_loss_scale(optimizer, checkpoint.running_states.get("loss_scale"))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the loss scale in {checkpoint.path / RUNNING_STATES} cannot be used: {error!r}") from error
