"""The arguments of train.py: parsed, checked together, and reported all at once. Imports no torch."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from colossal_llama.training.checkpoint import complete_checkpoints
from colossal_llama.training.dimensions import SP_MODES, TABLE, add_dimensions, check_dimensions
from colossal_llama.utils.command_line import CommandLine, boolean, number

PLUGINS = ("gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp")
GPU_ONLY_PLUGINS = ("gemini", "gemini_auto")
HOST_OPTIMIZER_PLUGINS = ("gemini_auto", "zero2_cpu")
"""Which keep optimizer states in host memory, or may."""
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainingArguments:
    """What the user asked for; the fields are the command line's long options."""

    pretrained: Path | None
    dataset: tuple[Path, ...]
    plugin: str
    load_checkpoint: str | None
    save_interval: int
    save_dir: Path
    tensorboard_dir: Path
    config_file: Path
    num_epochs: int
    micro_batch_size: int
    accumulation_steps: int | None
    lr: float
    max_length: int
    mixed_precision: str
    gradient_clipping: float
    weight_decay: float
    warmup_steps: int | None
    use_grad_checkpoint: bool
    recompute_layers: int | None
    use_flash_attn: bool
    use_neft: bool
    neft_alpha: float
    freeze_non_embeds_params: bool
    lora_rank: int
    lora_alpha: float | None
    lora_dropout: float
    lora_target_modules: tuple[str, ...]
    merge_lora: bool
    tp: int
    pp: int
    microbatch_size: int
    sp: int
    sp_mode: str
    zero: int
    zero_cpu_offload: bool
    padding_mode: str
    cross_document_attention: bool
    fused_kernels: bool
    fp8: bool
    shuffle: str
    loss_average: str
    skip_save_each_epoch: bool
    max_steps: int | None
    keep_last: int | None
    save_in_background: bool
    seed: int
    allow_other_data: bool
    benchmark: bool
    num_samples: int
    dry_run: bool
    eval_dataset: tuple[Path, ...]
    eval_interval: int | None
    max_bad_steps: int
    dry_run_processes: int | None
    gpu_memory_gib: float | None

    def as_json(self) -> dict:
        """The arguments as JSON values, for `--config_file`."""
        shown = asdict(self)
        return {
            name: [str(item) for item in value]
            if isinstance(value, tuple)
            else (str(value) if isinstance(value, Path) else value)
            for name, value in shown.items()
        }


def build_parser() -> CommandLine:
    """The command line of train.py, in groups."""
    parser = CommandLine(
        prog="train.py",
        description="Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI. Start it with torchrun or colossalai run.",
        epilog=TABLE,
    )
    _add_model_and_data(parser)
    _add_length_of_run(parser)
    _add_optimizer(parser)
    _add_plugin_and_memory(parser)
    _add_method(parser)
    _add_saving(parser)
    _add_benchmark(parser)
    _add_dry_run(parser)
    return parser


def _add_model_and_data(parser: CommandLine) -> None:
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--pretrained", type=Path, metavar="DIR", help="model in Hugging Face format, with its tokenizer"
    )
    group.add_argument(
        "--dataset",
        nargs="+",
        default=(),
        metavar="PART",
        help="prepared part directories (arrow/part-00000 …), in training order",
    )
    group.add_argument(
        "--max_length", type=number(int, 2), default=4096, metavar="TOKENS", help="longest row that the parts may hold"
    )
    group.add_argument(
        "--padding_mode",
        choices=("none", "longest", "max_length"),
        default="none",
        help="none: whole conversations share rows of up to --max_length tokens (they do not see each other); longest: a conversation "
        "a row, padded to the longest of its micro-batch; max_length: padded to --max_length",
    )
    group.add_argument(
        "--shuffle",
        choices=("bucket", "global", "none"),
        default="bucket",
        help="shuffle rows inside each part and keep the parts in order; across all parts; or not at all",
    )
    group.add_argument(
        "--cross_document_attention",
        action="store_true",
        help="let documents spliced into one row see each other (off: they do not)",
    )


def _add_length_of_run(parser: CommandLine) -> None:
    group = parser.add_argument_group("length of the run")
    group.add_argument("--num_epochs", type=number(int, 1), default=1, metavar="N", help="passes over the data")
    group.add_argument(
        "--max_steps",
        type=number(int, 1),
        metavar="N",
        help="end the run and its schedule after this many steps",
    )
    group.add_argument(
        "--micro_batch_size",
        "--batch_size",
        type=number(int, 1),
        default=1,
        metavar="ROWS",
        help="rows per device and micro-step",
    )
    group.add_argument(
        "--accumulation_steps",
        type=number(int, 1),
        metavar="N",
        help="micro-steps per optimizer step (default: 8 on data from prepare_sft_dataset.py, else 1)",
    )
    group.add_argument(
        "--seed", type=number(int, 0), default=42, metavar="N", help="of data order, dropout and NEFTune"
    )


def _add_optimizer(parser: CommandLine) -> None:
    group = parser.add_argument_group("optimizer: AdamW, betas 0.9 and 0.95, cosine schedule down to a tenth of --lr")
    group.add_argument("--lr", type=number(float, above=0), default=3e-4, help="peak learning rate")
    group.add_argument("-w", "--weight_decay", type=number(float, 0), default=0.1, help="decoupled weight decay")
    group.add_argument(
        "-s",
        "--warmup_steps",
        type=number(int, 0),
        metavar="N",
        help="linear warm-up, in steps (default: 2.5 %% of all steps)",
    )
    group.add_argument(
        "--gradient_clipping",
        "--grad_clip",
        type=number(float, 0),
        default=1.0,
        metavar="NORM",
        help="largest gradient norm; 0: no clipping",
    )
    group.add_argument(
        "--loss_average",
        choices=("token", "micro_batch"),
        default="token",
        help="mean over all target tokens of a step, or mean of the micro-batches' means",
    )


def _add_plugin_and_memory(parser: CommandLine) -> None:
    group = parser.add_argument_group("plugin, precision and memory")
    group.add_argument(
        "--plugin",
        choices=PLUGINS,
        default="gemini",
        help="ColossalAI Booster plugin; gemini and gemini_auto need a GPU",
    )
    group.add_argument(
        "--mixed_precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="arithmetic; fp32 is for tests and CPUs",
    )
    add_dimensions(group)
    group.add_argument("--zero", "--zero_stage", type=int, choices=(0, 1, 2), default=1, help="ZeRO stage of plugin 3d")
    group.add_argument(
        "--zero_cpu_offload", action="store_true", help="plugin 3d: keep master weights and states in host memory"
    )
    group.add_argument(
        "--use_grad_checkpoint", action="store_true", help="recompute activations in the backward pass to save memory"
    )
    group.add_argument(
        "--recompute_layers",
        type=number(int, 1),
        metavar="N",
        help="with --use_grad_checkpoint: recompute the first N decoder layers only (default: on a GPU as few as its memory "
        "demands by estimate, else all)",
    )
    group.add_argument(
        "--use_flash_attn",
        action="store_true",
        help="flash attention kernels: the flash-attn package's if installed, else PyTorch's own, which are used on a GPU anyway",
    )
    group.add_argument(
        "--fused_kernels",
        type=boolean,
        default=True,
        metavar="BOOL",
        help="all that is fast on a GPU: fused norm, rotary, SwiGLU, cross-entropy, ZeRO update, variable-length attention; False "
        "computes the plain way, for comparison",
    )
    group.add_argument(
        "--fp8",
        action="store_true",
        help="multiply the decoder layers' matrices in 8 bits (Hopper and Ada GPUs): faster from about 1 B parameters on, coarser rounding",
    )


def _add_method(parser: CommandLine) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--use_neft", action="store_true", help="NEFTune: noise on the embeddings (arXiv 2310.05914)")
    group.add_argument(
        "--neft_alpha", type=number(float, above=0), default=5.0, metavar="ALPHA", help="strength of the NEFTune noise"
    )
    group.add_argument("--freeze_non_embeds_params", action="store_true", help="train input and output embeddings only")
    group.add_argument(
        "--lora_rank",
        type=number(int, 0),
        default=0,
        metavar="RANK",
        help="train LoRA adapters of this rank; 0: no LoRA",
    )
    group.add_argument(
        "--lora_alpha",
        type=number(float, above=0),
        metavar="ALPHA",
        help="adapters are scaled by alpha / rank (default: 2 rank)",
    )
    group.add_argument(
        "--lora_dropout", type=number(float, 0, 0.99), default=0.0, metavar="P", help="dropout on the adapters' input"
    )
    group.add_argument(
        "--lora_target_modules",
        nargs="+",
        default=LORA_LAYERS,
        choices=LORA_LAYERS,
        metavar="LAYER",
        help="linear layers that get adapters",
    )
    group.add_argument(
        "--merge_lora", action="store_true", help="also write the base model with the adapter merged, modelling_merged/"
    )


def _add_saving(parser: CommandLine) -> None:
    group = parser.add_argument_group("checkpoints and records")
    group.add_argument(
        "--save_dir", type=Path, default=Path("checkpoint_dir"), metavar="DIR", help="checkpoints and the final model"
    )
    group.add_argument(
        "--save_interval", type=number(int, 1), default=1000, metavar="STEPS", help="steps between checkpoints"
    )
    group.add_argument("--skip_save_each_epoch", action="store_true", help="no checkpoint at an epoch's end")
    group.add_argument(
        "--keep_last",
        type=number(int, 1),
        metavar="K",
        help="delete all checkpoints but the newest K (default: keep all)",
    )
    group.add_argument(
        "--save_in_background",
        type=boolean,
        default=True,
        metavar="BOOL",
        help="write checkpoints while training goes on, from a copy in host memory (14 bytes a parameter in bf16); False, or no memory: "
        "training waits",
    )
    group.add_argument(
        "--load_checkpoint",
        metavar="DIR",
        help="a checkpoint (everything is restored), its modelling folder (weights only, for the next stage), or 'auto': "
        "the newest in --save_dir, a fresh start when there is none",
    )
    group.add_argument(
        "--allow_other_data",
        action="store_true",
        help="resume although the data or tokenizer are not those that the run began with",
    )
    group.add_argument(
        "--eval_dataset",
        nargs="+",
        default=(),
        metavar="PART",
        help="prepared part directories to take the validation loss on, at intervals and at the end",
    )
    group.add_argument(
        "--eval_interval",
        type=number(int, 1),
        metavar="STEPS",
        help="steps between evaluations (default: --save_interval)",
    )
    group.add_argument(
        "--max_bad_steps",
        type=number(int, 1),
        default=1,
        metavar="K",
        help="end the run after so many steps in a row whose loss or gradient is no number; the weights are left as they were, and the "
        "rows are listed in SAVE_DIR/bad_steps.jsonl",
    )
    group.add_argument(
        "--tensorboard_dir",
        type=Path,
        default=Path("logs_dir"),
        metavar="DIR",
        help="TensorBoard events and metrics.jsonl",
    )
    group.add_argument(
        "--config_file",
        type=Path,
        default=Path("config_file"),
        metavar="FILE",
        help="where the run's configuration is written",
    )


def _add_benchmark(parser: CommandLine) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--benchmark",
        action="store_true",
        help="train on random full rows instead of --dataset, save nothing, and print the speed",
    )
    group.add_argument(
        "--num_samples", type=number(int, 1), default=500, metavar="ROWS", help="random rows of a --benchmark"
    )


def _add_dry_run(parser: CommandLine) -> None:
    group = parser.add_argument_group("dry run")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="print steps, schedule and the estimated memory of each GPU, say what would not fit, and stop; needs no GPU",
    )
    group.add_argument(
        "--dry_run_processes",
        type=number(int, 1),
        metavar="N",
        help="plan for so many processes with a GPU each (default: those that were started)",
    )
    group.add_argument(
        "--gpu_memory_gib",
        type=number(float, above=0),
        metavar="GIB",
        help="memory of the GPU that a --dry_run plans for (default: of this host's, if it has one)",
    )


def parse_arguments(
    command: list[str] | None = None, has_gpu: bool | None = None, world_size: int = 1
) -> TrainingArguments:
    """Parses and checks a command line; exits with code 2 and all problems when something is wrong.

    Args:
        command: the words after `train.py`; None reads the process's own.
        has_gpu: whether the host trains on a GPU; None leaves what depends on it unchecked.
        world_size: number of processes.
    """
    parser = build_parser()
    options = parser.parse_args(command)
    _check_data_source(parser, options)
    _check_model_source(parser, options)
    _check_paths(parser, options)
    _check_dry_run(parser, options)
    _check_combinations(parser, options, options.dry_run_processes or world_size)
    if has_gpu is False and not options.dry_run:
        _check_for_cpu(parser, options)
    parser.finish()
    options.dataset = tuple(Path(part) for part in options.dataset)
    options.eval_dataset = tuple(Path(part) for part in options.eval_dataset)
    options.lora_target_modules = tuple(options.lora_target_modules)
    return TrainingArguments(**vars(options))


def _check_data_source(parser: CommandLine, options: argparse.Namespace) -> None:
    if options.benchmark and options.dataset:
        parser.problem("--benchmark trains on random rows: leave out --dataset")
    if not options.benchmark and not options.dataset:
        parser.problem("--dataset is missing: give prepared parts (or --benchmark for random rows)")
    if not options.benchmark and options.num_samples != 500:
        parser.problem("--num_samples has no effect without --benchmark")
    if options.benchmark and options.load_checkpoint is not None:
        parser.problem("--benchmark begins afresh: leave out --load_checkpoint, give --pretrained")


def _check_model_source(parser: CommandLine, options: argparse.Namespace) -> None:
    if options.pretrained is None and options.load_checkpoint is None:
        parser.problem("--pretrained is missing: give a model directory (or --load_checkpoint)")
    if options.pretrained is None and options.load_checkpoint == "auto" and not complete_checkpoints(options.save_dir):
        parser.problem(
            f"--load_checkpoint auto starts fresh, since {options.save_dir} (--save_dir) holds no checkpoint: give --pretrained too"
        )
    if options.load_checkpoint not in (None, "auto"):
        path = Path(options.load_checkpoint)
        if not path.is_dir():
            parser.problem(f"--load_checkpoint: {path} does not exist")
        elif not any((path / name).is_file() for name in ("running_states.json", "config.json", "adapter_config.json")):
            parser.problem(
                f"--load_checkpoint: {path} is neither a checkpoint (running_states.json) nor a model directory (config.json) nor a "
                "LoRA adapter (adapter_config.json): name another, or give auto for the newest complete checkpoint in --save_dir"
            )


def _check_dry_run(parser: CommandLine, options: argparse.Namespace) -> None:
    if options.dry_run:
        return
    for name in ("dry_run_processes", "gpu_memory_gib"):
        if getattr(options, name) is not None:
            parser.problem(f"--{name} has no effect without --dry_run")


def _check_paths(parser: CommandLine, options: argparse.Namespace) -> None:
    if options.pretrained is not None and not (options.pretrained / "config.json").is_file():
        found = "holds no config.json" if options.pretrained.is_dir() else "does not exist"
        parser.problem(f"--pretrained: {options.pretrained} {found}")
    for name in ("dataset", "eval_dataset"):
        for part in getattr(options, name) or ():
            if not Path(part).is_dir():
                parser.problem(f"--{name}: {part} does not exist")
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


def _check_combinations(parser: CommandLine, options: argparse.Namespace, world_size: int) -> None:
    if options.plugin != "3d":
        given = {
            "--tp": options.tp != 1,
            "--pp": options.pp != 1,
            "--sp": options.sp != 1,
            "--microbatch_size": options.microbatch_size != 1,
            "--sp_mode": options.sp_mode != SP_MODES[0],
            "--zero": options.zero != 1,
            "--zero_cpu_offload": options.zero_cpu_offload,
        }
        for name in (name for name, is_given in given.items() if is_given):
            parser.problem(f"{name} belongs to --plugin 3d, but the plugin is {options.plugin}")
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
    if not options.use_neft and options.neft_alpha != 5.0:
        parser.problem("--neft_alpha has no effect without --use_neft")
    if options.warmup_steps is not None and options.max_steps is not None and options.warmup_steps > options.max_steps:
        parser.problem(f"--warmup_steps {options.warmup_steps} is more than --max_steps {options.max_steps}")


def _check_lora(parser: CommandLine, options: argparse.Namespace) -> None:
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
    given = {
        "--lora_alpha": options.lora_alpha is not None,
        "--lora_dropout": options.lora_dropout != 0.0,
        "--lora_target_modules": tuple(options.lora_target_modules) != LORA_LAYERS,
        "--merge_lora": options.merge_lora,
    }
    for name in (name for name, is_given in given.items() if is_given):
        parser.problem(f"{name} has no effect without --lora_rank")


def _check_fp8(parser: CommandLine, options: argparse.Namespace) -> None:
    if not options.fp8:
        return
    if options.mixed_precision == "fp32":
        parser.problem("--fp8 rounds half-precision numbers: use --mixed_precision bf16 or fp16")
    if options.tp * options.pp * options.sp > 1:
        parser.problem("--fp8 needs whole layers on each process: leave --tp, --pp and --sp at 1")
    if options.lora_rank:
        parser.problem("--fp8 and --lora_rank exclude each other: the frozen weights of LoRA stay exact")


def _check_for_cpu(parser: CommandLine, options: argparse.Namespace) -> None:
    if options.plugin in GPU_ONLY_PLUGINS:
        parser.problem(
            f"--plugin {options.plugin} needs a GPU, and this host has none: Gemini manages CUDA memory itself. "
            "Here zero2, zero2_cpu, ddp and 3d train on the CPU"
        )
    if options.fp8:
        parser.problem("--fp8 needs a GPU with 8-bit matrix units, and this host has none")
    if options.plugin == "ddp" and options.mixed_precision == "fp16":
        parser.problem(
            "--plugin ddp with fp16 scales its loss on CUDA devices only: use bf16 or fp32 on this host, which has no GPU"
        )
