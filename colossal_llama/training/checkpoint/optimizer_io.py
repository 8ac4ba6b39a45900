"""Optimizer states on disk: each process writes its shards, and reads the elements it needs.

    optimizer/index.json                      format, hyperparameters, files
    optimizer/rank-00000-00000.safetensors    NAME.exp_avg, NAME.exp_avg_sq, NAME.master_weight:
                                              flat fp32 shards of parameters; the header has the
                                              elements of NAME that they are, and its step count

Nothing is gathered for a checkpoint. Since each stored shard names its elements, a run with another
number of ranks or another plugin reshards them as it reads. ColossalAI's own checkpoints keep the
half-precision weights alone and round the master weights to them on loading; here each master
weight is saved as one more state of its parameter.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from colossal_llama.engine.optimizer_shards import OptimizerShard, ShardRange, TensorShard
from colossal_llama.engine.parameter_groups import hyperparameters, trains_frozen_rows
from colossal_llama.engine.state_formats import moments_of, states_from
from colossal_llama.training.checkpoint.staging import HEADER_ENTRIES
from colossal_llama.training.checkpoint.state import OPTIMIZER_INDEX
from colossal_llama.utils.errors import UserError

_FORMAT = "colossal_llama.optimizer.1"
_MASTER = "master_weight"
_NEW_STAGE = "from its weights give its modelling folder to --load_checkpoint"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def tensors_to_save(shards: list[OptimizerShard]) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """Optimizer states that this process writes.

    Yields:
        Name in the file, flat tensor (on its device, not a copy), and the header's entry for its
            parameter.
    """
    for shard in shards:
        elements = shard.range.end - shard.range.begin
        if not shard.is_written_here or elements == 0:
            continue
        entry = {shard.name: {**_range_to_json(shard.range), "step": int(shard.states.get("step", 0))}}
        tensors = moments_of(shard.states)
        if shard.keeps_master:
            tensors[_MASTER] = shard.master
        for name, tensor in tensors.items():
            yield f"{shard.name}.{name}", tensor.detach().reshape(-1)[:elements], entry


def index_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Content of index.json without the files: the hyperparameters.

    They are for people; a resumed run uses its own arguments.
    """
    return {"format": _FORMAT, "param_groups": hyperparameters(optimizer)}


def _range_to_json(elements: ShardRange) -> dict[str, Any]:
    """Header entry of a range; its keys are part of the format."""
    shard = elements.shard
    cut = None if shard is None else {"dimension": shard.dimension, "begin": shard.begin, "end": shard.end}
    return {"shape": elements.shape, "cut": cut, "begin": elements.begin, "end": elements.end}


def _range_from_json(entry: Mapping[str, Any]) -> ShardRange:
    """Reads a header entry.

    Raises:
        ValueError: it describes no elements of a parameter.
    """
    shard = TensorShard(**entry["cut"]) if entry["cut"] else None
    elements = ShardRange(tuple(entry["shape"]), shard, entry["begin"], entry["end"])
    numbers = [*elements.shape, elements.begin, elements.end, entry["step"]]
    is_valid = all(type(number) is int and number >= 0 for number in numbers)
    if is_valid and shard is not None:
        is_valid = 0 <= shard.begin <= shard.end <= elements.shape[shard.dimension]
    if not is_valid or not elements.begin <= elements.end <= math.prod(elements.shard_shape):
        raise ValueError(f"{dict(entry)} are no elements of a parameter")
    return elements


@dataclass(frozen=True)
class _StoredShard:
    range: ShardRange
    step: int
    path: Path


class SavedOptimizer:
    """Optimizer states of a checkpoint, read shard by shard from memory-mapped files."""

    def __init__(self, directory: Path):
        """Reads the index and every file's header.

        Raises:
            UserError: something is missing or malformed.
        """
        self._directory = directory
        self._files: dict[Path, Any] = {}
        self._open = ExitStack()
        self._shards: dict[str, list[_StoredShard]] = defaultdict(list)
        try:
            index = json.loads((directory / OPTIMIZER_INDEX).read_text(encoding="utf-8"))
            if index["format"] != _FORMAT:
                raise UserError(
                    f"{directory / OPTIMIZER_INDEX}: the format is {index['format']}, but this version reads {_FORMAT}"
                )
            self._groups: list[dict[str, Any]] = index["param_groups"]
            trains_frozen_rows(self._groups, ())  # damaged ones raise here
            for name in index["files"]:
                self._read_header(directory / name)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"the optimizer states in {directory} cannot be read: {error}. Copy the checkpoint again"
            ) from error

    def close(self) -> None:
        """Closes the files."""
        self._files.clear()
        self._open.close()

    def _read_header(self, path: Path) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read: it is incomplete or damaged ({error})") from error
        names = set(file.keys())
        self._files[path] = file, names
        for name, entry in json.loads(file.metadata()[HEADER_ENTRIES]).items():
            elements = _range_from_json(entry)
            for tensor in (f"{name}.{state}" for state in (*_MOMENTS, _MASTER)):
                if tensor in names and file.get_slice(tensor).get_shape() != [elements.end - elements.begin]:
                    raise ValueError(f"{tensor} in {path.name} has not the length that the header says")
            self._shards[name].append(_StoredShard(elements, entry["step"], path))

    def refuse_frozen_rows(self, optimizer: Any) -> None:
        """Refuses a prepared optimizer that trains embedding rows which the saved run has frozen.

        Raises:
            UserError: it does.
        """
        if trains_frozen_rows(self._groups, hyperparameters(optimizer)):
            raise UserError(
                f"the run that saved {self._directory.parent} trained new embedding rows only, and other rows are to "
                f"be trained now: give its --train_only and --first_new_row, or begin a new stage {_NEW_STAGE}"
            )

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Shape of a parameter; None when no states of it were saved."""
        shards = self._shards.get(parameter)
        return shards[0].range.shape if shards else None

    def step(self, parameter: str) -> int:
        """Updates that the parameter had; 0: it has no states but perhaps a master weight."""
        return self._shards[parameter][0].step

    def has(self, parameter: str, state: str) -> bool:
        """True when a state of a parameter was saved."""
        return bool(self._shards_with(parameter, state))

    def read(self, parameter: str, state: str, elements: ShardRange) -> torch.Tensor:
        """Reads elements of a state, from whichever shards hold them.

        Returns:
            A flat fp32 tensor on the CPU.

        Raises:
            UserError: some of the elements are in no file.
        """
        stored = self._shards_with(parameter, state)
        same_shard = [shard for shard in stored if shard.range.shard == elements.shard]
        if same_shard:
            return self._read_range(parameter, state, same_shard, elements.begin, elements.end)
        return elements.of(self._read_whole(parameter, state, stored, elements.shape))

    def _shards_with(self, parameter: str, state: str) -> list[_StoredShard]:
        # A parameter's states may be in several files, each with the entry of its elements.
        return [shard for shard in self._shards[parameter] if f"{parameter}.{state}" in self._files[shard.path][1]]

    def _read_whole(
        self, parameter: str, state: str, stored: list[_StoredShard], shape: tuple[int, ...]
    ) -> torch.Tensor:
        """A state of a whole parameter, from its tensor-parallel shards."""
        whole = torch.empty(shape)
        by_shard: dict[TensorShard | None, list[_StoredShard]] = defaultdict(list)
        for shard in stored:
            by_shard[shard.range.shard].append(shard)
        elements = 0
        for tensor_shard, ranges in by_shard.items():
            size = torch.Size(ranges[0].range.shard_shape)
            values = self._read_range(parameter, state, ranges, 0, size.numel()).view(size)
            (whole if tensor_shard is None else tensor_shard.of(whole)).copy_(values)
            elements += size.numel()
        if elements != whole.numel():
            raise UserError(self._incomplete(parameter, state))
        return whole

    def _read_range(self, parameter: str, state: str, stored: list[_StoredShard], begin: int, end: int) -> torch.Tensor:
        """Elements [begin, end) of one flattened tensor-parallel shard, from its stored ranges."""
        values, done = torch.empty(end - begin), begin
        for shard in sorted(stored, key=lambda shard: shard.range.begin):
            first, last = max(begin, shard.range.begin), min(end, shard.range.end)
            if first < last:
                if first != done:
                    raise UserError(self._incomplete(parameter, state))
                tensor = self._files[shard.path][0].get_tensor(f"{parameter}.{state}")
                values[first - begin : last - begin] = tensor[first - shard.range.begin : last - shard.range.begin]
                done = last
        if done != end:
            raise UserError(self._incomplete(parameter, state))
        return values

    def _incomplete(self, parameter: str, state: str) -> str:
        return (
            f"the optimizer states in {self._directory} are incomplete: elements of {parameter}.{state} are missing, "
            "or there twice"
        )


def restore_states(saved: SavedOptimizer, shards: list[OptimizerShard], weights: Mapping[str, Any]) -> None:
    """Restores moments, step counts and master weights of this process's optimizer.

    Args:
        saved: of a checkpoint, by any plugin on any number of ranks.
        shards: of the prepared optimizer, whose model has the checkpoint's weights.
        weights: functions that read the checkpoint's fp32 model weights by name; they serve as
            master weights where the saved run kept no others.

    Raises:
        UserError: parameters that are trained now were not trained in the saved run, or had another
            shape.
    """
    _check_parameters(saved, shards)
    for shard in shards:
        if saved.has(shard.name, _MASTER):
            master = saved.read(shard.name, _MASTER, shard.range)
        elif shard.keeps_master and shard.name in weights:
            master = shard.range.of(weights[shard.name]())
        else:
            master = shard.master[:0]
        shard.master[: len(master)].copy_(master)
        step = saved.step(shard.name)
        shard.states.clear()
        if step:
            moments = {name: _to_shard(saved.read(shard.name, name, shard.range), shard) for name in _MOMENTS}
            shard.states.update(step=step, **states_from(shard.state_format, moments))


def _to_shard(values: torch.Tensor, shard: OptimizerShard) -> torch.Tensor:
    """A state as the optimizer keeps it: on its device, in its shape, padded with zeros."""
    state = torch.zeros(shard.shape.numel(), dtype=shard.key.dtype, device=shard.key.device)
    state[: len(values)].copy_(values)
    return state.view(shard.shape)


def _check_parameters(saved: SavedOptimizer, shards: list[OptimizerShard]) -> None:
    missing = [shard.name for shard in shards if saved.shape(shard.name) is None]
    if missing:
        raise UserError(
            f"the checkpoint has no optimizer states of {len(missing)} parameters that are trained now ({missing[0]} "
            "…): it was saved by a run that trained others (--train_only, --freeze_layers, --lora_rank, "
            f"--lora_new_rows). To begin a new stage {_NEW_STAGE}"
        )
    for shard in shards:
        there, here = saved.shape(shard.name), shard.range.shape
        if there != here:
            raise UserError(
                f"the checkpoint's optimizer states of {shard.name} have the shape {there}, the model's is {here}"
            )
