"""What cannot be in a command line of train.py: arguments that lack another, contradict each other or name what is not there.

Every check adds to the parser's problems and goes on, so that all are reported together. Imports no
torch.
"""

import argparse
import os
from pathlib import Path

from colossal_llama.training.checkpoint.state import RUNNING_STATES, checkpoint_directories
from colossal_llama.training.command_line import GPU_ONLY_PLUGINS
from colossal_llama.training.parallel_layout import check_dimensions
from colossal_llama.utils.cli import CollectingArgumentParser, directory_problem


def check_arguments(
    parser: CollectingArgumentParser, options: argparse.Namespace, has_gpu: bool | None, world_size: int
) -> None:
    """Adds a problem to the parser for everything that is wrong.

    Args:
        parser: has parsed the options and collects the problems.
        options: what it parsed.
        has_gpu: whether the host trains on a GPU; None leaves what depends on it unchecked.
        world_size: number of processes.
    """
    _check_data_source(parser, options)
    _check_model_source(parser, options)
    _check_paths(parser, options)
    _check_dry_run(parser, options)
    _check_combinations(parser, options, options.dry_run_processes or world_size)
    if has_gpu is False and not options.dry_run:
        _check_for_cpu(parser, options)


def _is_given(parser: CollectingArgumentParser, options: argparse.Namespace, name: str) -> bool:
    """Whether an option differs from its default."""
    value, default = getattr(options, name), parser.get_default(name)
    return tuple(value) != default if isinstance(default, tuple) else value != default


def _check_data_source(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if options.benchmark and options.dataset:
        parser.problem("--benchmark trains on random rows: leave out --dataset")
    if not options.benchmark and not options.dataset:
        parser.problem("--dataset is missing: give prepared parts (or --benchmark for random rows)")
    if not options.benchmark and _is_given(parser, options, "num_samples"):
        parser.problem("--num_samples has no effect without --benchmark")
    if options.benchmark and options.merge_lora:
        parser.problem("--benchmark saves nothing: leave out --merge_lora")
    if options.benchmark and options.eval_dataset:
        parser.problem("--benchmark measures training: leave out --eval_dataset")
    if options.benchmark and options.load_checkpoint is not None:
        parser.problem("--benchmark begins afresh: leave out --load_checkpoint, give --pretrained")


def _check_model_source(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if options.pretrained is None and options.load_checkpoint is None:
        parser.problem("--pretrained is missing: give a model directory (or --load_checkpoint)")
    if (
        options.pretrained is None
        and options.load_checkpoint == "auto"
        and not checkpoint_directories(options.save_dir)
    ):
        parser.problem(
            f"--load_checkpoint auto starts fresh, since {options.save_dir} (--save_dir) holds no checkpoint: give "
            "--pretrained too"
        )
    if options.load_checkpoint not in (None, "auto"):
        path = Path(options.load_checkpoint)
        if not path.is_dir():
            parser.problem(f"--load_checkpoint: {path} does not exist")
        elif not any((path / name).is_file() for name in (RUNNING_STATES, "config.json", "adapter_config.json")):
            parser.problem(
                f"--load_checkpoint: {path} is neither a checkpoint (running_states.json) nor a model directory "
                "(config.json) nor a "
                "LoRA adapter (adapter_config.json): name another, or give auto for the newest complete checkpoint in "
                "--save_dir"
            )


def _check_dry_run(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if options.dry_run:
        return
    for name in ("dry_run_processes", "gpu_memory_gib"):
        if getattr(options, name) is not None:
            parser.problem(f"--{name} has no effect without --dry_run")


def _check_paths(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if options.pretrained is not None and not (options.pretrained / "config.json").is_file():
        found = "holds no config.json" if options.pretrained.is_dir() else "does not exist"
        parser.problem(f"--pretrained: {options.pretrained} {found}")
    for name in ("dataset", "eval_dataset"):
        for part in getattr(options, name) or ():
            if reason := directory_problem(Path(part)):
                parser.problem(f"--{name}: {part} {reason}")
    if options.eval_interval is not None and not options.eval_dataset:
        parser.problem("--eval_interval has no effect without --eval_dataset")
    for name in ("save_dir", "tensorboard_dir"):
        path = getattr(options, name)
        for file in _files_on_the_way(path, *path.parents):
            parser.problem(f"--{name}: {file} is a file, a directory is needed")
    if options.config_file.is_dir():
        parser.problem(f"--config_file: {options.config_file} is a directory, a file name is needed")
    for file in _files_on_the_way(*options.config_file.parents):
        parser.problem(f"--config_file: {file} is a file, a directory is needed")


def _files_on_the_way(*directories: Path) -> list[Path]:
    return [path for path in directories if path.exists() and not path.is_dir()]


def _check_combinations(parser: CollectingArgumentParser, options: argparse.Namespace, world_size: int) -> None:
    if options.plugin != "3d":
        for name in ("tp", "pp", "sp", "microbatch_size", "sp_mode", "zero", "zero_cpu_offload"):
            if _is_given(parser, options, name):
                parser.problem(f"--{name} belongs to --plugin 3d, but the plugin is {options.plugin}")
    else:
        check_dimensions(parser, options, world_size)
    if options.plugin == "3d" and options.zero_cpu_offload and not options.zero:
        parser.problem("--zero_cpu_offload needs ZeRO: use --zero 1 or 2")
    if options.plugin in GPU_ONLY_PLUGINS and options.mixed_precision == "fp32":
        parser.problem(f"--plugin {options.plugin} computes in fp16 or bf16 only: choose another plugin for fp32")
    if options.plugin in GPU_ONLY_PLUGINS and options.freeze_non_embeds_params:
        parser.problem(
            f"--freeze_non_embeds_params is not possible with --plugin {options.plugin}: use zero2, ddp or 3d"
        )
    _check_lora(parser, options)
    _check_fp8(parser, options)
    if options.recompute_layers is not None and not options.use_grad_checkpoint:
        parser.problem("--recompute_layers has no effect without --use_grad_checkpoint")
    if not options.use_neft and _is_given(parser, options, "neft_alpha"):
        parser.problem("--neft_alpha has no effect without --use_neft")
    if options.warmup_steps is not None and options.max_steps is not None and options.warmup_steps > options.max_steps:
        parser.problem(f"--warmup_steps {options.warmup_steps} is more than --max_steps {options.max_steps}")


def _check_lora(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if options.lora_rank:
        if options.plugin in GPU_ONLY_PLUGINS:
            parser.problem(
                f"--lora_rank is not possible with --plugin {options.plugin}: use zero2, zero2_cpu, ddp or 3d"
            )
        if options.tp * options.pp * options.sp > 1:
            parser.problem("--lora_rank needs the whole model on each process: leave --tp, --pp and --sp at 1")
        if options.freeze_non_embeds_params:
            parser.problem(
                "--lora_rank and --freeze_non_embeds_params exclude each other: LoRA freezes the whole model"
            )
        return
    for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "merge_lora"):
        if _is_given(parser, options, name):
            parser.problem(f"--{name} has no effect without --lora_rank")


def _check_fp8(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if not options.fp8:
        return
    if options.mixed_precision == "fp32":
        parser.problem("--fp8 rounds half-precision numbers: use --mixed_precision bf16 or fp16")
    if options.tp * options.pp * options.sp > 1:
        parser.problem("--fp8 needs whole layers on each process: leave --tp, --pp and --sp at 1")
    if options.lora_rank:
        parser.problem("--fp8 and --lora_rank exclude each other: the frozen weights of LoRA stay exact")


def _check_for_cpu(parser: CollectingArgumentParser, options: argparse.Namespace) -> None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "nvidia-smi-fails":  # cluster/least_used_gpus.sh says so
        parser.problem(
            "nvidia-smi fails on this host, so that no GPU can be chosen: run it there, and mend or restart the driver"
        )
    if options.plugin in GPU_ONLY_PLUGINS:
        parser.problem(
            f"--plugin {options.plugin} needs a GPU, and this host has none: Gemini manages CUDA memory itself. "
            "Here zero2, zero2_cpu, ddp and 3d train on the CPU"
        )
    if options.fp8:
        parser.problem("--fp8 needs a GPU with 8-bit matrix units, and this host has none")
    if options.plugin == "ddp" and options.mixed_precision == "fp16":
        parser.problem(
            "--plugin ddp with fp16 scales its loss on CUDA devices only: use bf16 or fp32 on this host, which has no "
            "GPU"
        )
