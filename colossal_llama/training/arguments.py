"""Arguments of train.py in groups; each option is declared once. Imports no torch.

A declaration holds the option's type, unit, default, check and help (utils.arguments).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from colossal_llama.evaluation.arguments import task_names, words_of
from colossal_llama.readers.input_paths import GatherPaths, local_paths
from colossal_llama.training.parallel_layout import SP_MODES
from colossal_llama.utils.arguments import group, option, option_values, switch
from colossal_llama.utils.cli import MAX_SEED, existing_directory, existing_file, number_in_range, parse_bool
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, path_or_name

PLUGINS = ("gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp")
GPU_ONLY_PLUGINS = ("gemini", "gemini_auto")
HOST_OPTIMIZER_PLUGINS = ("gemini_auto", "zero2_cpu")
"""Plugins that can keep optimizer states in host memory."""
LR_SCHEDULES = ("cosine", "linear", "constant", "wsd")
TRAINABLE = ("all", "embeddings", "new_rows")
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Model to train, and the kernels that compute it."""

    pretrained: Path | ModelName | None = option(
        type=path_or_name,
        metavar="DIR",
        help=f"model in Hugging Face format, with its tokenizer; needed without a --load_checkpoint: {NAME_FORMS}",
    )
    use_flash_attn: bool = switch(
        help="flash attention kernels: those of the flash-attn package if it is installed, else the GPU's default, "
        "cuDNN (from Hopper on) or PyTorch",
    )
    fused_kernels: bool = option(
        True,
        type=parse_bool,
        metavar="BOOL",
        help="fused kernels on a GPU: norm, rotary, SwiGLU, cross-entropy, ZeRO step, variable-length attention; on "
        "any device the overlapped optimizer step in host memory. False: the reference implementation, for comparison",
    )
    fp8: bool = switch(
        help="matrix products of the decoder layers in 8 bits (Hopper and Ada GPUs): faster from about 1 B parameters "
        "on, with a larger rounding error",
    )


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Rows to train on, their packing or padding, and their order."""

    dataset: tuple[Path, ...] = option(
        (),
        nargs="+",
        type=local_paths,
        action=GatherPaths,
        metavar="DIR",
        help="data, in training order; several by commas or as several arguments: a directory of prepared parts "
        "(data/arrow: all of them), parts of it (data/arrow/part-00000 …), or a data set on disk with token ids that "
        "another program saved with save_to_disk (docs/prepared_data.md); required without --benchmark",
    )
    verify_data: bool = option(
        True,
        type=parse_bool,
        metavar="BOOL",
        help="compare the SHA-256 of each part with that of its preparation, while the model is loaded; ids, labels, "
        "lengths and categories are checked in any case",
    )
    max_length: int = option(
        4096, type=number_in_range(int, 2), metavar="TOKENS", help="longest row that the parts may hold"
    )
    padding_mode: str = option(
        "none",
        choices=("none", "longest", "max_length"),
        help="none: pack whole conversations (and single documents that another program tokenized) into rows of up to "
        "--max_length tokens, with document masking; longest: one conversation a row, padded to the longest row of the "
        "micro-batch; max_length: padded to --max_length",
    )
    pad_token: str | None = option(
        choices=("eos", "unk"),
        help="padding token of rows and of the saved tokenizer (default: rows are padded with eos, and the saved "
        "tokenizer is the model's, unchanged). The loss does not depend on it: padding is masked by length",
    )
    shuffle: str = option(
        "bucket",
        choices=("bucket", "global", "none"),
        help="bucket: shuffle rows within each part and keep the order of the parts; global: shuffle across all "
        "parts; none: keep the order",
    )
    cross_document_attention: bool = switch(
        help="let tokens attend to the other documents of their row (default: document masking)",
    )
    num_epochs: int = option(1, type=number_in_range(int, 1), metavar="N", help="passes over the data")
    micro_batch_size: int = option(
        1, "--batch_size", type=number_in_range(int, 1), metavar="ROWS", help="rows per device and micro-batch"
    )
    accumulation_steps: int | None = option(
        type=number_in_range(int, 1),
        metavar="N",
        help="micro-batches per optimizer step (default: 8 on conversations (prepare_sft_dataset.py), else 1)",
    )
    seed: int = option(
        42, type=number_in_range(int, 0, MAX_SEED), metavar="N", help="seed of data order, dropout and NEFTune noise"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerArguments:
    """AdamW, the learning rate schedule, gradient clipping and the average of the loss."""

    lr: float = option(3e-4, type=number_in_range(float, above=0), help="peak learning rate")
    embedding_lr: float | None = option(
        type=number_in_range(float, above=0),
        metavar="RATE",
        help="peak learning rate of input and output embeddings, by the same schedule (default: --lr)",
    )
    new_row_lr: float | None = option(
        type=number_in_range(float, above=0),
        metavar="RATE",
        help="peak learning rate of the embedding rows that the last expansion added (default: --embedding_lr)",
    )
    optimizer_states: Literal["fp32", "bf16", "8bit"] = option(
        "fp32",
        choices=("fp32", "bf16", "8bit"),
        help="with --plugin zero2 and bf16. fp32: master weights and moments, 16 bytes a parameter with weights and "
        "gradients; bf16: moments of 16 bits and no master weights, 8 bytes; 8bit: moments of 8 bits, 6 bytes. Weights "
        "are then rounded stochastically",
    )
    weight_decay: float = option(0.1, "-w", type=number_in_range(float, 0), help="decoupled weight decay")
    warmup_steps: int | None = option(
        None,
        "-s",
        type=number_in_range(int, 0),
        metavar="N",
        help="steps of linear warm-up (default: 2.5 %% of all steps)",
    )
    lr_schedule: str = option(
        LR_SCHEDULES[0],
        choices=LR_SCHEDULES,
        help="learning rate after the warm-up: cosine or linear decay over all steps that are left; constant; wsd "
        "(warmup-stable-decay, arXiv 2404.06395): constant, then linear decay over the last --decay_steps, so that a "
        "run can be resumed from any step before it with other --max_steps or --num_epochs",
    )
    min_lr_ratio: float = option(
        0.1,
        type=number_in_range(float, 0, 1),
        metavar="RATIO",
        help="learning rate of the last step, as a share of --lr; 0: it decays to zero",
    )
    decay_steps: int | None = option(
        type=number_in_range(int, 0),
        metavar="N",
        only_with="lr_schedule wsd",
        help="last steps of a wsd schedule, in which the learning rate decays (default: 10 %% of all steps)",
    )
    max_steps: int | None = option(
        type=number_in_range(int, 1), metavar="N", help="end the run and its schedule after this many steps"
    )
    gradient_clipping: float = option(
        1.0,
        "--grad_clip",
        type=number_in_range(float, 0),
        metavar="NORM",
        help="clip gradients to this norm; 0: no clipping",
    )
    loss_average: str = option(
        "token",
        choices=("token", "micro_batch"),
        help="token: mean over all target tokens of a step; micro_batch: mean of the micro-batches' means",
    )


@dataclass(frozen=True, kw_only=True)
class PluginArguments:
    """ColossalAI Booster plugin, precision, and the parallel dimensions of plugin 3d."""

    plugin: str = option("gemini", choices=PLUGINS, help="ColossalAI Booster plugin; gemini and gemini_auto need a GPU")
    mixed_precision: str = option(
        "fp16", choices=("fp16", "bf16", "fp32"), help="precision; fp32 is for tests and CPUs"
    )
    tp: int = option(1, type=number_in_range(int, 1), metavar="N", help="tensor parallel size of plugin 3d")
    pp: int = option(
        1, type=number_in_range(int, 1), metavar="N", help="pipeline stages of plugin 3d (see the table below)"
    )
    microbatch_size: int = option(
        1,
        type=number_in_range(int, 1),
        metavar="ROWS",
        help="rows of a pipeline micro-batch; must divide --micro_batch_size. All rows of a step, accumulated ones "
        "included, pass the pipeline in one run",
    )
    sp: int = option(1, type=number_in_range(int, 1), metavar="N", help="sequence parallel size of plugin 3d")
    sp_mode: str = option(
        SP_MODES[0],
        choices=SP_MODES,
        help="split_gather: between attention and MLP each tensor parallel rank keeps a shard of the sequence; ring: "
        "the same, exchanged between neighbours during the matrix product; all_to_all: separate ranks, each with all "
        "heads of its sequence shard, in attention with its heads of the whole sequence",
    )
    zero: int = option(1, "--zero_stage", type=int, choices=(0, 1, 2), help="ZeRO stage of plugin 3d")
    zero_cpu_offload: bool = switch(help="plugin 3d: keep master weights and optimizer states in host memory")


@dataclass(frozen=True, kw_only=True)
class MemoryArguments:
    """Activation checkpointing, which transformers calls gradient checkpointing."""

    use_grad_checkpoint: bool = switch(help="recompute activations in the backward pass to save memory")
    recompute_layers: int | None = option(
        type=number_in_range(int, 1),
        metavar="N",
        only_with="use_grad_checkpoint",
        help="with --use_grad_checkpoint: recompute the first N decoder layers only (default: on a GPU the fewest that "
        "fit its memory by estimate, else all)",
    )


@dataclass(frozen=True, kw_only=True)
class MethodArguments:
    """Training methods: NEFTune, LoRA, and what is trained."""

    use_neft: bool = switch(help="NEFTune: noise on the embeddings (arXiv 2310.05914)")
    neft_alpha: float = option(
        5.0,
        type=number_in_range(float, above=0),
        metavar="ALPHA",
        only_with="use_neft",
        help="strength of the NEFTune noise",
    )
    train_only: str = option(
        "all",
        choices=TRAINABLE,
        help="embeddings: input and output embeddings; new_rows: of these, the rows that the last expansion added. All "
        "else stays as it is, bit for bit",
    )
    freeze_non_embeds_params: bool = switch(help="the same as --train_only embeddings")
    freeze_layers: int = option(
        0,
        type=number_in_range(int, 0),
        metavar="N",
        help="leave the first N decoder layers as they are; embeddings, the other layers and the last norm are trained",
    )
    first_new_row: int | None = option(
        type=number_in_range(int, 1),
        metavar="N",
        help="embedding rows from this one on are new; saved models carry it on (default: by the report of "
        "init_model.py or init_tokenizer.py in the model's directory)",
    )
    lora_rank: int = option(
        0, type=number_in_range(int, 0), metavar="RANK", help="train LoRA adapters of this rank; 0: no LoRA"
    )
    lora_alpha: float | None = option(
        type=number_in_range(float, above=0),
        metavar="ALPHA",
        only_with="lora_rank",
        help="adapters are scaled by alpha / rank (default: twice the rank)",
    )
    lora_dropout: float = option(
        0.0,
        type=number_in_range(float, 0, 0.99),
        metavar="P",
        only_with="lora_rank",
        help="dropout on the adapters' input",
    )
    lora_target_modules: tuple[str, ...] = option(
        LORA_LAYERS,
        nargs="+",
        choices=LORA_LAYERS,
        metavar="LAYER",
        only_with="lora_rank",
        help="linear layers that get adapters",
    )
    lora_new_rows: bool = switch(
        only_with="lora_rank",
        help="also train the embedding rows of an expansion's new tokens (see --first_new_row), which LoRA freezes; "
        "they are saved with the adapter, as whole matrices that PEFT reads",
    )
    merge_lora: bool = switch(
        only_with="lora_rank",
        help="also write the base model with the adapter merged, modelling_merged/",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointArguments:
    """Checkpoints: directory, interval, number kept, and the one to resume from."""

    save_dir: Path = option(Path("checkpoint_dir"), type=Path, metavar="DIR", help="checkpoints and the final model")
    save_interval: int = option(1000, type=number_in_range(int, 1), metavar="STEPS", help="steps between checkpoints")
    skip_save_each_epoch: bool = switch(help="write no checkpoint at the end of an epoch")
    keep_last: int | None = option(
        type=number_in_range(int, 1), metavar="K", help="delete all checkpoints but the newest K (default: keep all)"
    )
    save_in_background: bool = option(
        True,
        type=parse_bool,
        metavar="BOOL",
        help="write checkpoints while training continues, from a staging buffer in host memory (14 bytes a parameter "
        "in bf16); False, or too little memory: training waits",
    )
    load_checkpoint: str | None = option(
        metavar="DIR",
        help="a checkpoint (everything is restored), its modelling directory (weights only, for the next stage), or "
        "'auto': the newest checkpoint in --save_dir, a fresh start when there is none",
    )
    allow_other_data: bool = switch(help="resume although data or tokenizer differ from those that the run began with")


@dataclass(frozen=True, kw_only=True)
class RecordArguments:
    """Validation, metrics, and the configuration file of the run."""

    eval_dataset: tuple[Path, ...] = option(
        (),
        nargs="+",
        type=local_paths,
        action=GatherPaths,
        metavar="DIR",
        help="data for the validation loss, given as for --dataset; it is computed at intervals and at the end",
    )
    eval_interval: int | None = option(
        type=number_in_range(int, 1),
        metavar="STEPS",
        only_with="eval_dataset",
        help="steps between evaluations (default: --save_interval)",
    )
    max_bad_steps: int = option(
        1,
        type=number_in_range(int, 1),
        metavar="K",
        help="end the run after K consecutive steps whose loss or gradient norm is NaN or Inf; such a step leaves the "
        "weights unchanged, and its rows are listed in SAVE_DIR/bad_steps.jsonl",
    )
    tensorboard_dir: Path = option(
        Path("logs_dir"), type=Path, metavar="DIR", help="TensorBoard events and metrics.jsonl"
    )
    config_file: Path = option(
        Path("config_file"), type=Path, metavar="FILE", help="file for the configuration of the run"
    )


@dataclass(frozen=True, kw_only=True)
class TaskArguments:
    """Questions of benchmarks that the model answers while it is trained."""

    eval_tasks: tuple[str, ...] = option(
        (),
        nargs="+",
        type=task_names,
        action=GatherPaths,
        metavar="TASK|FILE.jsonl",
        help="questions that the model answers at intervals and at the end: mmlu, cmmlu, ceval, agieval, gaokao, and "
        "files of one's own with choices, read as evaluate.py reads them; one forward pass a question",
    )
    eval_task_dir: Path | None = option(
        type=existing_directory,
        only_with="eval_tasks",
        metavar="DIR",
        help="directory with a folder for each task (evaluate.py --data_dir)",
    )
    eval_task_subjects: tuple[str, ...] = option(
        (),
        nargs="+",
        type=words_of,
        action=GatherPaths,
        metavar="SUBJECT",
        only_with="eval_tasks",
        help="these subjects only: names of files without their endings (default: all)",
    )
    eval_task_interval: int | None = option(
        type=number_in_range(int, 0),
        metavar="STEPS",
        only_with="eval_tasks",
        help="steps between them (default, and 0: at the end only)",
    )
    eval_task_limit: int | None = option(
        type=number_in_range(int, 1),
        metavar="K",
        only_with="eval_tasks",
        help="the first K questions of each subject only, the same ones each time (default: all)",
    )
    eval_task_shots: int | None = option(
        type=number_in_range(int, 0),
        metavar="N",
        only_with="eval_tasks",
        help="most examples before a question (default: of each task as published)",
    )
    eval_task_max_length: int | None = option(
        type=number_in_range(int, 64),
        metavar="TOKENS",
        only_with="eval_tasks",
        help="most tokens of a prompt: fewer examples are given, then the middle is left out (default: 2048, or the "
        "model's positions if it has fewer)",
    )
    eval_task_template: Path | None = option(
        type=existing_file, metavar="FILE", only_with="eval_tasks", help="wording of one's own questions"
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Benchmark on random rows."""

    benchmark: bool = switch(help="train on random full rows instead of --dataset, save nothing, and print the speed")
    num_samples: int = option(
        500, type=number_in_range(int, 1), metavar="ROWS", only_with="benchmark", help="number of random rows"
    )


@dataclass(frozen=True, kw_only=True)
class DryRunArguments:
    """Plan and memory estimate without training."""

    dry_run: bool = switch(
        help="print steps, schedule and the estimated memory of each GPU, with settings that would fit, and stop; "
        "needs no GPU",
    )
    dry_run_processes: int | None = option(
        type=number_in_range(int, 1),
        metavar="N",
        only_with="dry_run",
        help="plan for N processes with a GPU each (default: the number of started processes)",
    )
    gpu_memory_gib: float | None = option(
        type=number_in_range(float, above=0),
        metavar="GIB",
        only_with="dry_run",
        help="memory of the planned GPU (default: of this host's GPU, if it has one)",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """All options of train.py, in groups; functions take the groups that they need."""

    model: ModelArguments = group("model and kernels")
    data: DataArguments = group("data and batches")
    optimizer: OptimizerArguments = group("optimizer: AdamW, betas 0.9 and 0.95, and its learning rate schedule")
    plugin: PluginArguments = group("plugin and precision")
    memory: MemoryArguments = group("memory")
    method: MethodArguments = group("method")
    checkpoint: CheckpointArguments = group("checkpoints")
    records: RecordArguments = group("validation and records")
    tasks: TaskArguments = group("benchmark questions")
    benchmark: BenchmarkArguments = group("benchmark")
    dry_run: DryRunArguments = group("dry run")

    def as_json(self) -> dict[str, Any]:
        """Returns all options by name as JSON values, for `--config_file`."""
        return {name: _json_value(value) for name, value in option_values(self).items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path | ModelName) else value
