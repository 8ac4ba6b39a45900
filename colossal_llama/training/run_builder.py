"""Builds a run: model and optimizer in the plugin, checkpoint restored, trainer put together."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from colossal_llama.dataset.collator import Collator
from colossal_llama.dataset.loader import RowReader
from colossal_llama.dataset.part_reader import Part, categories_of
from colossal_llama.engine.hybrid_adam import build_optimizer
from colossal_llama.engine.launch import current_device, has_gpu, take_share_of_cores
from colossal_llama.engine.optimizer_step import choose_step
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.training.arguments import HOST_OPTIMIZER_PLUGINS, MethodArguments, TrainingArguments
from colossal_llama.training.checkpoint.restore import restore
from colossal_llama.training.checkpoint.saver import CheckpointSaver
from colossal_llama.training.checkpoint.state import Progress
from colossal_llama.training.distributed import consensus
from colossal_llama.training.evaluation import Evaluator, build_evaluator
from colossal_llama.training.inputs import RunInputs, packed_to_tokens, resume_progress
from colossal_llama.training.lr_schedule import plan_schedule, step_geometry
from colossal_llama.training.metrics import MetricsWriter, begin_record
from colossal_llama.training.model_setup import ModelSetup
from colossal_llama.training.nonfinite_steps import RECORD as NONFINITE_STEPS_FILE
from colossal_llama.training.nonfinite_steps import NonFiniteSteps
from colossal_llama.training.run_dir import archive_earlier_results
from colossal_llama.training.startup_report import write_config_file
from colossal_llama.training.train_step import TrainStep
from colossal_llama.training.trainer import Trainer
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.errors import UserError


def build_trainer(arguments: TrainingArguments, inputs: RunInputs, setup: ModelSetup) -> Trainer:
    """Hands model and optimizer to the plugin, restores a checkpoint, and puts the trainer together.

    Results of an earlier run are archived last, after all that can fail before the first step.
    """
    backend = setup.backend
    optimizer = build_optimizer(setup.model, arguments.optimizer.lr, arguments.optimizer.weight_decay)
    model, optimizer = backend.prepare(setup.model, optimizer)
    setup.notes.extend(_choose_optimizer_step(arguments, optimizer))
    geometry = step_geometry(arguments, backend.data_parallel_size)
    reader = _reader(arguments, inputs, inputs.parts)
    part_lengths = [part.row_lengths_tokens() for part in inputs.parts]
    progress = Progress()
    if inputs.checkpoint is not None:
        progress = resume_progress(inputs.checkpoint, inputs.origin, arguments.checkpoint.allow_other_data)
    schedule = plan_schedule(
        arguments.optimizer, arguments.data.num_epochs, part_lengths, inputs.origin, geometry, progress
    )
    if inputs.checkpoint is not None:
        restore(inputs.checkpoint, backend, model, optimizer)
    write_config_file(arguments, geometry, schedule)
    saver, metrics, nonfinite_record = _begin_records(arguments, inputs, setup, model, optimizer, progress)
    train_step = _train_step(arguments, inputs, setup, model, optimizer)
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
        evaluator=_evaluator(arguments, inputs, train_step),
        progress=progress,
    )


def _begin_records(
    arguments: TrainingArguments,
    inputs: RunInputs,
    setup: ModelSetup,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> tuple[CheckpointSaver | None, MetricsWriter, Path | None]:
    """Opens checkpoints, metrics and the record of non-finite steps; archives an earlier run's results."""
    save_dir, is_benchmark = arguments.checkpoint.save_dir, arguments.benchmark.benchmark
    kept_steps = progress.step if _resumes_in_place(arguments, inputs) else 0
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
        )
    nonfinite_record = None if is_benchmark else save_dir / NONFINITE_STEPS_FILE
    metrics = _metrics(arguments, kept_steps)
    if is_rank_zero() and saver is not None:
        begin_record(nonfinite_record, kept_steps)
        archive_earlier_results(save_dir, kept_steps, (inputs.model_path, inputs.adapter_path))
    return saver, metrics, nonfinite_record


def _resumes_in_place(arguments: TrainingArguments, inputs: RunInputs) -> bool:
    """True when the checkpoint lies in `--save_dir`: its earlier checkpoints and record are this run's own."""
    save_dir = arguments.checkpoint.save_dir
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
    """Categories of training and validation data together."""
    return categories_of([*inputs.parts, *inputs.eval_parts])


def _reader(arguments: TrainingArguments, inputs: RunInputs, parts: list[Part]) -> RowReader:
    data, tokenizer = arguments.data, inputs.tokenizer
    collator = Collator(
        pad_token_id=tokenizer.pad_token_id if data.pad_token else tokenizer.eos_token_id,
        max_length=data.max_length,
        pad_to_max_length=data.padding_mode == "max_length",
        cross_document_attention=data.cross_document_attention,
        pad_to_multiple_of=arguments.plugin.sp,
        categories=len(_categories(inputs)),
    )
    return RowReader(parts, collator, _categories(inputs))


def _evaluator(arguments: TrainingArguments, inputs: RunInputs, train_step: TrainStep) -> Evaluator | None:
    if not inputs.eval_parts:
        return None
    reader = _reader(arguments, inputs, inputs.eval_parts)
    packed = packed_to_tokens(arguments.data, inputs.eval_parts)
    return build_evaluator(arguments, train_step, inputs.eval_parts, reader, packed, _categories(inputs))


def _choose_optimizer_step(arguments: TrainingArguments, optimizer: torch.optim.Optimizer) -> list[str]:
    """Replaces ZeRO's step by the fused or the overlapped one where possible; returns notes for the report."""
    plugin, notes = arguments.plugin, []
    note = choose_step(optimizer, current_device()) if arguments.model.fused_kernels else None
    if note is not None:
        notes.append(note)
    if has_gpu() and (plugin.plugin in HOST_OPTIMIZER_PLUGINS or plugin.zero_cpu_offload):
        notes.append(f"optimizer states in host memory: {take_share_of_cores()} threads a process")
    return notes


def _attach_noise(method: MethodArguments, model: LlamaForCausalLM) -> NeftuneNoise | None:
    """Hooks NEFTune onto the prepared model: tensor parallelism replaces the embedding layer by its own."""
    if not method.use_neft:
        return None
    noise = NeftuneNoise(method.neft_alpha)
    noise.attach(model.get_input_embeddings())
    return noise
