"""Checkpoints: complete or absent, and enough to go on as if nothing had happened.

    SAVE_DIR/epoch-0_step-200/
        modelling/            a model directory that transformers opens by itself: safetensors, config, tokenizer
        optimizer/            ColossalAI's shards: both Adam moments, and the fp32 master weights beside them
        lr_scheduler          JSON: schedule and position
        running_states.json   position in data and run, what the run was begun with
        random_states.pt      generators of every rank
        master_weights/       Gemini alone: the fp32 master weights, which it keeps apart from its optimizer

ColossalAI's own checkpoints keep the half-precision weights alone and round the master weights to them on loading; here each
master weight travels as one more state of its parameter, so that the plugin's own gathering and sharding serves it too.
"""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.amp.naive_amp.mixed_precision_optimizer import MixedPrecisionOptimizer
from colossalai.zero import GeminiDDP, GeminiOptimizer, LowLevelZeroOptimizer
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from colossal_llama.model.lora import merge_adapter
from colossal_llama.training.optimizer import loss_scaler
from colossal_llama.training.plugins import Engine
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import sync_to_disk, sync_tree_to_disk, write_json

RUNNING_STATES = "running_states.json"
RANDOM_STATES = "random_states.pt"
_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
_MASTER = "master_weight"
_MASTERS = "master_weights"
_SHARD_SIZE_MIB = 4096


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    epoch: int = 0
    rows_done_in_epoch: int = 0
    step: int = 0
    """Optimizer steps done."""
    samples_seen: int = 0
    tokens_seen: int = 0
    target_tokens_seen: int = 0

    def advanced(self, rows: int, samples: int, tokens: int, target_tokens: int) -> "Progress":
        """The position after one more step."""
        return replace(
            self,
            rows_done_in_epoch=self.rows_done_in_epoch + rows,
            step=self.step + 1,
            samples_seen=self.samples_seen + samples,
            tokens_seen=self.tokens_seen + tokens,
            target_tokens_seen=self.target_tokens_seen + target_tokens,
        )

    def next_epoch(self) -> "Progress":
        """The position at the beginning of the following epoch."""
        return replace(self, epoch=self.epoch + 1, rows_done_in_epoch=0)


@dataclass(frozen=True)
class Origin:
    """What a run was begun with; a resumed run must find the same."""

    data_fingerprint: str
    tokenizer_fingerprint: str
    parts: int
    seed: int
    shuffle: str
    packed_to_tokens: int | None
    """Samples were packed into rows of so many tokens; None: each by itself."""

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """One sentence for each thing that is not as the checkpoint has it."""
        names = {
            "data_fingerprint": "the data (--dataset, its order or its content)",
            "tokenizer_fingerprint": "the tokenizer",
            "parts": "the number of parts",
            "seed": "--seed",
            "shuffle": "--shuffle",
            "packed_to_tokens": "the packing of samples (--padding_mode, --max_length)",
        }
        return [
            f"{names[name]} differs: {_short(saved.get(name))} when the run began, {_short(value)} now"
            for name, value in asdict(self).items()
            if saved.get(name) != value
        ]


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    running_states: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The model directory inside."""
        return self.path / "modelling"

    @property
    def progress(self) -> Progress:
        """Where the run stood."""
        return Progress(**self.running_states["progress"])


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint's states.

    Raises:
        UserError: the directory is not a complete checkpoint.
    """
    try:
        states = json.loads((path / RUNNING_STATES).read_text(encoding="utf-8"))
        checkpoint = Checkpoint(path, states)
        _ = checkpoint.progress
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a complete checkpoint: {RUNNING_STATES} cannot be read ({error})") from error
    for needed in ("modelling", "optimizer"):
        if not (path / needed).is_dir():
            raise UserError(f"{path} is not a complete checkpoint: {needed}/ is missing")
    return checkpoint


def complete_checkpoints(save_dir: Path) -> list[Path]:
    """The checkpoints in a save directory, oldest first. What a killed run left half-written has another name."""
    if not save_dir.is_dir():
        return []
    found = [
        (int(match[2]), path) for path in save_dir.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def set_aside_later(save_dir: Path, step: int) -> list[Path]:
    """Renames checkpoints of later steps than `step`, left by an earlier run, to `superseded-…`; returns the new names.

    They would be taken for the newest of the run that begins now, by `--load_checkpoint auto` and by `--keep_last`.
    """
    moved = []
    for path in complete_checkpoints(save_dir):
        if int(_NAME.fullmatch(path.name)[2]) > step:
            number = next(n for n in itertools.count() if not path.with_name(f"superseded-{n}-{path.name}").exists())
            moved.append(path.rename(path.with_name(f"superseded-{number}-{path.name}")))
    return moved


def find_checkpoint(load_checkpoint: str | None, save_dir: Path) -> Checkpoint | None:
    """The checkpoint that `--load_checkpoint` names, if it names one to resume from (a model directory is not one)."""
    if load_checkpoint == "auto":
        found = complete_checkpoints(save_dir)
        return open_checkpoint(found[-1]) if found else None
    if load_checkpoint is None or not (Path(load_checkpoint) / RUNNING_STATES).is_file():
        return None
    return open_checkpoint(Path(load_checkpoint))


def save_checkpoint(
    save_dir: Path,
    engine: Engine,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    schedule: dict[str, Any],
    origin: Origin,
    keep_last: int | None = None,
) -> Path:
    """Writes `SAVE_DIR/epoch-E_step-S`, by all ranks together, under another name until it is complete and on disk."""
    target = save_dir / f"epoch-{progress.epoch}_step-{progress.step}"
    temporary = save_dir / f".{target.name}.unfinished"
    if is_rank_zero():
        save_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    dist.barrier()
    write_model(temporary / "modelling", engine, model, tokenizer)
    if isinstance(model, GeminiDDP):
        with _speaking_for_master_weights(model):
            engine.booster.save_model(
                model, str(temporary / _MASTERS), shard=True, size_per_shard=_SHARD_SIZE_MIB, use_safetensors=True
            )
    with _master_weights_as_states(optimizer), _alone_without_pickling(optimizer):
        engine.booster.save_optimizer(
            optimizer, str(temporary / "optimizer"), shard=True, size_per_shard=_SHARD_SIZE_MIB
        )
    random_states = _gathered_random_states()
    if is_rank_zero():
        torch.save(random_states, temporary / RANDOM_STATES)
        write_json(temporary / "lr_scheduler", schedule)
        states = {"progress": asdict(progress), "origin": asdict(origin), "loss_scale": _loss_scale_state(optimizer)}
        write_json(temporary / RUNNING_STATES, {**states, "world_size": dist.get_world_size()})
        _publish(temporary, target)
        if keep_last:
            for old in complete_checkpoints(save_dir)[:-keep_last]:
                shutil.rmtree(old)
    dist.barrier()
    return target


def _publish(temporary: Path, target: Path) -> None:
    sync_tree_to_disk(temporary)
    if target.exists():  # the same step, saved by a run that was started again from an older checkpoint
        shutil.rmtree(target)
    temporary.rename(target)
    sync_to_disk(target.parent)


def save_final_model(
    save_dir: Path, engine: Engine, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Writes `SAVE_DIR/modelling`, the finished model, atomically; one from an earlier stage is replaced."""
    target, temporary = save_dir / "modelling", save_dir / ".modelling.unfinished"
    if is_rank_zero():
        save_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    dist.barrier()
    write_model(temporary, engine, model, tokenizer)
    if is_rank_zero():
        _publish(temporary, target)
    dist.barrier()
    return target


def write_model(target: Path, engine: Engine, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a complete model directory, by all ranks together: safetensors shards, configurations and tokenizer.

    With LoRA it is the adapter's directory (adapter_config.json names the base model).
    """
    network = model.unwrap(unwrap_peft=False)
    if isinstance(network, PeftModel):
        engine.booster.save_lora_as_pretrained(model, str(target), use_safetensors=True)
    else:
        engine.booster.save_model(model, str(target), shard=True, size_per_shard=_SHARD_SIZE_MIB, use_safetensors=True)
    dist.barrier()
    if is_rank_zero():
        if not isinstance(network, PeftModel):
            _write_configurations(target, network)
        tokenizer.save_pretrained(target)


def _write_configurations(target: Path, network: PreTrainedModel) -> None:
    config = network.config.__class__.from_dict(network.config.to_dict())
    config.use_cache = True  # off while training
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(target)
    if network.generation_config is not None:
        network.generation_config.save_pretrained(target)


def save_merged_model(save_dir: Path, base_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes `SAVE_DIR/modelling_merged`: the base model with the adapter of `SAVE_DIR/modelling` added, by rank 0 alone."""
    target, temporary = save_dir / "modelling_merged", save_dir / ".modelling_merged.unfinished"
    if is_rank_zero():
        shutil.rmtree(temporary, ignore_errors=True)
        merge_adapter(base_path, save_dir / "modelling", temporary)
        tokenizer.save_pretrained(temporary)
        _publish(temporary, target)
    dist.barrier()
    return target


def restore_optimizer(
    checkpoint: Checkpoint, engine: Engine, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restores moments, master weights, step counts and loss scale; the model's own weights are loaded before."""
    masters = checkpoint.path / _MASTERS
    if isinstance(model, GeminiDDP) and masters.is_dir():
        with _speaking_for_master_weights(model):
            engine.booster.load_model(model, str(masters))
    engine.booster.load_optimizer(optimizer, str(checkpoint.path / "optimizer"))
    _take_master_weights(optimizer)
    _restore_loss_scale(optimizer, checkpoint.running_states.get("loss_scale"))


def restore_random_states(checkpoint: Checkpoint) -> None:
    """Sets this rank's generators as they were, when the number of ranks is the same; another number starts from the seed."""
    if checkpoint.running_states["world_size"] != dist.get_world_size():
        return
    states = torch.load(checkpoint.path / RANDOM_STATES, weights_only=True)
    mine = states[str(dist.get_rank())]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])


def _gathered_random_states() -> dict[str, dict[str, torch.Tensor]]:
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {str(rank): states for rank, states in enumerate(everyone)}


@contextmanager
def _master_weights_as_states(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Lists each parameter's fp32 master weight among its optimizer states while the optimizer is saved."""
    inner = optimizer.optim
    masters = (
        [parameter for parameter, state in inner.state.items() if state] if _keeps_master_weights(optimizer) else []
    )
    for parameter in masters:
        inner.state[parameter][_MASTER] = parameter.data
    try:
        yield
    finally:
        for parameter in masters:
            inner.state[parameter].pop(_MASTER, None)


def _take_master_weights(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.optim.state.items():
        master = state.pop(_MASTER, None)
        if master is not None and _keeps_master_weights(optimizer):
            parameter.data.copy_(master.view_as(parameter))


def _keeps_master_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the parameters of the inner optimizer are fp32 copies of the model's (Gemini keeps them in chunks of its own)."""
    return isinstance(optimizer, LowLevelZeroOptimizer | MixedPrecisionOptimizer)


@contextmanager
def _alone_without_pickling(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Patch: on one GPU Gemini sends its states to itself, pickled, through NCCL.

    A save of the 1.25 B model took 75 s on an H200 that way (23 s with zero2); how much this saves has not been measured. Alone in
    its group there is nothing to gather.
    """
    if not isinstance(optimizer, GeminiOptimizer) or dist.get_world_size() > 1:
        yield
        return

    def keep(gathered: list[Any], mine: Any, group: Any = None) -> None:
        gathered[0] = mine

    former, dist.all_gather_object = dist.all_gather_object, keep
    try:
        yield
    finally:
        dist.all_gather_object = former


@contextmanager
def _speaking_for_master_weights(model: GeminiDDP) -> Iterator[None]:
    """Makes Gemini save and load its fp32 master weights where it otherwise does the half-precision ones."""
    former = model.mixed_precision, model.chunk_manager.reuse_fp16_chunk
    model.mixed_precision, model.chunk_manager.reuse_fp16_chunk = torch.float32, True
    try:
        yield
    finally:
        model.mixed_precision, model.chunk_manager.reuse_fp16_chunk = former


_SCALER_NUMBERS = ("_growth_step", "_hysteresis_step")  # missing from ColossalAI's own state_dict


def _loss_scale_state(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    scaler = loss_scaler(optimizer)
    if scaler is None:
        return None
    if hasattr(scaler, "get_scale"):
        return scaler.state_dict()
    return {"scale": scaler.scale.item(), **{name: getattr(scaler, name) for name in _SCALER_NUMBERS}}


def _restore_loss_scale(optimizer: torch.optim.Optimizer, state: dict[str, Any] | None) -> None:
    scaler = loss_scaler(optimizer)
    if scaler is None or state is None:
        return
    if hasattr(scaler, "get_scale"):
        scaler.load_state_dict(state)
        return
    scaler._scale.fill_(state["scale"])
    for name in _SCALER_NUMBERS:
        setattr(scaler, name, state[name])
