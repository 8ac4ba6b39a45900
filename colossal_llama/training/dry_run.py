"""Dry run (`train.py --dry_run`): plan of a run and estimate of its memory, without weights or steps.

It needs no GPU: the memory is estimated for processes with one GPU each (training.memory.estimate).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.dataset.part_reader import Part
from colossal_llama.model.loading import load_config
from colossal_llama.model.param_count import parameters
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.distributed import consensus
from colossal_llama.training.inputs import RunInputs, resume_progress
from colossal_llama.training.lr_schedule import Schedule, plan_schedule, rows_of_epoch, step_geometry, tokens_of_run
from colossal_llama.training.memory.config import MemoryConfig, memory_config_of, trained_parameters
from colossal_llama.training.memory.estimate import ALLOWANCE_BYTES, GIB, MemoryEstimate, estimate
from colossal_llama.training.memory.recompute_policy import Recomputation, minimal_recomputation
from colossal_llama.training.parallel_layout import layout_of
from colossal_llama.utils.console import log_rank_zero, table


@dataclass(frozen=True)
class DryRun:
    """Plan of a run: data, steps, schedule, processes."""

    config: PretrainedConfig
    """The model's."""
    prepared_rows: int
    data_tokens: int
    rows_per_epoch: int
    """After packing."""
    rows_per_step: int
    longest_row_tokens: int
    processes: int
    data_parallel_size: int
    schedule: Schedule
    tokens: int
    """Of all steps of the run."""


def plan_run(
    arguments: TrainingArguments, config: PretrainedConfig, parts: Sequence[Part], origin: Origin, progress: Progress
) -> DryRun:
    """Plans a run from its arguments, data and progress.

    Args:
        arguments: with the defaults that depend on the data filled in.
        config: the model's configuration.
        parts: the data.
        origin, progress: what the run was begun with, and where it stands.
    """
    processes = arguments.dry_run.dry_run_processes or dist.get_world_size()
    size = processes // layout_of(arguments.plugin).model_parallel_size
    geometry, lengths = step_geometry(arguments, size), [part.row_lengths_tokens() for part in parts]
    schedule = plan_schedule(arguments.optimizer, arguments.data.num_epochs, lengths, origin, geometry, progress)
    is_full = arguments.data.padding_mode == "max_length" or origin.packed_to_tokens
    return DryRun(
        config=config,
        prepared_rows=sum(map(len, lengths)),
        data_tokens=sum(part.tokens for part in parts),
        rows_per_epoch=rows_of_epoch(lengths, origin, progress.epoch),
        rows_per_step=geometry.rows_per_step,
        longest_row_tokens=arguments.data.max_length
        if is_full
        else int(max(part.max() for part in lengths if len(part))),
        processes=processes,
        data_parallel_size=size,
        schedule=schedule,
        tokens=tokens_of_run(lengths, origin, geometry, progress, schedule),
    )


def report_dry_run(arguments: TrainingArguments, inputs: RunInputs) -> None:
    """Prints what the run would do and the memory that it would take."""
    progress = Progress()
    if inputs.checkpoint is not None:
        progress = resume_progress(inputs.checkpoint, inputs.origin, arguments.checkpoint.allow_other_data)
    config = load_config(inputs.model_path)
    report(arguments, plan_run(arguments, config, inputs.parts, inputs.origin, progress))


def report(arguments: TrainingArguments, run: DryRun) -> MemoryEstimate:
    """Prints plan and memory, writes both next to `--config_file`; returns the estimate. A collective."""
    device_bytes = _device_bytes(arguments)
    setup = _setup(arguments, run, device_bytes)
    memory = estimate(run.config, setup)
    log_rank_zero("dry run: nothing is loaded, nothing trained")
    log_rank_zero(table(["what", "plan"], _plan_rows(arguments, run, memory, setup)))
    log_rank_zero("memory of each GPU by estimate, in GiB, at the three fullest moments of a step:")
    log_rank_zero(memory_table(memory))
    for line in _verdict(memory, setup, run.config, device_bytes):
        log_rank_zero(line)
    file = record_file(arguments.records.config_file)
    record = _record(arguments, run, memory, device_bytes)
    record |= {"recomputed_layers": setup.recomputed_layers, "frugal": setup.selective}
    consensus.write_record("--config_file", file, record)
    log_rank_zero(f"the record is {file}")
    return memory


def _setup(arguments: TrainingArguments, run: DryRun, device_bytes: int | None) -> MemoryConfig:
    """Memory configuration of the run; recomputation follows from the memory of its GPUs."""
    setup = memory_config_of(
        arguments, run.config, run.data_parallel_size, arguments.model.fused_kernels, flash_attention=True
    )
    setup = replace(setup, length_tokens=run.longest_row_tokens)
    if arguments.memory.use_grad_checkpoint and device_bytes is not None:
        return minimal_recomputation(run.config, setup, device_bytes)
    return replace(setup, selective=False)


def record_file(config_file: Path) -> Path:
    """Path of a dry run's record: next to the configuration file of the run itself."""
    return config_file.with_name(f"{config_file.name}.dry_run.json")


def _device_bytes(arguments: TrainingArguments) -> int | None:
    """Memory of the planned GPU: `--gpu_memory_gib`, else this host's."""
    if arguments.dry_run.gpu_memory_gib is not None:
        return int(arguments.dry_run.gpu_memory_gib * GIB)
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return None


def _plan_rows(
    arguments: TrainingArguments, run: DryRun, memory: MemoryEstimate, setup: MemoryConfig
) -> list[list[str]]:
    schedule, trained = run.schedule, trained_parameters(arguments.method, run.config)
    epochs = _counted(schedule.num_epochs, "epoch", "epochs")
    ended = f" at most (--max_steps {arguments.optimizer.max_steps:,})" if arguments.optimizer.max_steps else ""
    packed = f", packed into {run.rows_per_epoch:,}" if run.rows_per_epoch != run.prepared_rows else ""
    first, peak, last = (schedule.rate(step) for step in (0, schedule.warmup_steps, max(0, schedule.total_steps - 1)))
    return [
        ["parameters", f"{memory.parameters:,}" + ("" if trained is None else f", {trained:,} of them trained")],
        [
            "plugin",
            f"{arguments.plugin.plugin}, {arguments.plugin.mixed_precision}, {_counted(run.processes, 'process', 'processes')}",
        ],
        [
            "data",
            f"{run.prepared_rows:,} rows{packed}, {run.data_tokens:,} tokens, longest row {run.longest_row_tokens:,}",
        ],
        [
            "a step",
            f"{run.rows_per_step:,} rows ({run.data_parallel_size} data-parallel x {arguments.data.micro_batch_size} x "
            f"{arguments.data.accumulation_steps} accumulated), up to {run.rows_per_step * run.longest_row_tokens:,} tokens",
        ],
        ["steps", f"{schedule.total_steps:,} in {epochs}{ended}, {schedule.warmup_steps:,} of warm-up"],
        ["tokens", f"{run.tokens:,} in {_counted(schedule.total_steps, 'step', 'steps')}"],
        [
            "recomputed",
            Recomputation(setup.recomputed_layers, setup.selective).describe(run.config.num_hidden_layers),
        ],
        ["learning rate", f"{first:.3g} in the first step, {peak:.3g} after the warm-up, {last:.3g} in the last"],
        [
            "a checkpoint",
            f"about {_checkpoint_bytes(arguments, run.config) / GIB:,.1f} GiB, every {arguments.checkpoint.save_interval:,} steps",
        ],
    ]


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _checkpoint_bytes(arguments: TrainingArguments, config: object) -> int:
    """Weights as they are trained, and in fp32 the moments, and the master weights where these are apart."""
    trained = trained_parameters(arguments.method, config) or parameters(config)
    saved = trained if arguments.method.lora_rank else parameters(config)
    half = arguments.plugin.mixed_precision != "fp32" and arguments.plugin.plugin != "ddp"
    return saved * (2 if half else 4) + trained * (12 if half else 8)


def memory_table(memory: MemoryEstimate) -> str:
    """Parts by moments, in GiB."""
    names = list(dict.fromkeys(part for moment in memory.moments.values() for part in moment))
    lines = [[name, *(_gib(moment.get(name, 0)) for moment in memory.moments.values())] for name in names]
    lines.append(["together", *(_gib(sum(moment.values())) for moment in memory.moments.values())])
    return table(["part", *memory.moments], lines)


def _gib(count: int) -> float:
    return round(count / GIB, 2)


def _verdict(
    memory: MemoryEstimate, setup: MemoryConfig, config: PretrainedConfig, device_bytes: int | None
) -> list[str]:
    lines = [f"peak: {memory.peak_bytes / GIB:.1f} GiB ({memory.peak_moment})"]
    if memory.host_bytes:
        lines.append(f"host memory of each process: {memory.host_bytes / GIB:.1f} GiB for the optimizer")
    if device_bytes is None:
        return [*lines, "give --gpu_memory_gib to hear whether it fits"]
    size = f"{device_bytes / GIB:.1f} GiB ({ALLOWANCE_BYTES / GIB:.1f} GiB left for CUDA and gaps)"
    if memory.fits(device_bytes):
        return [*lines, f"fits into a GPU of {size}"]
    excess = (memory.peak_bytes + ALLOWANCE_BYTES - device_bytes) / GIB
    largest = max(memory.moments[memory.peak_moment].items(), key=lambda part: part[1])
    lines.append(
        f"does NOT fit into a GPU of {size}: {excess:.1f} GiB too much; the largest part is {largest[0]} with "
        f"{largest[1] / GIB:.1f} GiB"
    )
    fitting = [words for words, other in _alternatives(setup, config) if estimate(config, other).fits(device_bytes)]
    return [
        *lines,
        "would fit: " + "; ".join(fitting) if fitting else "no single change of those known here makes it fit",
    ]


def _alternatives(setup: MemoryConfig, config: object) -> list[tuple[str, MemoryConfig]]:
    """Other settings that take less memory, the cheapest first."""
    recomputed = replace(setup, recomputed_layers=config.num_hidden_layers)
    whole = replace(recomputed, tensor_parallel_size=1, pipeline_stages=1, sequence_parallel_size=1)
    accumulated = setup.accumulation_steps * setup.micro_batch_size
    ways = []
    if setup.recomputed_layers < config.num_hidden_layers:
        ways.append(("--use_grad_checkpoint", recomputed))
    if setup.micro_batch_size > 1:
        words = f"--micro_batch_size 1 --accumulation_steps {accumulated} --use_grad_checkpoint"
        ways.append((words, replace(recomputed, micro_batch_size=1, accumulation_steps=accumulated)))
    if setup.plugin not in ("zero2", "zero2_cpu"):
        ways.append(("--plugin zero2 --use_grad_checkpoint", replace(whole, plugin="zero2")))
    if setup.plugin != "zero2_cpu":
        ways.append(("--plugin zero2_cpu --use_grad_checkpoint", replace(whole, plugin="zero2_cpu")))
    more = replace(recomputed, data_parallel_size=8 * setup.data_parallel_size)
    return [*ways, ("eight times the processes and --use_grad_checkpoint", more)]


def _record(arguments: TrainingArguments, run: DryRun, memory: MemoryEstimate, device_bytes: int | None) -> dict:
    return {
        "arguments": arguments.as_json(),
        "parameters": memory.parameters,
        "trained_parameters": trained_parameters(arguments.method, run.config) or memory.parameters,
        "processes": run.processes,
        "data_parallel_size": run.data_parallel_size,
        "prepared_rows": run.prepared_rows,
        "rows_per_epoch": run.rows_per_epoch,
        "rows_per_step": run.rows_per_step,
        "longest_row_tokens": run.longest_row_tokens,
        "data_tokens": run.data_tokens,
        "tokens": run.tokens,
        "total_steps": run.schedule.total_steps,
        "warmup_steps": run.schedule.warmup_steps,
        "num_epochs": run.schedule.num_epochs,
        "checkpoint_bytes": _checkpoint_bytes(arguments, run.config),
        "memory_bytes": memory.moments,
        "peak_bytes": memory.peak_bytes,
        "peak_moment": memory.peak_moment,
        "host_bytes": memory.host_bytes,
        "gpu_bytes": device_bytes,
        "fits": None if device_bytes is None else memory.fits(device_bytes),
    }
