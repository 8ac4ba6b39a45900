"""Dry run (`train.py --dry_run`): plan of a run and estimate of its memory, without training.

No weights are loaded, and no GPU is needed: the memory is estimated for processes with one GPU each
(training.memory.estimate).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from colossal_llama.dataset.part import Part
from colossal_llama.model.loading import load_config
from colossal_llama.model.param_count import parameters
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.checkpoint.state import Origin, Progress
from colossal_llama.training.distributed import consensus
from colossal_llama.training.inputs import RunInputs, resume_progress
from colossal_llama.training.lr_schedule import (
    Schedule,
    plan_schedule,
    rows_of_epoch,
    schedule_differences,
    step_geometry,
    tokens_of_run,
)
from colossal_llama.training.memory.config import MemoryConfig, memory_config_of
from colossal_llama.training.memory.estimate import ALLOWANCE_BYTES, GIB, MemoryEstimate, estimate
from colossal_llama.training.memory.recompute_policy import Recomputation, minimal_recomputation
from colossal_llama.training.parallel_layout import layout_of
from colossal_llama.training.record_files import dry_run_file
from colossal_llama.training.task_questions import PromptedQuestion, describe_interval, describe_questions
from colossal_llama.training.trained_parameters import learning_rate_ratios, trained_parameters, trained_values
from colossal_llama.utils.console import log_rank_zero, table


@dataclass(frozen=True)
class DryRun:
    """Plan of a run: data, steps, schedule, processes."""

    config: PretrainedConfig
    """Configuration of the model."""
    prepared_rows: int
    data_tokens: int
    rows_per_epoch: int
    """Number of rows after packing."""
    rows_per_step: int
    longest_row_tokens: int
    processes: int
    data_parallel_size: int
    schedule: Schedule
    tokens: int
    """Number of tokens of the whole run."""
    task_questions: Sequence[PromptedQuestion] = ()
    """Of `--eval_tasks`."""
    new_rows: range | None = None
    """Embedding rows of the last expansion, where they are known."""


def plan_run(
    arguments: TrainingArguments, config: PretrainedConfig, parts: Sequence[Part], origin: Origin, progress: Progress
) -> DryRun:
    """Plans a run from its arguments, data and progress.

    Args:
        arguments: with the defaults that depend on the data filled in.
        config: the model's configuration.
        parts: of `--dataset`.
        origin: data, tokenizer and order that the run began with.
        progress: steps and rows done.
    """
    processes = arguments.dry_run.dry_run_processes or dist.get_world_size()
    data_parallel_size = processes // layout_of(arguments.plugin).model_parallel_size
    data, lengths = arguments.data, [part.row_lengths_tokens() for part in parts]
    geometry = step_geometry(data, arguments.plugin, data_parallel_size)
    ratios = learning_rate_ratios(arguments)
    schedule = plan_schedule(arguments.optimizer, data.num_epochs, lengths, origin, geometry, progress, ratios)
    is_full = data.padding_mode == "max_length" or origin.packed_to_tokens
    return DryRun(
        config=config,
        prepared_rows=sum(map(len, lengths)),
        data_tokens=sum(part.tokens for part in parts),
        rows_per_epoch=rows_of_epoch(lengths, origin, progress.epoch),
        rows_per_step=geometry.rows_per_step,
        longest_row_tokens=data.max_length if is_full else int(max(part.max() for part in lengths if len(part))),
        processes=processes,
        data_parallel_size=data_parallel_size,
        schedule=schedule,
        tokens=tokens_of_run(lengths, origin, geometry, progress, schedule),
    )


def report_dry_run(arguments: TrainingArguments, inputs: RunInputs) -> None:
    """Reports the plan and the memory estimate of a run. A collective."""
    progress = Progress()
    if inputs.checkpoint is not None:
        progress = resume_progress(inputs.checkpoint, inputs.origin, arguments.checkpoint.allow_other_data)
    config = load_config(inputs.model_path)
    inputs.verification.finish()
    run = plan_run(arguments, config, inputs.parts, inputs.origin, progress)
    run = replace(run, task_questions=inputs.task_questions, new_rows=inputs.new_rows)
    report(arguments, run)
    resumed = inputs.checkpoint
    for difference in schedule_differences(resumed.path, run.schedule, progress.step) if resumed is not None else ():
        log_rank_zero(difference)


def report(arguments: TrainingArguments, run: DryRun) -> MemoryEstimate:
    """Logs plan and memory estimate, and writes both next to `--config_file`. A collective.

    Returns:
        The estimate.
    """
    device_bytes = _device_bytes(arguments.dry_run.gpu_memory_gib)
    settings = _memory_settings(arguments, run, device_bytes)
    memory = estimate(run.config, settings)
    log_rank_zero("dry run: no weights are loaded, nothing is trained")
    log_rank_zero(table(["item", "plan"], _plan_rows(arguments, run, memory, settings)))
    log_rank_zero("estimated memory of each GPU, in GiB, at the peak of each phase of a step:")
    log_rank_zero(memory_table(memory))
    for line in _fit_report(memory, settings, run.config, device_bytes):
        log_rank_zero(line)
    file = dry_run_file(arguments.records.config_file)
    record = _record(arguments, run, memory, device_bytes)
    record |= {"recomputed_layers": settings.recomputed_layers, "frugal": settings.selective}
    consensus.write_record("--config_file", file, record)
    log_rank_zero(f"the plan is written to {file}")
    return memory


def _memory_settings(arguments: TrainingArguments, run: DryRun, device_bytes: int | None) -> MemoryConfig:
    """Memory configuration of the run, with the recomputation that its GPUs need."""
    settings = memory_config_of(
        arguments, run.config, run.data_parallel_size, arguments.model.fused_kernels, flash_attention=True
    )
    settings = replace(settings, length_tokens=run.longest_row_tokens)
    if arguments.memory.use_grad_checkpoint and device_bytes is not None:
        return minimal_recomputation(run.config, settings, device_bytes)
    return replace(settings, selective=False)


def _device_bytes(gpu_memory_gib: float | None) -> int | None:
    """Memory of the planned GPU: `--gpu_memory_gib`, else this host's GPU."""
    if gpu_memory_gib is not None:
        return int(gpu_memory_gib * GIB)
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return None


def _plan_rows(
    arguments: TrainingArguments, run: DryRun, memory: MemoryEstimate, settings: MemoryConfig
) -> list[list[str]]:
    schedule, trained = run.schedule, trained_values(arguments.method, run.config, run.new_rows)
    epochs = _counted(schedule.num_epochs, "epoch", "epochs")
    ended = f" at most (--max_steps {arguments.optimizer.max_steps:,})" if arguments.optimizer.max_steps else ""
    packed = f", packed into {run.rows_per_epoch:,}" if run.rows_per_epoch != run.prepared_rows else ""
    first, peak, last = (schedule.rate(step) for step in (0, schedule.warmup_steps, max(0, schedule.total_steps - 1)))
    plugin, data = arguments.plugin, arguments.data
    checkpoint_gib = _checkpoint_bytes(arguments, run.config) / GIB
    return [
        ["parameters", f"{memory.parameters:,}" + ("" if trained is None else f", {trained:,} of them trained")],
        ["plugin", f"{plugin.plugin}, {plugin.mixed_precision}, {_counted(run.processes, 'process', 'processes')}"],
        [
            "data",
            f"{run.prepared_rows:,} rows{packed}, {run.data_tokens:,} tokens, longest row {run.longest_row_tokens:,}",
        ],
        [
            "a step",
            f"{run.rows_per_step:,} rows ({run.data_parallel_size} data-parallel x {data.micro_batch_size} x "
            f"{data.accumulation_steps} accumulated), up to {run.rows_per_step * run.longest_row_tokens:,} tokens",
        ],
        ["steps", f"{schedule.total_steps:,} in {epochs}{ended}, {schedule.warmup_steps:,} of warm-up"],
        ["tokens", f"{run.tokens:,} in {_counted(schedule.total_steps, 'step', 'steps')}"],
        [
            "recomputed",
            Recomputation(settings.recomputed_layers, settings.selective).describe(run.config.num_hidden_layers),
        ],
        [
            "learning rate",
            f"{first:.3g} in the first step, {peak:.3g} after the warm-up, {last:.3g} in the last; "
            + schedule.describe().removeprefix("learning rate "),
        ],
        ["a checkpoint", f"about {checkpoint_gib:,.1f} GiB, every {arguments.checkpoint.save_interval:,} steps"],
        *(
            [["benchmarks", f"{describe_questions(run.task_questions)}, {describe_interval(arguments.tasks)}"]]
            if run.task_questions
            else []
        ),
    ]


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _checkpoint_bytes(arguments: TrainingArguments, config: PretrainedConfig) -> int:
    """Size of a checkpoint: weights, moments, and fp32 master weights where there are any."""
    method, plugin = arguments.method, arguments.plugin
    trained = trained_parameters(method, config) or parameters(config)
    saved = trained if method.lora_rank else parameters(config)
    if method.lora_new_rows and config.tie_word_embeddings:  # an adapter's file has both matrices
        saved += config.vocab_size * config.hidden_size
    if arguments.optimizer.optimizer_states != "fp32":  # both moments in bf16, which holds 8 bits
        return 2 * saved + 4 * trained
    has_master_weights = plugin.mixed_precision != "fp32" and plugin.plugin != "ddp"
    return saved * (2 if has_master_weights else 4) + trained * (12 if has_master_weights else 8)


def memory_table(memory: MemoryEstimate) -> str:
    """Formats parts by phase, in GiB."""
    names = list(dict.fromkeys(part for parts in memory.phases.values() for part in parts))
    lines = [[name, *(_gib(parts.get(name, 0)) for parts in memory.phases.values())] for name in names]
    lines.append(["total", *(_gib(sum(parts.values())) for parts in memory.phases.values())])
    return table(["part", *memory.phases], lines)


def _gib(count: int) -> float:
    return round(count / GIB, 2)


def _fit_report(
    memory: MemoryEstimate, settings: MemoryConfig, config: PretrainedConfig, device_bytes: int | None
) -> list[str]:
    lines = [f"peak: {memory.peak_bytes / GIB:.1f} GiB ({memory.peak_phase})"]
    if memory.host_bytes:
        lines.append(f"host memory of each process: {memory.host_bytes / GIB:.1f} GiB for the optimizer")
    if device_bytes is None:
        return [*lines, "give --gpu_memory_gib to check whether it fits"]
    size = f"{device_bytes / GIB:.1f} GiB ({ALLOWANCE_BYTES / GIB:.1f} GiB left for CUDA and fragmentation)"
    if memory.fits(device_bytes):
        return [*lines, f"fits into a GPU of {size}"]
    excess = (memory.peak_bytes + ALLOWANCE_BYTES - device_bytes) / GIB
    largest = max(memory.phases[memory.peak_phase].items(), key=lambda part: part[1])
    lines.append(
        f"does NOT fit into a GPU of {size}: {excess:.1f} GiB too much; the largest part is {largest[0]} with "
        f"{largest[1] / GIB:.1f} GiB"
    )
    fitting = [text for text, other in _alternatives(settings, config) if estimate(config, other).fits(device_bytes)]
    return [
        *lines,
        "would fit: " + "; ".join(fitting) if fitting else "none of the known changes makes it fit",
    ]


def _alternatives(settings: MemoryConfig, config: PretrainedConfig) -> list[tuple[str, MemoryConfig]]:
    """Settings that need less memory, with their options; the least slowdown first."""
    recomputed = replace(settings, recomputed_layers=config.num_hidden_layers)
    whole = replace(recomputed, tensor_parallel_size=1, pipeline_stages=1, sequence_parallel_size=1)
    accumulated = settings.accumulation_steps * settings.micro_batch_size
    options = []
    if settings.recomputed_layers < config.num_hidden_layers:
        options.append(("--use_grad_checkpoint", recomputed))
    if settings.micro_batch_size > 1:
        text = f"--micro_batch_size 1 --accumulation_steps {accumulated} --use_grad_checkpoint"
        options.append((text, replace(recomputed, micro_batch_size=1, accumulation_steps=accumulated)))
    if settings.plugin not in ("zero2", "zero2_cpu"):
        options.append(("--plugin zero2 --use_grad_checkpoint", replace(whole, plugin="zero2")))
    is_full = settings.optimizer_states == "fp32"
    if settings.plugin == "zero2" and settings.mixed_precision == "bf16" and is_full:
        options += [
            (f"--optimizer_states {states} --use_grad_checkpoint", replace(recomputed, optimizer_states=states))
            for states in ("bf16", "8bit")
        ]
    if settings.plugin != "zero2_cpu":
        text = "--plugin zero2_cpu --use_grad_checkpoint" + ("" if is_full else " --optimizer_states fp32")
        options.append((text, replace(whole, plugin="zero2_cpu", optimizer_states="fp32")))
    more = replace(recomputed, data_parallel_size=8 * settings.data_parallel_size)
    return [*options, ("eight times the processes and --use_grad_checkpoint", more)]


def _record(arguments: TrainingArguments, run: DryRun, memory: MemoryEstimate, device_bytes: int | None) -> dict:
    return {
        "arguments": arguments.as_json(),
        "parameters": memory.parameters,
        "trained_parameters": trained_values(arguments.method, run.config, run.new_rows) or memory.parameters,
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
        "decay_steps": run.schedule.decay_steps,
        "num_epochs": run.schedule.num_epochs,
        "task_questions": len(run.task_questions),
        "task_tokens": sum(len(question.prompt) for question in run.task_questions),
        "checkpoint_bytes": _checkpoint_bytes(arguments, run.config),
        "memory_bytes": memory.phases,
        "peak_bytes": memory.peak_bytes,
        "peak_moment": memory.peak_phase,
        "host_bytes": memory.host_bytes,
        "gpu_bytes": device_bytes,
        "fits": None if device_bytes is None else memory.fits(device_bytes),
    }
