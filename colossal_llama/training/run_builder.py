"""The chapters of train.py: what each line of its story does."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM

import colossal_llama
from colossal_llama.dataset.collator import Collator
from colossal_llama.dataset.epoch_plan import fill_ratio, plan_epoch
from colossal_llama.dataset.loader import RowReader, StepGeometry
from colossal_llama.dataset.part_reader import Part, categories_of
from colossal_llama.engine.backend import Backend
from colossal_llama.engine.hybrid_adam import build_optimizer
from colossal_llama.engine.launch import colossalai_version, current_device, has_gpu, take_share_of_cores
from colossal_llama.engine.optimizer_step import choose_step
from colossal_llama.model.loading import load_config
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.benchmark import describe, speed
from colossal_llama.training.checkpoint.archive import archive, archive_later_checkpoints, entry_written_by_a_run
from colossal_llama.training.checkpoint.model_files import save_merged_model
from colossal_llama.training.checkpoint.restore import restore
from colossal_llama.training.checkpoint.saver import CheckpointSaver
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, Progress
from colossal_llama.training.command_line import HOST_OPTIMIZER_PLUGINS
from colossal_llama.training.distributed import consensus, watchdog
from colossal_llama.training.dry_run import plan_run, report
from colossal_llama.training.evaluation import Evaluator, build_evaluator
from colossal_llama.training.inputs import Data, packed_to_tokens
from colossal_llama.training.lr_schedule import Schedule, plan_schedule, step_geometry
from colossal_llama.training.metrics import BENCHMARK_FILE, METRICS_FILE, MetricsWriter, begin_record
from colossal_llama.training.model_setup import Plan
from colossal_llama.training.nonfinite_steps import RECORD as BAD_STEPS_FILE
from colossal_llama.training.nonfinite_steps import NonFiniteSteps
from colossal_llama.training.train_step import TrainStep
from colossal_llama.training.trainer import Run, resume_progress
from colossal_llama.utils.atomic_io import clean_up_interrupted_writes
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.file_lock import directory_lock

SFT_ACCUMULATION_STEPS = 8


@contextmanager
def sole_writer(arguments: TrainingArguments) -> Iterator[None]:
    """Holds `--save_dir` and `--tensorboard_dir` on rank 0 while the run lasts; a benchmark writes nothing into the former.

    Raises:
        UserError: another run writes there.
    """
    save_dir, logs = arguments.save_dir, arguments.tensorboard_dir
    with ExitStack() as held:
        if not arguments.benchmark and not arguments.dry_run:
            with consensus.raise_on_all_ranks():
                if is_rank_zero():
                    _hold("--save_dir", save_dir, held)
            consensus.check_shared(save_dir, "--save_dir")
        if not arguments.dry_run and (arguments.benchmark or logs.resolve() != save_dir.resolve()):
            with consensus.raise_on_all_ranks():
                if is_rank_zero():
                    _hold("--tensorboard_dir", logs, held)
        yield


def _hold(option: str, directory: Path, held: ExitStack) -> None:
    try:
        held.enter_context(directory_lock(directory))
        if option == "--save_dir":
            _tidy(directory)
    except BlockingIOError as error:
        raise UserError(
            f"another run is writing into {directory} ({error.filename}): wait for it to end, or give another {option}"
        ) from None
    except OSError as error:
        raise UserError(f"{option} {directory} cannot be written: {error.strerror}") from None


def _tidy(save_dir: Path) -> None:
    for name in clean_up_interrupted_writes(save_dir):
        log_rank_zero(f"{save_dir / name} was being written when an earlier run ended: what there was of it is deleted")
    for line in watchdog.take_failure_report(save_dir):
        log_rank_zero(f"an earlier run ended here: {line}")


def with_defaults_of(arguments: TrainingArguments, data: Data) -> TrainingArguments:
    """The arguments with the default that depends on the data filled in."""
    kind = data.parts[0].kind
    accumulation = arguments.accumulation_steps or (SFT_ACCUMULATION_STEPS if kind == "sft" else 1)
    return replace(arguments, accumulation_steps=accumulation)


def dry_run(arguments: TrainingArguments, data: Data) -> None:
    """Says what the run would do and what memory it would take (`--dry_run`)."""
    progress = Progress()
    if data.checkpoint is not None:
        progress = resume_progress(data.checkpoint, data.origin, arguments.allow_other_data)
    report(arguments, plan_run(arguments, load_config(data.model_path), data.parts, data.origin, progress))


def boost(arguments: TrainingArguments, data: Data, plan: Plan) -> Run:
    """Hands model and optimizer to the plugin, restores a checkpoint, and puts the run together.

    What an earlier run left is moved after everything that can go wrong before the first step.
    """
    backend = plan.backend
    optimizer = build_optimizer(plan.model, arguments.lr, arguments.weight_decay)
    model, optimizer = backend.prepare(plan.model, optimizer)
    step_note = choose_step(optimizer, current_device()) if arguments.fused_kernels else None
    plan.notes.extend([step_note] if step_note else [])
    if has_gpu() and (arguments.plugin in HOST_OPTIMIZER_PLUGINS or arguments.zero_cpu_offload):
        plan.notes.append(f"optimizer states in host memory: {take_share_of_cores()} threads a process")
    geometry = step_geometry(arguments, backend.data_parallel_size)
    reader = _reader(arguments, data, data.parts)
    part_lengths = [part.row_lengths_tokens() for part in data.parts]
    progress = Progress()
    if data.checkpoint is not None:
        progress = resume_progress(data.checkpoint, data.origin, arguments.allow_other_data)
    schedule = plan_schedule(arguments, part_lengths, data.origin, geometry, progress)
    if data.checkpoint is not None:
        restore(data.checkpoint, backend, model, optimizer)
    record_configuration(arguments, geometry, schedule)
    kept_steps = progress.step if _goes_on_in_place(arguments, data) else 0
    saver = None if arguments.benchmark else _saver(arguments, data, backend, model, optimizer)
    bad_steps = None if arguments.benchmark else arguments.save_dir / BAD_STEPS_FILE
    metrics = _metrics(arguments, kept_steps)
    if is_rank_zero() and saver is not None:
        begin_record(bad_steps, kept_steps)
        _archive(arguments.save_dir, kept_steps, (data.model_path, data.adapter_path))
    train_step = _train_step(arguments, data, plan, model, optimizer)
    return Run(
        train_step=train_step,
        reader=reader,
        part_lengths=part_lengths,
        geometry=geometry,
        schedule=schedule,
        tokenizer=data.tokenizer,
        origin=data.origin,
        metrics=metrics,
        save_interval=arguments.save_interval,
        save_each_epoch=not arguments.skip_save_each_epoch,
        saver=saver,
        flops_per_token=plan.flops_per_token,
        nonfinite_steps=NonFiniteSteps(bad_steps, reader, arguments.max_bad_steps),
        categories=_categories(data),
        evaluator=_evaluator(arguments, data, train_step),
        progress=progress,
    )


def _train_step(
    arguments: TrainingArguments, data: Data, plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> TrainStep:
    """Takes the steps of the prepared model and optimizer."""
    return TrainStep(
        backend=plan.backend,
        model=model,
        optimizer=optimizer,
        device=current_device(),
        average=arguments.loss_average,
        noise=_attach_noise(arguments, plan.backend.unwrap(model)),
        seed=arguments.seed,
        skips_ignored_positions=plan.fuses_loss,
        categories=len(_categories(data)),
    )


def _goes_on_in_place(arguments: TrainingArguments, data: Data) -> bool:
    """Whether what lies in --save_dir is the past of this run, and not of another one whose checkpoints and record are set aside."""
    return data.checkpoint is not None and data.checkpoint.path.resolve().parent == arguments.save_dir.resolve()


def _archive(save_dir: Path, kept_steps: int, begun_from: Sequence[Path | None]) -> None:
    """Renames what other runs left in `--save_dir` and this one would replace: their checkpoints, and their finished models."""
    for path in archive_later_checkpoints(save_dir, kept_steps):
        log_rank_zero(f"a checkpoint of an earlier run is archived as {path}")
    if kept_steps:
        return
    used = {entry_written_by_a_run(path, save_dir) for path in begun_from if path is not None}
    for name in {MODEL, MERGED_MODEL} - used:
        if (save_dir / name).exists():
            log_rank_zero(f"the finished model of an earlier run is archived as {archive(save_dir / name)}")


def _metrics(arguments: TrainingArguments, resumed_at_step: int) -> MetricsWriter:
    directory = arguments.tensorboard_dir
    with consensus.raise_on_all_ranks():
        try:
            return MetricsWriter(directory, arguments.save_dir, resumed_at_step, arguments.benchmark)
        except OSError as error:
            raise UserError(f"--tensorboard_dir {directory} cannot be written: {error.strerror}") from error


def _categories(data: Data) -> tuple[str, ...]:
    """Of training and validation data alike."""
    return categories_of([*data.parts, *data.eval_parts])


def _reader(arguments: TrainingArguments, data: Data, parts: list[Part]) -> RowReader:
    collator = Collator(
        pad_token_id=data.tokenizer.pad_token_id if arguments.pad_token else data.tokenizer.eos_token_id,
        max_length=arguments.max_length,
        pad_to_max_length=arguments.padding_mode == "max_length",
        cross_document_attention=arguments.cross_document_attention,
        pad_to_multiple_of=arguments.sp,
        categories=len(_categories(data)),
    )
    return RowReader(parts, collator, _categories(data))


def _evaluator(arguments: TrainingArguments, data: Data, train_step: TrainStep) -> Evaluator | None:
    if not data.eval_parts:
        return None
    reader, packed = _reader(arguments, data, data.eval_parts), packed_to_tokens(arguments, data.eval_parts)
    return build_evaluator(arguments, train_step, data.eval_parts, reader, packed, _categories(data))


def _saver(
    arguments: TrainingArguments,
    data: Data,
    backend: Backend,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> CheckpointSaver:
    return CheckpointSaver(
        arguments.save_dir,
        backend,
        model,
        optimizer,
        data.tokenizer,
        data.origin,
        arguments.keep_last,
        arguments.save_in_background,
    )


def _attach_noise(arguments: TrainingArguments, model: LlamaForCausalLM) -> NeftuneNoise | None:
    """Hooks NEFTune onto the boosted model: under tensor parallelism the plugin puts an embedding layer of its own in place."""
    if not arguments.use_neft:
        return None
    noise = NeftuneNoise(arguments.neft_alpha)
    noise.attach(model.get_input_embeddings())
    return noise


def say_plan(arguments: TrainingArguments, data: Data, plan: Plan, run: Run) -> None:
    """Prints what is about to happen."""
    network = plan.backend.unwrap(run.train_step.model)
    world = dist.get_world_size()
    log_rank_zero(
        f"{sum(p.numel() for p in network.parameters()):,} parameters on this rank, plugin {arguments.plugin}, "
        f"{world} process"
        f"{'es' if world > 1 else ''} ({run.train_step.device.type}), {arguments.mixed_precision}"
    )
    geometry, schedule = run.geometry, run.schedule
    samples = sum(len(lengths) for lengths in run.part_lengths)
    log_rank_zero(
        f"{samples:,} prepared rows, {sum(part.tokens for part in data.parts):,} tokens in {len(data.parts)} parts "
        f"of kind {data.parts[0].kind}; "
        f"{geometry.rows_per_step} rows a step ({geometry.data_parallel_size} data-parallel x "
        f"{geometry.micro_batch_size} x "
        f"{geometry.accumulation_steps} accumulated); {schedule.total_steps} steps, {schedule.warmup_steps} of "
        "warm-up, "
        f"{schedule.num_epochs} epoch{'s' if schedule.num_epochs > 1 else ''}"
    )
    if data.origin.packed_to_tokens is not None:
        packed = plan_epoch(
            run.part_lengths, data.origin.seed, run.progress.epoch, data.origin.shuffle, arguments.max_length
        )
        filled = fill_ratio(packed, np.concatenate(run.part_lengths), arguments.max_length)
        log_rank_zero(
            f"packed into {len(packed):,} rows of up to {arguments.max_length} tokens, {filled:.1%} full"
            f"{'' if arguments.cross_document_attention else '; samples do not see each other'}"
        )
    if schedule.warmup_steps >= schedule.total_steps:
        log_rank_zero(
            f"warning: {schedule.warmup_steps} warm-up steps of {schedule.total_steps}: the run ends before the rate "
            "reaches --lr"
        )
    for note in plan.notes:
        log_rank_zero(note)
    if data.checkpoint is not None:
        log_rank_zero(f"resuming {data.checkpoint.path} after step {run.progress.step}")
        if schedule.total_steps <= run.progress.step:
            log_rank_zero(f"warning: nothing is left to train: the run ends after step {schedule.total_steps}")


def record_configuration(arguments: TrainingArguments, geometry: StepGeometry, schedule: Schedule) -> None:
    """Writes `--config_file`: arguments, versions, world and schedule of this run."""
    consensus.write_record("--config_file", arguments.config_file, _configuration(arguments, geometry, schedule))


def _configuration(arguments: TrainingArguments, geometry: StepGeometry, schedule: Schedule) -> dict[str, Any]:
    import transformers

    return {
        "command": sys.argv,
        "arguments": arguments.as_json(),
        "world_size": dist.get_world_size(),
        "device": str(current_device()),
        "total_steps": schedule.total_steps,
        "warmup_steps": schedule.warmup_steps,
        "rows_per_step": geometry.rows_per_step,
        "started_s": round(time.time(), 3),
        "versions": {
            "colossal_llama": colossal_llama.__version__,
            "torch": torch.__version__,
            "colossalai": colossalai_version(),
            "transformers": transformers.__version__,
        },
    }


def finish(arguments: TrainingArguments, run: Run, base_path: Path, finished: bool) -> None:
    """Saves the final model of a finished run and says where everything is."""
    if arguments.benchmark:
        if is_rank_zero():
            record = arguments.tensorboard_dir / BENCHMARK_FILE
            log_rank_zero(f"benchmark: {describe(speed(record))}; the record is {record}")
    elif finished:
        path = run.saver.save_model()
        log_rank_zero(
            f"done: {run.progress.step} steps, {run.progress.tokens_seen:,} tokens "
            f"({run.progress.target_tokens_seen:,} targets); "
            f"the model is {path}, the record {arguments.tensorboard_dir / METRICS_FILE}"
        )
        if arguments.merge_lora:
            log_rank_zero(f"base and adapter merged: {save_merged_model(arguments.save_dir, base_path, run.tokenizer)}")
