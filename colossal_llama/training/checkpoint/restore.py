"""Restores a prepared model's optimizer, loss scale and random generators from a checkpoint."""

import torch
import torch.distributed as dist

from colossal_llama.engine.backend import Backend
from colossal_llama.engine.loss_scale import restore_loss_scale
from colossal_llama.training.checkpoint.model_files import fp32_weights
from colossal_llama.training.checkpoint.optimizer_io import SavedOptimizer, restore_states
from colossal_llama.training.checkpoint.rng_state import restore_random_states
from colossal_llama.training.checkpoint.state import OPTIMIZER, Checkpoint


def restore(checkpoint: Checkpoint, backend: Backend, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restores moments, master weights, step counts, loss scale and random states.

    The model's own weights are loaded before. Plugin and number of ranks may differ from the
    checkpoint's. With another number of ranks the random generators begin at the seed.

    Raises:
        UserError: the checkpoint is damaged, or of a run that trained other parameters.
    """
    saved = SavedOptimizer(checkpoint.path / OPTIMIZER)
    try:
        restore_states(saved, backend.optimizer_shards(model, optimizer), fp32_weights(checkpoint.model_path))
    finally:
        saved.close()
    restore_loss_scale(optimizer, checkpoint.running_states.get("loss_scale"))
    if checkpoint.running_states["world_size"] == dist.get_world_size():
        restore_random_states(checkpoint.path, dist.get_rank())
