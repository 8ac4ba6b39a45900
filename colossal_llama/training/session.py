"""The chapters of train.py: what each line of its story does."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import colossal_llama
from colossal_llama.dataset.loader import Collator, Part, RowReader, categories_of, data_fingerprint, open_parts
from colossal_llama.dataset.packing import fill, plan_epoch
from colossal_llama.model.attention import choose_attention
from colossal_llama.model.fp8_linear import use_fp8, why_no_fp8
from colossal_llama.model.freezing import freeze_all_but_embeddings
from colossal_llama.model.kernels import use_fused_kernels, why_no_fused_kernels
from colossal_llama.model.loading import flops_per_token, load_config, load_model
from colossal_llama.model.lora import ADAPTER_WEIGHTS, adapter_base_path, adapter_settings, is_adapter, lora_config
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.model.recompute import recompute_layers
from colossal_llama.model.token_losses import give_token_losses
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.training import agreement, host_watch
from colossal_llama.training.arguments import GPU_ONLY_PLUGINS, HOST_OPTIMIZER_PLUGINS, LORA_LAYERS, TrainingArguments
from colossal_llama.training.bad_steps import BadSteps, refuse_bad_updates
from colossal_llama.training.benchmark import describe, random_part, speed
from colossal_llama.training.checkpoint import (
    Checkpoint,
    Origin,
    Progress,
    find_checkpoint,
    open_checkpoint,
    set_aside_later,
)
from colossal_llama.training.dimensions import notes_on_dimensions
from colossal_llama.training.dry_run import plan_run, report
from colossal_llama.training.evaluation import Evaluator, build_evaluator
from colossal_llama.training.lean_zero import use_lean_update, why_no_lean_update
from colossal_llama.training.loop import Run, resume_progress
from colossal_llama.training.metrics import MetricsWriter
from colossal_llama.training.optimizer import build_optimizer
from colossal_llama.training.pipeline import step_geometry
from colossal_llama.training.plugins import PRECISIONS, Engine, build_engine, data_parallel_place
from colossal_llama.training.recomputation import choose_recomputed_layers
from colossal_llama.training.restoring import restore
from colossal_llama.training.saving import CheckpointSaver, save_merged_model
from colossal_llama.training.schedule import plan_schedule
from colossal_llama.training.step import Stepper
from colossal_llama.utils.console import is_rank_zero, say
from colossal_llama.utils.engine import current_device, has_gpu, take_share_of_cores
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import fingerprint_directory, held_directory, tidy_directory, write_json

SFT_ACCUMULATION_STEPS = 8


@dataclass(frozen=True)
class Data:
    """The opened parts, and the tokenizer that they were made with."""

    parts: list[Part]
    tokenizer: PreTrainedTokenizerFast
    model_path: Path
    """Where weights and tokenizer come from: the checkpoint's model when there is one, else --pretrained; with LoRA the base."""
    adapter_path: Path | None
    """A LoRA adapter to go on from."""
    eval_parts: list[Part]
    """For the validation loss; none without --eval_dataset."""
    checkpoint: Checkpoint | None
    """To resume from; None for a fresh start or a weights-only one."""
    origin: Origin

    def model_fingerprint(self) -> str:
        """Differs when the files of model or adapter do."""
        paths = [path for path in (self.model_path, self.adapter_path) if path is not None]
        return "".join(fingerprint_directory(path) for path in paths)


@dataclass(frozen=True)
class Plan:
    """An engine and the model that it will train."""

    engine: Engine
    model: LlamaForCausalLM | PeftModel
    flops_per_token: float
    fuses_loss: bool
    """Whether the output layer and the cross-entropy are one, and the logits never built."""
    notes: list[str]


@contextmanager
def sole_writer(arguments: TrainingArguments) -> Iterator[None]:
    """Holds `--save_dir` on rank 0 while the run lasts; a benchmark writes nothing there.

    Raises:
        UserError: another run writes there.
    """
    save_dir = arguments.save_dir
    with ExitStack() as held:
        if not arguments.benchmark and not arguments.dry_run:
            with agreement.together():
                if is_rank_zero():
                    _hold(save_dir, held)
            agreement.check_shared(save_dir, "--save_dir")
        yield


def _hold(save_dir: Path, held: ExitStack) -> None:
    try:
        held.enter_context(held_directory(save_dir))
        for name in tidy_directory(save_dir):
            say(f"{save_dir / name} was being written when an earlier run ended: what there was of it is deleted")
        for words in host_watch.last_words(save_dir):
            say(f"an earlier run ended here: {words}")
    except BlockingIOError as error:
        raise UserError(
            f"another run is writing into {save_dir} ({error.filename}): wait for it to end, or give another --save_dir"
        ) from None
    except OSError as error:
        raise UserError(f"--save_dir {save_dir} cannot be written: {error.strerror}") from None


def open_data(arguments: TrainingArguments) -> Data:
    """Opens parts and tokenizer, finds the checkpoint to resume from, and checks that they belong together, on all hosts alike."""
    checkpoint = _agreed_checkpoint(arguments)
    with agreement.together():
        data = _open_data(arguments, checkpoint)
        contents = {
            "the data (--dataset)": data.origin.data_fingerprint,
            "the data (--eval_dataset)": data_fingerprint(data.eval_parts),
            str(data.model_path): data.model_fingerprint(),
        }
    agreement.check_same(contents)
    return data


def _open_data(arguments: TrainingArguments, checkpoint: Checkpoint | None) -> Data:
    model_path, adapter_path = _model_paths(arguments, checkpoint)
    load_config(model_path)
    tokenizer = load_tokenizer(model_path)
    if arguments.benchmark:
        parts = [random_part(arguments.num_samples, arguments.max_length, len(tokenizer))]
    else:
        parts = open_parts(arguments.dataset, arguments.max_length)
    eval_parts = []
    if arguments.eval_dataset:
        eval_parts = open_parts(arguments.eval_dataset, arguments.max_length, option="--eval_dataset")
    fingerprint = tokenizer_fingerprint(tokenizer)
    foreign = [part for part in [*parts, *eval_parts] if part.tokenizer_fingerprint not in (None, fingerprint)]
    if foreign and not arguments.allow_other_data:
        option = "--dataset" if foreign[0] in parts else "--eval_dataset"
        raise UserError(
            f"{option}: {foreign[0].path} was prepared with another tokenizer than the one in {model_path}: prepare it with "
            f"--tokenizer_dir {model_path} (or say --allow_other_data)"
        )
    origin = Origin(
        data_fingerprint=data_fingerprint(parts),
        tokenizer_fingerprint=fingerprint,
        parts=len(parts),
        seed=arguments.seed,
        shuffle=arguments.shuffle,
        packed_to_tokens=_packed_to_tokens(arguments, parts),
    )
    return Data(parts, tokenizer, model_path, adapter_path, eval_parts, checkpoint, origin)


def _packed_to_tokens(arguments: TrainingArguments, parts: list[Part]) -> int | None:
    # Pre-training rows are spliced already; conversations stand alone in the parts.
    packs = arguments.padding_mode == "none" and parts[0].kind == "sft"
    return arguments.max_length if packs else None


def _agreed_checkpoint(arguments: TrainingArguments) -> Checkpoint | None:
    """The checkpoint that rank 0 finds, opened by every rank: hosts that do not share --save_dir must not go different ways."""
    choice: list[Path | None] = [None]
    with agreement.together():
        if is_rank_zero():
            found = find_checkpoint(arguments.load_checkpoint, arguments.save_dir)
            choice = [found.path if found else None]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return None
    with agreement.together():
        if not choice[0].is_dir():
            raise UserError(
                f"{choice[0]}, from which rank 0 resumes, is absent: --save_dir must be shared by all hosts"
            )
        return open_checkpoint(choice[0])


def _model_paths(arguments: TrainingArguments, checkpoint: Checkpoint | None) -> tuple[Path, Path | None]:
    """The model to load, and the adapter to put on it if the run goes on from one."""
    path = arguments.pretrained
    if checkpoint is not None:
        path = checkpoint.model_path
    elif arguments.load_checkpoint not in (None, "auto"):
        path = Path(arguments.load_checkpoint)  # a modelling folder: weights only
    if is_adapter(path):
        _check_adapter(arguments, path)
        return arguments.pretrained or adapter_base_path(path), path
    if checkpoint is not None and arguments.lora_rank:
        raise UserError(
            f"{path} is a whole model, so --lora_rank cannot resume it: start from it with --pretrained {path}"
        )
    return path, None


def _check_adapter(arguments: TrainingArguments, path: Path) -> None:
    """Refuses LoRA options that are not those of the adapter that the run goes on with: peft takes the adapter's."""
    saved = adapter_settings(path)
    problems = []
    if not (path / ADAPTER_WEIGHTS).is_file():
        problems.append(f"{path} holds no {ADAPTER_WEIGHTS}; pickled adapters are not loaded")
    if arguments.lora_rank != saved["r"]:
        problems.append(
            f"{path} is a LoRA adapter of rank {saved['r']}: give --lora_rank {saved['r']} to go on with it"
        )
    if arguments.lora_alpha not in (None, saved["lora_alpha"]):
        problems.append(f"{path} was trained with --lora_alpha {saved['lora_alpha']}, not {arguments.lora_alpha}")
    if arguments.lora_dropout not in (0.0, saved["lora_dropout"]):
        problems.append(f"{path} was trained with --lora_dropout {saved['lora_dropout']}, not {arguments.lora_dropout}")
    if arguments.lora_target_modules != LORA_LAYERS and set(arguments.lora_target_modules) != set(
        saved["target_modules"]
    ):
        problems.append(
            f"{path} has adapters on {', '.join(sorted(saved['target_modules']))}: give these as --lora_target_modules"
        )
    if problems:
        raise UserError(problems)


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


def open_model(arguments: TrainingArguments, data: Data) -> Plan:
    """Builds the engine and loads the model as it wants it: dtype, attention, kernels, freezing, checkpointing."""
    engine = build_engine(arguments)
    device = current_device()
    compute_dtype = PRECISIONS[arguments.mixed_precision]
    config = load_config(data.model_path)
    heads = (config.num_attention_heads // arguments.tp, config.num_key_value_heads // arguments.tp, config.head_dim)
    attention, attention_note = choose_attention(
        arguments.use_flash_attn, arguments.fused_kernels, device, compute_dtype, heads
    )
    with agreement.together():
        model = load_model(data.model_path, engine.parameter_dtype, attention, _place_to_load(arguments, device))
    give_token_losses(model)
    notes = [attention_note, _use_kernels(arguments, model, device)]
    if arguments.fp8:
        notes.append(_use_fp8(model, device))
    notes += notes_on_dimensions(
        arguments.pp,
        arguments.sp,
        arguments.sp_mode,
        arguments.microbatch_size,
        step_geometry(arguments, 1).accumulation_steps,
    )
    _check_vocabulary(model, data)
    if arguments.use_grad_checkpoint:
        notes.append(_recompute(arguments, engine, model, device))
    if arguments.freeze_non_embeds_params:
        freeze_all_but_embeddings(model)
        notes.append("training input and output embeddings only")
    flops = flops_per_token(model, arguments.max_length)
    if arguments.lora_rank:
        model = _with_adapters(arguments, data, engine, model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        notes.append(f"LoRA of rank {arguments.lora_rank}: {trained:,} parameters are trained")
    return Plan(engine, model, flops, _fuses_loss(arguments, device), notes)


def _place_to_load(arguments: TrainingArguments, device: torch.device) -> torch.device:
    """Where a process loads the whole model: one that will keep a part of it leaves the rest on the disk.

    On the CPU the weight files are mapped, and all processes of a host share what is read of them (a model of 395 MB takes 1 MB of a
    process's own memory), as long as the files have the dtype that the run wants.
    """
    return torch.device("cpu") if arguments.tp * arguments.pp > 1 else device


def _with_adapters(arguments: TrainingArguments, data: Data, engine: Engine, model: LlamaForCausalLM) -> PeftModel:
    """The model with LoRA adapters on it, new ones or those of a checkpoint, in the model's dtype."""
    alpha = arguments.lora_alpha or 2.0 * arguments.lora_rank
    config = lora_config(arguments.lora_rank, alpha, arguments.lora_dropout, arguments.lora_target_modules)
    adapter = str(data.adapter_path) if data.adapter_path else None
    torch.manual_seed(arguments.seed)  # adapters begin random, and must be the same on every rank
    return engine.booster.enable_lora(model, pretrained_dir=adapter, lora_config=config).to(engine.parameter_dtype)


def _recompute(arguments: TrainingArguments, engine: Engine, model: LlamaForCausalLM, device: torch.device) -> str:
    """Lets layers recompute their activations."""
    _, data_parallel_size = data_parallel_place(engine)
    layers = choose_recomputed_layers(arguments, model.config, device, data_parallel_size)
    # The non-reentrant way stops a recomputation by an exception as soon as it has what it needs; Gemini's hooks around each
    # operation would then be left open.
    recompute_layers(model, layers, reentrant=arguments.plugin in GPU_ONLY_PLUGINS)
    return f"gradient checkpointing: {layers} of {model.config.num_hidden_layers} layers are recomputed"


def _fuses_loss(arguments: TrainingArguments, device: torch.device) -> bool:
    return arguments.fused_kernels and arguments.tp == 1 and why_no_fused_kernels(device) is None


def _use_kernels(arguments: TrainingArguments, model: LlamaForCausalLM, device: torch.device) -> str:
    if not arguments.fused_kernels:
        return "fused kernels: off (--fused_kernels False)"
    reason = why_no_fused_kernels(device)
    if reason is not None:
        return f"fused kernels: off, {reason}"
    fuse_loss = _fuses_loss(arguments, device)
    use_fused_kernels(model, fuse_loss=fuse_loss)
    return "fused kernels: norm, rotary, SwiGLU" + (", linear cross-entropy" if fuse_loss else "")


def _use_fp8(model: LlamaForCausalLM, device: torch.device) -> str:
    reason = why_no_fp8(device, model.config)
    if reason is not None:
        raise UserError(f"--fp8 cannot be used: {reason}")
    use_fp8(model)
    return "fp8: the decoder layers' products are computed in 8 bits"


def _check_vocabulary(model: LlamaForCausalLM, data: Data) -> None:
    rows, tokens = model.get_input_embeddings().num_embeddings, len(data.tokenizer)
    if rows < tokens:
        raise UserError(
            f"{data.model_path}: the model has {rows} embedding rows, its tokenizer {tokens} tokens: "
            "run colossal_llama/model/init_model.py first"
        )


def boost(arguments: TrainingArguments, data: Data, plan: Plan) -> Run:
    """Hands model and optimizer to the plugin, restores a checkpoint, and puts the run together."""
    engine = plan.engine
    optimizer = build_optimizer(plan.model, arguments.lr, arguments.weight_decay)
    model, optimizer = engine.boost(plan.model, optimizer)
    plan.notes.extend(_lean_update(arguments, optimizer))
    if has_gpu() and (arguments.plugin in HOST_OPTIMIZER_PLUGINS or arguments.zero_cpu_offload):
        plan.notes.append(f"optimizer states in host memory: {take_share_of_cores()} threads a process")
    if engine.clips_itself:
        refuse_bad_updates(optimizer)
    rank, size = data_parallel_place(engine)
    geometry = step_geometry(arguments, size)
    reader = _reader(arguments, data, data.parts)
    part_lengths = [part.row_lengths_tokens() for part in data.parts]
    progress = Progress()
    if data.checkpoint is not None:
        progress = resume_progress(data.checkpoint, data.origin, arguments.allow_other_data)
        restore(data.checkpoint, engine, model, optimizer)
    saver = None if arguments.benchmark else _saver(arguments, data, engine, model, optimizer)
    if is_rank_zero() and saver is not None:
        for path in set_aside_later(arguments.save_dir, progress.step):
            say(f"a checkpoint of an earlier run was in the way and is now {path}")
    stepper = Stepper(
        engine=engine,
        model=model,
        optimizer=optimizer,
        device=current_device(),
        data_parallel_rank=rank,
        data_parallel_size=size,
        gradient_clipping=arguments.gradient_clipping,
        average=arguments.loss_average,
        noise=_attach_noise(arguments, model.unwrap(unwrap_peft=False)),
        seed=arguments.seed,
        skips_ignored_positions=plan.fuses_loss,
        categories=len(_categories(data)),
    )
    return Run(
        stepper=stepper,
        reader=reader,
        part_lengths=part_lengths,
        geometry=geometry,
        schedule=plan_schedule(arguments, part_lengths, data.origin, geometry, progress),
        tokenizer=data.tokenizer,
        origin=data.origin,
        metrics=MetricsWriter(arguments.tensorboard_dir, resumed_at_step=progress.step),
        save_dir=arguments.save_dir,
        save_interval=arguments.save_interval,
        save_each_epoch=not arguments.skip_save_each_epoch,
        saver=saver,
        flops_per_token=plan.flops_per_token,
        bad_steps=BadSteps(arguments.save_dir, reader, arguments.max_bad_steps),
        categories=_categories(data),
        evaluator=_evaluator(arguments, data, stepper),
        progress=progress,
    )


def _categories(data: Data) -> tuple[str, ...]:
    """Of training and validation data alike."""
    return categories_of([*data.parts, *data.eval_parts])


def _reader(arguments: TrainingArguments, data: Data, parts: list[Part]) -> RowReader:
    collator = Collator(
        pad_token_id=data.tokenizer.eos_token_id,
        max_length=arguments.max_length,
        pad_to_max_length=arguments.padding_mode == "max_length",
        cross_document_attention=arguments.cross_document_attention,
        pad_to_multiple_of=arguments.sp,
        categories=len(_categories(data)),
    )
    return RowReader(parts, collator, _categories(data))


def _evaluator(arguments: TrainingArguments, data: Data, stepper: Stepper) -> Evaluator | None:
    if not data.eval_parts:
        return None
    reader, packed = _reader(arguments, data, data.eval_parts), _packed_to_tokens(arguments, data.eval_parts)
    return build_evaluator(arguments, stepper, data.eval_parts, reader, packed, _categories(data))


def _lean_update(arguments: TrainingArguments, optimizer: torch.optim.Optimizer) -> list[str]:
    """Makes ZeRO's update lean where that can be; returns what there is to say of it."""
    device = current_device()
    if not arguments.fused_kernels or device.type != "cuda":
        return []
    reason = why_no_lean_update(optimizer, device)
    if reason is not None:
        return [f"optimizer update: the plugin's own, {reason}"]
    use_lean_update(optimizer)
    return ["optimizer update: one fused pass a parameter"]


def _saver(
    arguments: TrainingArguments,
    data: Data,
    engine: Engine,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> CheckpointSaver:
    return CheckpointSaver(
        arguments.save_dir,
        engine,
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
    network = run.stepper.model.unwrap(unwrap_peft=False)
    world = dist.get_world_size()
    say(
        f"{sum(p.numel() for p in network.parameters()):,} parameters on this rank, plugin {arguments.plugin}, {world} process"
        f"{'es' if world > 1 else ''} ({run.stepper.device.type}), {arguments.mixed_precision}"
    )
    geometry, schedule = run.geometry, run.schedule
    samples = sum(len(lengths) for lengths in run.part_lengths)
    say(
        f"{samples:,} prepared rows, {sum(part.tokens for part in data.parts):,} tokens in {len(data.parts)} parts "
        f"of kind {data.parts[0].kind}; "
        f"{geometry.rows_per_step} rows a step ({geometry.data_parallel_size} data-parallel x {geometry.micro_batch_size} x "
        f"{geometry.accumulation_steps} accumulated); {schedule.total_steps} steps, {schedule.warmup_steps} of warm-up, "
        f"{schedule.num_epochs} epoch{'s' if schedule.num_epochs > 1 else ''}"
    )
    if data.origin.packed_to_tokens is not None:
        packed = plan_epoch(
            run.part_lengths, data.origin.seed, run.progress.epoch, data.origin.shuffle, arguments.max_length
        )
        filled = fill(packed, np.concatenate(run.part_lengths), arguments.max_length)
        say(
            f"packed into {len(packed):,} rows of up to {arguments.max_length} tokens, {filled:.1%} full; samples do not see each other"
        )
    if schedule.warmup_steps >= schedule.total_steps:
        say(
            f"warning: {schedule.warmup_steps} warm-up steps of {schedule.total_steps}: the run ends before the rate reaches --lr"
        )
    for note in plan.notes:
        say(note)
    if data.checkpoint is not None:
        say(f"resuming {data.checkpoint.path} after step {run.progress.step}")


def record_configuration(arguments: TrainingArguments, run: Run) -> None:
    """Writes `--config_file`: arguments, versions, world and schedule of this run."""
    if not is_rank_zero():
        return
    import colossalai
    import transformers

    arguments.config_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.config_file,
        {
            "command": sys.argv,
            "arguments": arguments.as_json(),
            "world_size": dist.get_world_size(),
            "device": str(run.stepper.device),
            "total_steps": run.schedule.total_steps,
            "warmup_steps": run.schedule.warmup_steps,
            "rows_per_step": run.geometry.rows_per_step,
            "started_s": round(time.time(), 3),
            "versions": {
                "colossal_llama": colossal_llama.__version__,
                "torch": torch.__version__,
                "colossalai": colossalai.__version__,
                "transformers": transformers.__version__,
            },
        },
    )


def finish(arguments: TrainingArguments, run: Run, base_path: Path, finished: bool) -> None:
    """Saves the final model of a finished run and says where everything is."""
    if arguments.benchmark:
        if is_rank_zero():
            say(f"benchmark: {describe(speed(arguments.tensorboard_dir / 'metrics.jsonl'))}")
    elif finished:
        path = run.saver.save_model()
        say(
            f"done: {run.progress.step} steps, {run.progress.tokens_seen:,} tokens ({run.progress.target_tokens_seen:,} targets); "
            f"the model is {path}, the record {arguments.tensorboard_dir / 'metrics.jsonl'}"
        )
        if arguments.merge_lora:
            say(f"base and adapter merged: {save_merged_model(arguments.save_dir, base_path, run.tokenizer)}")
