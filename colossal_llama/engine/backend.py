"""`Backend`: ColossalAI's booster and plugin behind the operations that training needs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin, HybridParallelPlugin, TorchDDPPlugin
from colossalai.booster.plugin.plugin_base import Plugin
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from colossal_llama.engine import process_groups
from colossal_llama.engine.optimizer_shards import OptimizerShard, optimizer_shards
from colossal_llama.engine.optimizer_step import refuse_nonfinite_updates, take_step
from colossal_llama.engine.parameter_groups import NewRows
from colossal_llama.engine.patches.group_norms import reduce_norm_once
from colossal_llama.engine.patches.partial_gradients import complete_partial_gradients
from colossal_llama.engine.pipeline_schedule import PipelineInputs
from colossal_llama.engine.row_segments import divide_rows, hide_frozen_rows
from colossal_llama.engine.weights import weights_to_save


@dataclass(frozen=True)
class Backend:
    """A booster with its plugin, made by `engine.plugins.build_backend`.

    Models and optimizers that the methods take are those that `prepare` returned.
    """

    booster: Booster
    plugin: Plugin
    parameter_dtype: torch.dtype
    """Dtype in which the model is loaded: `ddp` keeps fp32 weights and computes under autocast, the
    others hold half-precision weights."""
    autocast_dtype: torch.dtype | None
    clips_gradients: bool
    """True when the plugin's `optimizer.step()` clips the gradients."""
    gradient_clipping: float = 0.0
    """Largest norm of the gradients; 0: they are not clipped."""

    @property
    def pipeline_stages(self) -> int:
        """Number of pipeline stages; 1 without a pipeline."""
        return process_groups.pipeline_stages(self.plugin)

    @property
    def is_last_stage(self) -> bool:
        """True when this process has the model's last layers and so the loss."""
        return process_groups.is_last_stage(self.plugin)

    @property
    def data_parallel_rank(self) -> int:
        """This process's data-parallel rank."""
        return dist.get_rank(process_groups.data_parallel_group(self.plugin))

    @property
    def data_parallel_size(self) -> int:
        """Number of data-parallel ranks."""
        return dist.get_world_size(process_groups.data_parallel_group(self.plugin))

    def replicas(self, over_data: bool, over_tensor: bool) -> tuple[int, int]:
        """Number of processes that hold the same tensor, and this process's index among them.

        Args:
            over_data: data-parallel ranks hold replicas of it.
            over_tensor: tensor-parallel ranks hold replicas of it.
        """
        return process_groups.replicas(self.plugin, over_data, over_tensor)

    def add_lora(self, model: PreTrainedModel, config: LoraConfig, adapter_path: str | None) -> PeftModel:
        """Puts LoRA adapters on a model, before `prepare`.

        Args:
            model: the base, whose weights are frozen.
            config: of new adapters.
            adapter_path: directory of trained adapters to continue; None for new ones.

        Returns:
            The model with its adapters, in `parameter_dtype`.
        """
        adapted = self.booster.enable_lora(model, pretrained_dir=adapter_path, lora_config=config)
        return adapted.to(self.parameter_dtype)

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Wraps model and optimizer by the plugin (`Booster.boost`); refuses non-finite updates."""
        wrapped: Any
        is_gemini = isinstance(self.plugin, GeminiPlugin)
        if is_gemini:
            hide_frozen_rows(optimizer)
        model, wrapped, *_ = self.booster.boost(model, optimizer)
        if isinstance(self.plugin, HybridParallelPlugin):
            complete_partial_gradients(model, self.plugin.tp_group)
        if self.clips_gradients:
            refuse_nonfinite_updates(wrapped)
        reduce_norm_once(wrapped)
        if any(NewRows.of(group) for group in wrapped.optim.param_groups):
            divide_rows(wrapped, self.optimizer_shards(model, wrapped), hides_frozen=not is_gemini)
        return model, wrapped

    def unwrap(self, model: Any) -> PreTrainedModel | PeftModel:
        """The model without the plugin's wrapper; with its adapters, where it has some."""
        return model.unwrap(unwrap_peft=False)

    def backward(self, loss: torch.Tensor, optimizer: Any) -> None:
        """Computes and accumulates gradients, through the plugin's loss scale and communication."""
        self.booster.backward(loss, optimizer)

    def no_sync(self, model: torch.nn.Module, optimizer: Any) -> AbstractContextManager:
        """Context in which gradients are accumulated locally, where the plugin can do that.

        The last micro-batch of a step runs outside of it and communicates the sum. ZeRO 2 keeps
        partitioned gradients, and must communicate those of every micro-batch.
        """
        is_partitioned = isinstance(self.plugin, HybridParallelPlugin) and self.plugin.zero_stage == 2
        if isinstance(self.plugin, TorchDDPPlugin | HybridParallelPlugin) and not is_partitioned:
            return self.booster.no_sync(model, optimizer)
        return nullcontext()

    def run_pipeline(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        shapes: Sequence[tuple[int, ...]],
        inputs: Iterator[dict[str, torch.Tensor]],
        loss_function: Callable[[Any], torch.Tensor],
    ) -> torch.Tensor | None:
        """Runs micro-batches through the pipeline, forward and (with gradients enabled) backward.

        Args:
            model: this process's stage.
            optimizer: accumulates the gradients.
            shapes: (rows, length) of each micro-batch, the same on every stage.
            inputs: the model's arguments for each, computed when its turn comes.
            loss_function: gives a micro-batch's loss from the outputs of the last stage.

        Returns:
            The sum of the losses on the last stage; None on the others.
        """

        def criterion(outputs: Any, _: object) -> torch.Tensor:
            return loss_function(outputs) * len(shapes)  # the schedule divides by their number

        batches = PipelineInputs(shapes, inputs)
        if torch.is_grad_enabled():
            result = self.booster.execute_pipeline(batches, model, criterion, optimizer, return_loss=True)
        else:  # not through the booster, which would communicate gradients
            result = self.plugin.scheduler.forward_backward_step(model, batches, criterion, return_loss=True)
        return result["loss"]

    def optimizer_step(self, model: torch.nn.Module, optimizer: Any) -> float | None:
        """Clips the gradients, updates the weights, and clears the gradients.

        Returns:
            The norm of the gradients before clipping, without loss scale; NaN or Inf where the
            update was refused; None where the plugin computes none, or where the loss scaler of
            fp16 skipped the step because of an overflow.
        """
        return take_step(model, optimizer, self.clips_gradients, self.gradient_clipping)

    def weights_to_save(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights that this process writes into a checkpoint; a collective over all ranks."""
        return weights_to_save(self.plugin, model, self.parameter_dtype)

    def optimizer_shards(self, model: torch.nn.Module, optimizer: Any) -> list[OptimizerShard]:
        """Shards of the optimizer states in this process, in the inner optimizer's order."""
        return optimizer_shards(self.plugin, model, optimizer)
