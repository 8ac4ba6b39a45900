"""Builds a trainer: prepares model and optimizer, restores a checkpoint, opens the output files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from colossal_llama.dataset.collator import Collator
from colossal_llama.dataset.epoch_plan import plan_epoch
from colossal_llama.dataset.loader import RowReader, StepGeometry
from colossal_llama.dataset.part import Part, categories_of
from colossal_llama.engine.hybrid_adam import build_optimizer
from colossal_llama.engine.launch import current_device, has_gpu, take_share_of_cores
from colossal_llama.engine.optimizer_step import choose_step, use_states
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.training.arguments import (
    HOST_OPTIMIZER_PLUGINS,
    DataArguments,
    MethodArguments,
    PluginArguments,
    TrainingArguments,
)
from colossal_llama.training.checkpoint.restore import restore
from colossal_llama.training.checkpoint.saver import CheckpointSaver
from colossal_llama.training.checkpoint.state import Progress
from colossal_llama.training.distributed import consensus
from colossal_llama.training.evaluation import Evaluator
from colossal_llama.training.inputs import RunInputs, packed_to_tokens, resume_progress
from colossal_llama.training.lr_schedule import plan_schedule, step_geometry
from colossal_llama.training.metrics import MetricsWriter, begin_record, recorded_names
from colossal_llama.training.model_setup import ModelSetup
from colossal_llama.training.nonfinite_steps import NonFiniteSteps
from colossal_llama.training.optimizer_groups import parameter_groups
from colossal_llama.training.record_files import NONFINITE_STEPS_FILE
from colossal_llama.training.run_dir import archive_earlier_results
from colossal_llama.training.startup_report import write_config_file
from colossal_llama.training.task_evaluation import TaskEvaluator
from colossal_llama.training.train_step import TrainStep
from colossal_llama.training.trained_parameters import learning_rate_ratios
from colossal_llama.training.trainer import Trainer
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.errors import UserError


def build_trainer(arguments: TrainingArguments, inputs: RunInputs, setup: ModelSetup) -> Trainer:
    """Prepares model and optimizer for the plugin, restores a checkpoint, and builds the trainer.

    Results of an earlier run are archived last, when nothing else can fail before the first step.

    Raises:
        CollectiveError: a file cannot be read or written.
        UserError: data, tokenizer or order differ from those of the checkpoint.
    """
    backend = setup.backend
    groups = parameter_groups(arguments, inputs, setup.model)
    optimizer = build_optimizer(setup.model, arguments.optimizer.lr, arguments.optimizer.weight_decay, groups)
    model, optimizer = backend.prepare(setup.model, optimizer)
    setup.notes.extend(_choose_optimizer_step(arguments, optimizer))
    geometry = step_geometry(arguments.data, arguments.plugin, backend.data_parallel_size)
    reader = _reader(arguments.data, arguments.plugin, inputs, inputs.parts)
    part_lengths = [part.row_lengths_tokens() for part in inputs.parts]
    progress = Progress()
    if inputs.checkpoint is not None:
        progress = resume_progress(inputs.checkpoint, inputs.origin, arguments.checkpoint.allow_other_data)
    schedule = plan_schedule(
        arguments.optimizer,
        arguments.data.num_epochs,
        part_lengths,
        inputs.origin,
        geometry,
        progress,
        learning_rate_ratios(arguments),
    )
    if inputs.checkpoint is not None:
        restore(inputs.checkpoint, backend, model, optimizer)
    inputs.verification.finish()
    write_config_file(arguments, geometry, schedule, inputs)
    saver, metrics, nonfinite_record = _open_records(arguments, inputs, setup, model, optimizer, progress)
    train_step = _train_step(arguments, inputs, setup, model, optimizer)
    evaluators: list[Evaluator | TaskEvaluator] = [
        *_evaluator(arguments, inputs, train_step, geometry),
        *_task_evaluator(arguments, inputs, train_step, geometry),
    ]
    is_unevaluated = _mark_evaluated(evaluators, arguments.records.tensorboard_dir, progress.step)
    return Trainer(
        train_step=train_step,
        reader=reader,
        part_lengths=part_lengths,
        geometry=geometry,
        schedule=schedule,
        tokenizer=inputs.tokenizer,
        origin=inputs.origin,
        metrics=metrics,
        save_interval=arguments.checkpoint.save_interval,
        save_each_epoch=not arguments.checkpoint.skip_save_each_epoch,
        saver=saver,
        flops_per_token=setup.flops_per_token,
        nonfinite_steps=NonFiniteSteps(nonfinite_record, reader, arguments.records.max_bad_steps),
        categories=_categories(inputs),
        evaluators=evaluators,
        resumes_unevaluated=is_unevaluated,
        progress=progress,
    )


def _open_records(
    arguments: TrainingArguments,
    inputs: RunInputs,
    setup: ModelSetup,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> tuple[CheckpointSaver | None, MetricsWriter, Path | None]:
    """Opens saver, metrics and record of non-finite steps; archives earlier results."""
    save_dir, is_benchmark = arguments.checkpoint.save_dir, arguments.benchmark.benchmark
    kept_steps = progress.step if _resumes_in(save_dir, inputs) else 0
    saver = None
    if not is_benchmark:
        saver = CheckpointSaver(
            save_dir,
            setup.backend,
            model,
            optimizer,
            inputs.tokenizer,
            inputs.origin,
            arguments.checkpoint.keep_last,
            arguments.checkpoint.save_in_background,
            inputs.stop_ids,
            inputs.record_of_new_rows(),
        )
    nonfinite_record = save_dir / NONFINITE_STEPS_FILE
    metrics = _metrics(arguments, kept_steps)
    if is_rank_zero() and saver is not None:
        begin_record(nonfinite_record, kept_steps)
        archive_earlier_results(save_dir, kept_steps, (inputs.model_path, inputs.adapter_path))
    return saver, metrics, None if is_benchmark else nonfinite_record


def _resumes_in(save_dir: Path, inputs: RunInputs) -> bool:
    """True when the checkpoint is in `save_dir`, so that its metrics are this run's own."""
    return inputs.checkpoint is not None and inputs.checkpoint.path.resolve().parent == save_dir.resolve()


def _metrics(arguments: TrainingArguments, resumed_at_step: int) -> MetricsWriter:
    directory = arguments.records.tensorboard_dir
    with consensus.raise_on_all_ranks():
        try:
            return MetricsWriter(
                directory, arguments.checkpoint.save_dir, resumed_at_step, arguments.benchmark.benchmark
            )
        except OSError as error:
            raise UserError(f"--tensorboard_dir {directory} cannot be written: {error.strerror}") from error


def _train_step(
    arguments: TrainingArguments,
    inputs: RunInputs,
    setup: ModelSetup,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> TrainStep:
    return TrainStep(
        backend=setup.backend,
        model=model,
        optimizer=optimizer,
        device=current_device(),
        average=arguments.optimizer.loss_average,
        noise=_attach_noise(arguments.method, setup.backend.unwrap(model)),
        seed=arguments.data.seed,
        skips_ignored_positions=setup.fuses_loss,
        categories=len(_categories(inputs)),
    )


def _categories(inputs: RunInputs) -> tuple[str, ...]:
    """Categories of all data, training and validation."""
    return categories_of([*inputs.parts, *inputs.eval_parts])


def _reader(data: DataArguments, plugin: PluginArguments, inputs: RunInputs, parts: list[Part]) -> RowReader:
    tokenizer = inputs.tokenizer
    collator = Collator(
        pad_token_id=tokenizer.pad_token_id if data.pad_token else tokenizer.eos_token_id,
        max_length=data.max_length,
        pad_to_max_length=data.padding_mode == "max_length",
        cross_document_attention=data.cross_document_attention,
        pad_to_multiple_of=plugin.sp,
        categories=len(_categories(inputs)),
    )
    return RowReader(parts, collator, _categories(inputs))


def _evaluator(
    arguments: TrainingArguments, inputs: RunInputs, train_step: TrainStep, geometry: StepGeometry
) -> Iterator[Evaluator]:
    parts, data = inputs.eval_parts, arguments.data
    if not parts:
        return
    lengths = [part.row_lengths_tokens() for part in parts]
    yield Evaluator(
        train_step=train_step,
        reader=_reader(data, arguments.plugin, inputs, parts),
        plan=plan_epoch(lengths, 0, 0, "none", packed_to_tokens(data, parts)),
        categories=_categories(inputs),
        micro_batch_size=geometry.micro_batch_size,
        interval_steps=arguments.records.eval_interval or arguments.checkpoint.save_interval,
    )


def _mark_evaluated(evaluators: Sequence[Evaluator | TaskEvaluator], directory: Path, resumed_at_step: int) -> bool:
    """Tells evaluators what was evaluated after the step from which the run resumes; a collective.

    Returns:
        True where the line of that step in metrics.jsonl lacks an evaluation.
    """
    names: list[Any] = [recorded_names(directory, resumed_at_step) if is_rank_zero() else None]
    dist.broadcast_object_list(names, src=0)
    (recorded,) = names
    for evaluator in evaluators:
        if evaluator.name in recorded:
            evaluator.last_step = resumed_at_step
    return bool(recorded) and any(evaluator.name not in recorded for evaluator in evaluators)


def _task_evaluator(
    arguments: TrainingArguments, inputs: RunInputs, train_step: TrainStep, geometry: StepGeometry
) -> Iterator[TaskEvaluator]:
    if not inputs.task_questions:
        return
    options = arguments.tasks
    yield TaskEvaluator(
        train_step=train_step,
        questions=inputs.task_questions,
        collator=Collator(
            pad_token_id=inputs.tokenizer.eos_token_id,
            max_length=max(len(question.prompt) for question in inputs.task_questions),
            pad_to_multiple_of=arguments.plugin.sp,
        ),
        tokens_per_batch=geometry.micro_batch_size * arguments.data.max_length,
        interval_steps=options.eval_task_interval or None,
    )


def _choose_optimizer_step(arguments: TrainingArguments, optimizer: torch.optim.Optimizer) -> list[str]:
    """Replaces ZeRO's step by the fused or the overlapped one where possible.

    Returns:
        Notes for the start-up report.
    """
    fused, plugin, state_format = arguments.model.fused_kernels, arguments.plugin, arguments.optimizer.optimizer_states
    if state_format != "fp32":
        return [use_states(optimizer, current_device(), state_format, arguments.data.seed, fused)]
    notes = []
    note = choose_step(optimizer, current_device()) if fused else None
    if note is not None:
        notes.append(note)
    if has_gpu() and (plugin.plugin in HOST_OPTIMIZER_PLUGINS or plugin.zero_cpu_offload):
        notes.append(f"optimizer states in host memory: {take_share_of_cores()} threads a process")
    return notes


def _attach_noise(method: MethodArguments, model: PreTrainedModel) -> NeftuneNoise | None:
    """Hooks NEFTune noise onto the prepared model's embedding.

    Done after `Backend.prepare`: tensor parallelism replaces the embedding layer.
    """
    if not method.use_neft:
        return None
    noise = NeftuneNoise(method.neft_alpha)
    noise.attach(model.get_input_embeddings())
    return noise
