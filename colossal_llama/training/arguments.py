"""The arguments of train.py: parsed, checked together, and reported all at once. Imports no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from colossal_llama.training.argument_checks import check_arguments
from colossal_llama.training.command_line import build_parser


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
    pad_token: str | None
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
    check_arguments(parser, options, has_gpu, world_size)
    parser.finish()
    options.dataset = tuple(Path(part) for part in options.dataset)
    options.eval_dataset = tuple(Path(part) for part in options.eval_dataset)
    options.lora_target_modules = tuple(options.lora_target_modules)
    return TrainingArguments(**vars(options))
