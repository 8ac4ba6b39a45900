"""Start-up report of a run (parameters, data, schedule, kernels), and its configuration file."""

import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import colossal_llama
from colossal_llama.dataset.epoch_plan import fill_ratio, plan_epoch
from colossal_llama.dataset.loader import StepGeometry
from colossal_llama.engine.launch import colossalai_version, current_device
from colossal_llama.training.arguments import DataArguments, PluginArguments, TrainingArguments
from colossal_llama.training.distributed import consensus
from colossal_llama.training.inputs import RunInputs
from colossal_llama.training.lr_schedule import Schedule, schedule_differences
from colossal_llama.training.task_questions import describe_interval, describe_questions
from colossal_llama.training.trainer import Trainer
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.hub.fetch import origin_record
from colossal_llama.utils.transformers_version import transformers_version, untested_version


def report_startup(arguments: TrainingArguments, inputs: RunInputs, trainer: Trainer, notes: list[str]) -> None:
    """Prints model size, data, schedule, packing, set-up notes and the checkpoint to resume from.

    Args:
        arguments: of the run.
        inputs: data, tokenizer, checkpoint.
        trainer: before its first step.
        notes: of the set-up, one sentence each: attention, kernels, recomputation, optimizer step.
    """
    if warning := untested_version():
        log_rank_zero(f"warning: {warning}")
    _report_model(arguments.plugin, trainer)
    _report_data(inputs, trainer)
    if inputs.origin.packed_to_tokens is not None:
        _report_packing(arguments.data, inputs, trainer)
    schedule = trainer.schedule
    if schedule.warmup_steps >= schedule.total_steps:
        log_rank_zero(
            f"warning: {schedule.warmup_steps} warm-up steps of {schedule.total_steps}: the whole run is warm-up, "
            "and the learning rate reaches --lr in the last step or not at all"
        )
    for note in notes:
        log_rank_zero(note)
    if inputs.task_questions:
        log_rank_zero(
            f"--eval_tasks: {describe_questions(inputs.task_questions)}, {describe_interval(arguments.tasks)}"
        )
    if inputs.checkpoint is not None:
        log_rank_zero(f"resuming {inputs.checkpoint.path} after step {trainer.progress.step}")
        for difference in schedule_differences(inputs.checkpoint.path, schedule, trainer.progress.step):
            log_rank_zero(difference)
        if schedule.total_steps <= trainer.progress.step:
            log_rank_zero(f"warning: nothing is left to train: the run ends after step {schedule.total_steps}")


def _report_model(plugin: PluginArguments, trainer: Trainer) -> None:
    network, world_size = trainer.train_step.backend.unwrap(trainer.train_step.model), dist.get_world_size()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    log_rank_zero(
        f"{parameters:,} parameters on this rank, plugin {plugin.plugin}, {world_size} "
        f"process{'es' if world_size > 1 else ''} ({trainer.train_step.device.type}), {plugin.mixed_precision}; "
        + ", ".join(f"{name} {version}" for name, version in _versions().items() if name in _LIBRARIES)
    )


def _report_data(inputs: RunInputs, trainer: Trainer) -> None:
    geometry, schedule, parts = trainer.geometry, trainer.schedule, inputs.parts
    rows = sum(len(lengths) for lengths in trainer.part_lengths)
    log_rank_zero(
        f"{rows:,} prepared rows, {sum(part.tokens for part in parts):,} tokens in {len(parts)} parts of kind "
        f"{parts[0].kind}; {geometry.rows_per_step} rows a step ({geometry.data_parallel_size} data-parallel x "
        f"{geometry.micro_batch_size} x {geometry.accumulation_steps} accumulated); {schedule.total_steps} steps, "
        f"{schedule.warmup_steps} of warm-up, {schedule.num_epochs} epoch{'s' if schedule.num_epochs > 1 else ''}; "
        + schedule.describe()
    )


def _report_packing(data: DataArguments, inputs: RunInputs, trainer: Trainer) -> None:
    max_length, origin = data.max_length, inputs.origin
    rows = plan_epoch(trainer.part_lengths, origin.seed, trainer.progress.epoch, origin.shuffle, max_length)
    filled = fill_ratio(rows, np.concatenate(trainer.part_lengths), max_length)
    log_rank_zero(
        f"packed into {len(rows):,} rows of up to {max_length} tokens, {filled:.1%} full"
        f"{'' if data.cross_document_attention else '; attention is masked by document'}"
    )


def write_config_file(
    arguments: TrainingArguments, geometry: StepGeometry, schedule: Schedule, inputs: RunInputs
) -> None:
    """Writes `--config_file`: arguments, parts, versions, world size and schedule. A collective."""
    content = _configuration(arguments, geometry, schedule)
    content |= {"parts": [str(part.path) for part in inputs.parts]}
    content |= origin_record(inputs.model_path, "pretrained_repository")
    consensus.write_record("--config_file", arguments.records.config_file, content)


def _configuration(arguments: TrainingArguments, geometry: StepGeometry, schedule: Schedule) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "arguments": arguments.as_json(),
        "world_size": dist.get_world_size(),
        "device": str(current_device()),
        "total_steps": schedule.total_steps,
        "warmup_steps": schedule.warmup_steps,
        "decay_steps": schedule.decay_steps,
        "rows_per_step": geometry.rows_per_step,
        "started_s": round(time.time(), 3),
        "versions": _versions(),
    }


_LIBRARIES = ("torch", "colossalai", "transformers")


def _versions() -> dict[str, str]:
    """Versions on which a run's results depend."""
    return {
        "colossal_llama": colossal_llama.__version__,
        "torch": torch.__version__,
        "colossalai": colossalai_version(),
        "transformers": transformers_version(),
    }
