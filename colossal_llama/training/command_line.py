"""The options of train.py, as `--help` shows them. Imports no torch."""

import argparse
from pathlib import Path

from colossal_llama.training.parallel_layout import TABLE, add_dimensions
from colossal_llama.utils.cli import MAX_SEED, CollectingArgumentParser, number_in_range, parse_bool

PLUGINS = ("gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp")
GPU_ONLY_PLUGINS = ("gemini", "gemini_auto")
HOST_OPTIMIZER_PLUGINS = ("gemini_auto", "zero2_cpu")
"""Which keep optimizer states in host memory, or may."""
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_parser() -> CollectingArgumentParser:
    """The command line of train.py, in groups."""
    parser = CollectingArgumentParser(
        prog="train.py",
        description="Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI. Start it with torchrun "
        "or colossalai run.",
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


def _add_model_and_data(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--pretrained",
        type=Path,
        metavar="DIR",
        help="model in Hugging Face format, with its tokenizer; needed without a --load_checkpoint",
    )
    group.add_argument(
        "--dataset",
        nargs="+",
        default=(),
        metavar="PART",
        help="prepared part directories (arrow/part-00000 …), in training order; needed, but for --benchmark",
    )
    group.add_argument(
        "--max_length",
        type=number_in_range(int, 2),
        default=4096,
        metavar="TOKENS",
        help="longest row that the parts may hold",
    )
    group.add_argument(
        "--padding_mode",
        choices=("none", "longest", "max_length"),
        default="none",
        help="none: whole conversations share rows of up to --max_length tokens (they do not see each other); "
        "longest: a conversation "
        "a row, padded to the longest of its micro-batch; max_length: padded to --max_length",
    )
    group.add_argument(
        "--pad_token",
        choices=("eos", "unk"),
        help="token that fills padded rows, and that the saved tokenizer names for it (default: rows are filled with "
        "eos, and the saved "
        "tokenizer is the model's as it was); training is the same, since padding is known by its length",
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


def _add_length_of_run(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("length of the run")
    group.add_argument(
        "--num_epochs", type=number_in_range(int, 1), default=1, metavar="N", help="passes over the data"
    )
    group.add_argument(
        "--max_steps",
        type=number_in_range(int, 1),
        metavar="N",
        help="end the run and its schedule after this many steps",
    )
    group.add_argument(
        "--micro_batch_size",
        "--batch_size",
        type=number_in_range(int, 1),
        default=1,
        metavar="ROWS",
        help="rows per device and micro-step",
    )
    group.add_argument(
        "--accumulation_steps",
        type=number_in_range(int, 1),
        metavar="N",
        help="micro-steps per optimizer step (default: 8 on data from prepare_sft_dataset.py, else 1)",
    )
    group.add_argument(
        "--seed",
        type=number_in_range(int, 0, MAX_SEED),
        default=42,
        metavar="N",
        help="of data order, dropout and NEFTune",
    )


def _add_optimizer(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("optimizer: AdamW, betas 0.9 and 0.95, cosine schedule down to a tenth of --lr")
    group.add_argument("--lr", type=number_in_range(float, above=0), default=3e-4, help="peak learning rate")
    group.add_argument(
        "-w", "--weight_decay", type=number_in_range(float, 0), default=0.1, help="decoupled weight decay"
    )
    group.add_argument(
        "-s",
        "--warmup_steps",
        type=number_in_range(int, 0),
        metavar="N",
        help="linear warm-up, in steps (default: 2.5 %% of all steps)",
    )
    group.add_argument(
        "--gradient_clipping",
        "--grad_clip",
        type=number_in_range(float, 0),
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


def _add_plugin_and_memory(parser: CollectingArgumentParser) -> None:
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
        type=number_in_range(int, 1),
        metavar="N",
        help="with --use_grad_checkpoint: recompute the first N decoder layers only (default: on a GPU as few as its "
        "memory "
        "demands by estimate, else all)",
    )
    group.add_argument(
        "--use_flash_attn",
        action="store_true",
        help="flash attention kernels: the flash-attn package's if installed, else those that a GPU uses anyway, "
        "cuDNN's (from Hopper on) "
        "or PyTorch's own",
    )
    group.add_argument(
        "--fused_kernels",
        type=parse_bool,
        default=True,
        metavar="BOOL",
        help="all that is fast on a GPU: fused norm, rotary, SwiGLU, cross-entropy, ZeRO update, variable-length "
        "attention; and on any "
        "device the update of states in host memory slice by slice; False computes the plain way, for comparison",
    )
    group.add_argument(
        "--fp8",
        action="store_true",
        help="multiply the decoder layers' matrices in 8 bits (Hopper and Ada GPUs): faster from about 1 B parameters "
        "on, coarser rounding",
    )


def _add_method(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--use_neft", action="store_true", help="NEFTune: noise on the embeddings (arXiv 2310.05914)")
    group.add_argument(
        "--neft_alpha",
        type=number_in_range(float, above=0),
        default=5.0,
        metavar="ALPHA",
        help="strength of the NEFTune noise",
    )
    group.add_argument("--freeze_non_embeds_params", action="store_true", help="train input and output embeddings only")
    group.add_argument(
        "--lora_rank",
        type=number_in_range(int, 0),
        default=0,
        metavar="RANK",
        help="train LoRA adapters of this rank; 0: no LoRA",
    )
    group.add_argument(
        "--lora_alpha",
        type=number_in_range(float, above=0),
        metavar="ALPHA",
        help="adapters are scaled by alpha / rank (default: 2 rank)",
    )
    group.add_argument(
        "--lora_dropout",
        type=number_in_range(float, 0, 0.99),
        default=0.0,
        metavar="P",
        help="dropout on the adapters' input",
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


def _add_saving(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints and records")
    _add_checkpoints(group)
    _add_records(group)


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save_dir", type=Path, default=Path("checkpoint_dir"), metavar="DIR", help="checkpoints and the final model"
    )
    group.add_argument(
        "--save_interval", type=number_in_range(int, 1), default=1000, metavar="STEPS", help="steps between checkpoints"
    )
    group.add_argument("--skip_save_each_epoch", action="store_true", help="no checkpoint at an epoch's end")
    group.add_argument(
        "--keep_last",
        type=number_in_range(int, 1),
        metavar="K",
        help="delete all checkpoints but the newest K (default: keep all)",
    )
    group.add_argument(
        "--save_in_background",
        type=parse_bool,
        default=True,
        metavar="BOOL",
        help="write checkpoints while training goes on, from a copy in host memory (14 bytes a parameter in bf16); "
        "False, or no memory: "
        "training waits",
    )
    group.add_argument(
        "--load_checkpoint",
        metavar="DIR",
        help="a checkpoint (everything is restored), its modelling folder (weights only, for the next stage), or "
        "'auto': "
        "the newest in --save_dir, a fresh start when there is none",
    )
    group.add_argument(
        "--allow_other_data",
        action="store_true",
        help="resume although the data or tokenizer are not those that the run began with",
    )


def _add_records(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--eval_dataset",
        nargs="+",
        default=(),
        metavar="PART",
        help="prepared part directories to take the validation loss on, at intervals and at the end",
    )
    group.add_argument(
        "--eval_interval",
        type=number_in_range(int, 1),
        metavar="STEPS",
        help="steps between evaluations (default: --save_interval)",
    )
    group.add_argument(
        "--max_bad_steps",
        type=number_in_range(int, 1),
        default=1,
        metavar="K",
        help="end the run after so many steps in a row whose loss or gradient is no number; the weights are left as "
        "they were, and the "
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


def _add_benchmark(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--benchmark",
        action="store_true",
        help="train on random full rows instead of --dataset, save nothing, and print the speed",
    )
    group.add_argument(
        "--num_samples", type=number_in_range(int, 1), default=500, metavar="ROWS", help="random rows of a --benchmark"
    )


def _add_dry_run(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("dry run")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="print steps, schedule and the estimated memory of each GPU, say what would not fit, and stop; needs no "
        "GPU",
    )
    group.add_argument(
        "--dry_run_processes",
        type=number_in_range(int, 1),
        metavar="N",
        help="plan for so many processes with a GPU each (default: those that were started)",
    )
    group.add_argument(
        "--gpu_memory_gib",
        type=number_in_range(float, above=0),
        metavar="GIB",
        help="memory of the GPU that a --dry_run plans for (default: of this host's, if it has one)",
    )
