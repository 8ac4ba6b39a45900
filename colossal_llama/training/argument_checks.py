"""Checks of train.py's command line: contradictory arguments, and missing files. Imports no torch.

Every check adds to the parser's problems and continues, so that all are reported at once. An option
that needs another one is declared with `only_with` (training.arguments).
"""

import os
from contextlib import suppress
from pathlib import Path

from colossal_llama.dataset.part_paths import find_parts, missing_data_problem
from colossal_llama.training.arguments import (
    GPU_ONLY_PLUGINS,
    CheckpointArguments,
    MethodArguments,
    OptimizerArguments,
    PluginArguments,
    TrainingArguments,
)
from colossal_llama.training.checkpoint.state import RUNNING_STATES, checkpoint_directories
from colossal_llama.training.parallel_layout import (
    SP_MODES,
    FrozenLayers,
    layout_of,
    layout_problem,
    read_model_shape,
)
from colossal_llama.training.record_files import (
    clashing_names,
    config_file_problem,
    file_among_inputs,
    foreign_records,
)
from colossal_llama.training.trained_parameters import freezing_options, what_is_trained
from colossal_llama.utils.arguments import ineffective_options, is_given
from colossal_llama.utils.cli import CollectingArgumentParser
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import ModelName, missing_directory_problem
from colossal_llama.utils.transformers_version import shard_policies_problem, unsupported_version


def check_arguments(
    parser: CollectingArgumentParser, arguments: TrainingArguments, has_gpu: bool | None, world_size: int
) -> None:
    """Adds a problem to the parser for each error in the arguments.

    Args:
        parser: collects the problems.
        arguments: as parsed.
        has_gpu: True when the host trains on a GPU; None skips the checks that depend on it.
        world_size: number of processes.
    """
    if problem := unsupported_version():
        parser.problem(problem)
    _check_benchmark(parser, arguments)
    _check_model_source(parser, arguments.model.pretrained, arguments.checkpoint)
    _check_paths(parser, arguments)
    for name, needed in ineffective_options(arguments):
        parser.problem(f"--{name} has no effect without --{needed}")
    _check_optimizer_states(parser, arguments.optimizer, arguments.plugin)
    _check_plugin(parser, arguments, arguments.dry_run.dry_run_processes or world_size)
    _check_trained(parser, arguments.method, arguments.optimizer)
    if arguments.method.lora_rank:
        _check_lora(parser, arguments.plugin, arguments.method)
    if arguments.model.fp8:
        _check_fp8(parser, arguments.plugin, arguments.method)
    _check_schedule(parser, arguments.optimizer)
    if has_gpu is False and not arguments.dry_run.dry_run:
        _check_for_cpu(parser, arguments.plugin, arguments.model.fp8)


def _check_benchmark(parser: CollectingArgumentParser, arguments: TrainingArguments) -> None:
    dataset = arguments.data.dataset
    if not arguments.benchmark.benchmark:
        if not dataset:
            parser.problem("--dataset is missing: give prepared parts (or --benchmark for random rows)")
        return
    if dataset:
        parser.problem("--benchmark trains on random rows: leave out --dataset")
    if arguments.method.merge_lora:
        parser.problem("--benchmark saves nothing: leave out --merge_lora")
    if arguments.records.eval_dataset:
        parser.problem("--benchmark measures training: leave out --eval_dataset")
    if arguments.tasks.eval_tasks:
        parser.problem("--benchmark measures training: leave out --eval_tasks")
    if arguments.checkpoint.load_checkpoint is not None:
        parser.problem("--benchmark resumes nothing: leave out --load_checkpoint, give --pretrained")


def _check_model_source(
    parser: CollectingArgumentParser, pretrained: Path | ModelName | None, checkpoint: CheckpointArguments
) -> None:
    if pretrained is None and checkpoint.load_checkpoint is None:
        parser.problem("--pretrained is missing: give a model directory (or --load_checkpoint)")
    if pretrained is None and checkpoint.load_checkpoint == "auto" and not checkpoint_directories(checkpoint.save_dir):
        parser.problem(
            f"--load_checkpoint auto starts fresh, since {checkpoint.save_dir} (--save_dir) holds no checkpoint: "
            "give --pretrained too"
        )
    if checkpoint.load_checkpoint not in (None, "auto"):
        path = Path(checkpoint.load_checkpoint)
        if not path.is_dir():
            parser.problem(f"--load_checkpoint: {path} does not exist")
        elif not any((path / name).is_file() for name in (RUNNING_STATES, "config.json", "adapter_config.json")):
            parser.problem(
                f"--load_checkpoint: {path} is neither a checkpoint (running_states.json) nor a model directory "
                "(config.json) nor a LoRA adapter (adapter_config.json). Give another path, or auto for the newest "
                "complete checkpoint in --save_dir"
            )


def _check_paths(parser: CollectingArgumentParser, arguments: TrainingArguments) -> None:
    pretrained, records = arguments.model.pretrained, arguments.records
    if isinstance(pretrained, Path) and not (pretrained / "config.json").is_file():
        found = missing_directory_problem(pretrained) or "holds no config.json"
        parser.problem(f"--pretrained: {pretrained} {found}")
    for name, given in (("dataset", arguments.data.dataset), ("eval_dataset", records.eval_dataset)):
        for path in given:  # what they hold is looked at when they are opened (inputs.py)
            if problem := missing_data_problem(path):
                parser.problem(f"--{name}: {problem}")
    directories = {"save_dir": arguments.checkpoint.save_dir, "tensorboard_dir": records.tensorboard_dir}
    for name, path in directories.items():
        for file in _files_among(path, *path.parents):
            parser.problem(f"--{name}: {file} is a file, a directory is needed")
    if records.config_file.is_dir():
        parser.problem(f"--config_file: {records.config_file} is a directory, a file name is needed")
    for file in _files_among(*records.config_file.parents):
        parser.problem(f"--config_file: {file} is a file, a directory is needed")
    _check_records(parser, arguments)


def _check_records(parser: CollectingArgumentParser, arguments: TrainingArguments) -> None:
    """Adds a problem for each file that the run would replace and no run has written."""
    records, save_dir, is_dry_run = arguments.records, arguments.checkpoint.save_dir, arguments.dry_run.dry_run
    if not records.config_file.is_dir():
        problem = config_file_problem(records.config_file, is_dry_run)
        for text in [problem] if problem else clashing_names(records.config_file, records.tensorboard_dir, save_dir):
            parser.problem(text)
        for text in () if problem else file_among_inputs(records.config_file, _input_directories(arguments)):
            parser.problem(text)
    if not is_dry_run:
        for text in foreign_records(records.tensorboard_dir, save_dir):
            parser.problem(text)


def _input_directories(arguments: TrainingArguments) -> list[Path]:
    given = (*arguments.data.dataset, *arguments.records.eval_dataset)
    parts: tuple[Path, ...] = ()
    with suppress(UserError):  # reported when they are opened
        parts = find_parts(given, "--dataset").paths
    pretrained = arguments.model.pretrained
    return [*([pretrained] if isinstance(pretrained, Path) else []), *given, *parts]


def _files_among(*directories: Path) -> list[Path]:
    return [path for path in directories if path.exists() and not path.is_dir()]


def _check_plugin(parser: CollectingArgumentParser, arguments: TrainingArguments, world_size: int) -> None:
    plugin = arguments.plugin
    if plugin.plugin != "3d":
        for name in ("tp", "pp", "sp", "microbatch_size", "sp_mode", "zero", "zero_cpu_offload"):
            if is_given(plugin, name):
                parser.problem(f"--{name} is an option of --plugin 3d, but the plugin is {plugin.plugin}")
    else:
        _check_parallel_layout(parser, arguments, world_size)
        if plugin.zero_cpu_offload and not plugin.zero:
            parser.problem("--zero_cpu_offload needs ZeRO: use --zero 1 or 2")
    if plugin.plugin in GPU_ONLY_PLUGINS and plugin.mixed_precision == "fp32":
        parser.problem(f"--plugin {plugin.plugin} computes in fp16 or bf16 only: give another plugin for fp32")


def _check_optimizer_states(
    parser: CollectingArgumentParser, optimizer: OptimizerArguments, plugin: PluginArguments
) -> None:
    if optimizer.optimizer_states == "fp32":
        return
    given = f"--optimizer_states {optimizer.optimizer_states}"
    if plugin.plugin != "zero2":
        parser.problem(f"{given} is of --plugin zero2, but the plugin is {plugin.plugin}")
    if plugin.mixed_precision != "bf16":
        parser.problem(f"{given} trains bf16 weights: give --mixed_precision bf16, not {plugin.mixed_precision}")


def _check_parallel_layout(parser: CollectingArgumentParser, arguments: TrainingArguments, world_size: int) -> None:
    """Adds a problem for a parallel layout that is impossible, with the nearest possible one."""
    plugin = arguments.plugin
    directory = _model_directory(arguments.model.pretrained, arguments.checkpoint)
    if problem := impossible_layout(arguments, directory, world_size):
        parser.problem(problem)
    elif plugin.tp * plugin.pp * plugin.sp > 1 and (reason := shard_policies_problem()):
        parser.problem(reason)
    _check_microbatches(parser, plugin, arguments.data.micro_batch_size)
    if plugin.sp == 1 and plugin.sp_mode != SP_MODES[0]:
        parser.problem("--sp_mode has no effect without --sp")


def impossible_layout(arguments: TrainingArguments, model: Path | None, world_size: int) -> str | None:
    """Explains why a parallel layout is impossible, and names the nearest one; None if it is not.

    Args:
        arguments: with the layout of plugin 3d.
        model: directory of its config.json; None skips the checks that need the model's shape.
        world_size: number of processes.
    """
    return layout_problem(
        layout_of(arguments.plugin),
        world_size,
        read_model_shape(model),
        half_precision=arguments.plugin.mixed_precision != "fp32",
        frozen=_frozen_layers(arguments.method),
    )


def _frozen_layers(method: MethodArguments) -> FrozenLayers | None:
    options = freezing_options(method)
    number = None if what_is_trained(method) != "all" else method.freeze_layers
    return FrozenLayers(options[0], number) if options else None


def _check_microbatches(parser: CollectingArgumentParser, plugin: PluginArguments, micro_batch_size: int) -> None:
    size = plugin.microbatch_size
    if plugin.pp > 1 and micro_batch_size % size:
        nearest = max(n for n in range(1, size + 1) if micro_batch_size % n == 0)
        parser.problem(
            f"--microbatch_size {size} does not divide --micro_batch_size {micro_batch_size}: "
            f"the nearest that does is {nearest}"
        )
    if plugin.pp == 1 and size != 1:
        parser.problem("--microbatch_size has no effect without --pp")


def _model_directory(pretrained: Path | ModelName | None, checkpoint: CheckpointArguments) -> Path | None:
    """Directory of the model's config.json: `--pretrained`, else the checkpoint.

    None for a model that is given by name: it is downloaded when the process group is there, and
    checked then (inputs.py).
    """
    if pretrained is not None or checkpoint.load_checkpoint is None:
        return pretrained if isinstance(pretrained, Path) else None
    if checkpoint.load_checkpoint != "auto":
        return Path(checkpoint.load_checkpoint)
    found = checkpoint_directories(checkpoint.save_dir)
    return found[-1] if found else None


def _check_trained(parser: CollectingArgumentParser, method: MethodArguments, optimizer: OptimizerArguments) -> None:
    if method.freeze_non_embeds_params and method.train_only == "new_rows":
        parser.problem("--freeze_non_embeds_params is --train_only embeddings, not new_rows: give one of them")
    if method.freeze_layers and what_is_trained(method) != "all":
        parser.problem(f"--freeze_layers has no effect with {freezing_options(method)[0]}, which freezes every layer")
    if optimizer.embedding_lr is not None and what_is_trained(method) == "new_rows":
        parser.problem("--embedding_lr has no effect with --train_only new_rows: give --new_row_lr")
    if method.lora_rank and optimizer.embedding_lr is not None:
        parser.problem("--embedding_lr has no effect with --lora_rank, which trains at most new rows of the embeddings")
    if method.lora_rank and optimizer.new_row_lr is not None and not method.lora_new_rows:
        parser.problem("--new_row_lr has no effect with --lora_rank alone: give --lora_new_rows to train these rows")


def _check_lora(parser: CollectingArgumentParser, plugin: PluginArguments, method: MethodArguments) -> None:
    if plugin.plugin in GPU_ONLY_PLUGINS:
        parser.problem(f"--lora_rank is not possible with --plugin {plugin.plugin}: use zero2, zero2_cpu, ddp or 3d")
    if plugin.tp * plugin.pp * plugin.sp > 1:
        parser.problem("--lora_rank needs the whole model on each process: leave --tp, --pp and --sp at 1")
    for option in freezing_options(method):
        parser.problem(f"--lora_rank and {option} exclude each other: LoRA freezes the whole model")


def _check_fp8(parser: CollectingArgumentParser, plugin: PluginArguments, method: MethodArguments) -> None:
    if plugin.mixed_precision == "fp32":
        parser.problem("--fp8 quantizes half-precision values: use --mixed_precision bf16 or fp16")
    if plugin.tp * plugin.pp * plugin.sp > 1:
        parser.problem("--fp8 needs whole layers on each process: leave --tp, --pp and --sp at 1")
    if method.lora_rank:
        parser.problem("--fp8 and --lora_rank exclude each other: LoRA's frozen weights are not quantized")


def _check_schedule(parser: CollectingArgumentParser, optimizer: OptimizerArguments) -> None:
    warmup_steps, decay_steps, max_steps = optimizer.warmup_steps, optimizer.decay_steps, optimizer.max_steps
    if optimizer.lr_schedule == "constant" and is_given(optimizer, "min_lr_ratio"):
        parser.problem("--min_lr_ratio has no effect with --lr_schedule constant, whose learning rate does not decay")
    if max_steps is None:
        return
    if (warmup_steps or 0) > max_steps:
        parser.problem(f"--warmup_steps {warmup_steps} is more than --max_steps {max_steps}")
        warmup_steps = None
    if decay_steps is not None and (warmup_steps or 0) + decay_steps > max_steps:
        both = f"--warmup_steps {warmup_steps} and --decay_steps {decay_steps} are" if warmup_steps else ""
        parser.problem(f"{both or f'--decay_steps {decay_steps} is'} more than --max_steps {max_steps}")


def _check_for_cpu(parser: CollectingArgumentParser, plugin: PluginArguments, fp8: bool) -> None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "nvidia-smi-fails":  # set by cluster/least_used_gpus.sh
        parser.problem(
            "nvidia-smi fails on this host, so no GPU can be selected: run it there, and repair or restart the driver"
        )
    if plugin.plugin in GPU_ONLY_PLUGINS:
        parser.problem(
            f"--plugin {plugin.plugin} needs a GPU, and this host has none: Gemini manages CUDA memory itself. "
            "Here zero2, zero2_cpu, ddp and 3d train on the CPU"
        )
    if fp8:
        parser.problem("--fp8 needs a GPU with 8-bit matrix units, and this host has none")
    if plugin.plugin == "ddp" and plugin.mixed_precision == "fp16":
        parser.problem(
            "--plugin ddp scales an fp16 loss on CUDA devices only, and this host has no GPU: use bf16 or fp32"
        )
