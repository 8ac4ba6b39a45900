"""Optimizer states on disk: every process writes the elements that it has, and reads any others it needs.

    optimizer/index.json                         format, hyperparameters, files
    optimizer/rank-00000-00000.safetensors       NAME.exp_avg, NAME.exp_avg_sq, NAME.master_weight: flat fp32 pieces of parameters;
                                                 the header says which elements of NAME they are, and its step count

Nothing is gathered for a save, and since a piece says where it belongs, another number of ranks and
another plugin put together what they need. ColossalAI's own checkpoints keep the half-precision
weights alone and round the master weights to them on loading; here each master weight travels as
one more state of its parameter.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from colossal_llama.engine.optimizer_shards import Cut, Place, Slot
from colossal_llama.training.checkpoint.commit import NOTES
from colossal_llama.training.checkpoint.discovery import OPTIMIZER_INDEX as INDEX
from colossal_llama.utils.errors import UserError

_FORMAT = "colossal_llama.optimizer.1"
_MASTER = "master_weight"


def tensors_to_save(slots: list[Slot]) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """What this process writes.

    Yields:
        Name in the file, flat tensor (on its device, not a copy), and the header's entry for its
            parameter.
    """
    for slot in slots:
        length = slot.place.end - slot.place.begin
        if not slot.is_mine or length == 0:
            continue
        note = {slot.name: {**asdict(slot.place), "step": int(slot.states.get("step", 0))}}
        tensors = {name: state for name, state in slot.states.items() if isinstance(state, torch.Tensor)}
        tensors.pop("step", None)
        if slot.keeps_master:
            tensors[_MASTER] = slot.master
        for name, tensor in tensors.items():
            yield f"{slot.name}.{name}", tensor.detach().reshape(-1)[:length], note


def index_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What index.json holds beside the files: the hyperparameters, for people (a resumed run takes its own arguments)."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.optim.param_groups]
    return {"format": _FORMAT, "param_groups": groups}


@dataclass(frozen=True)
class _Piece:
    place: Place
    step: int
    path: Path


class SavedOptimizer:
    """The optimizer states of a checkpoint, read piece by piece (the files are mapped; only what is used is read)."""

    def __init__(self, directory: Path):
        """Reads the index and every file's header.

        Raises:
            UserError: something is missing or not what it should be.
        """
        self._directory, self._files = directory, {}
        self._open = ExitStack()
        self._pieces: dict[str, list[_Piece]] = defaultdict(list)
        try:
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            if index["format"] != _FORMAT:
                raise UserError(
                    f"{directory / INDEX}: the format {index['format']} is not {_FORMAT}, which is read here"
                )
            for name in index["files"]:
                self._read_header(directory / name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the optimizer states in {directory} cannot be read: {error}") from error

    def close(self) -> None:
        """Closes the files."""
        self._files.clear()
        self._open.close()

    def _read_header(self, path: Path) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read: it is incomplete or damaged ({error})") from error
        self._files[path] = file, set(file.keys())
        for name, note in json.loads(file.metadata()[NOTES]).items():
            cut = Cut(**note["cut"]) if note["cut"] else None
            place = Place(tuple(note["shape"]), cut, note["begin"], note["end"])
            self._pieces[name].append(_Piece(place, note["step"], path))

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Shape of a parameter; None when no states of it were saved."""
        pieces = self._pieces.get(parameter)
        return pieces[0].place.shape if pieces else None

    def step(self, parameter: str) -> int:
        """Updates that the parameter had; 0: it has no states but perhaps a master weight."""
        return self._pieces[parameter][0].step

    def has(self, parameter: str, state: str) -> bool:
        """Whether a state of a parameter was saved."""
        return any(f"{parameter}.{state}" in self._files[piece.path][1] for piece in self._pieces[parameter])

    def read(self, parameter: str, state: str, place: Place) -> torch.Tensor:
        """The elements of a place.

        Returns:
            A flat fp32 tensor on the CPU.

        Raises:
            UserError: some of the elements are in no file.
        """
        # A parameter's states may be in several files, each with the note of where they belong.
        pieces = [piece for piece in self._pieces[parameter] if f"{parameter}.{state}" in self._files[piece.path][1]]
        alike = [piece for piece in pieces if piece.place.cut == place.cut]
        if alike:
            return self._range(parameter, state, alike, place.begin, place.end)
        whole = torch.empty(place.shape)
        cuts: dict[Cut | None, list[_Piece]] = defaultdict(list)
        for piece in pieces:
            cuts[piece.place.cut].append(piece)
        for cut, parts in cuts.items():
            shape = parts[0].place.cut_shape
            values = self._range(parameter, state, parts, 0, torch.Size(shape).numel()).view(shape)
            _slice_of(whole, cut).copy_(values)
        if sum(torch.Size(parts[0].place.cut_shape).numel() for parts in cuts.values()) != whole.numel():
            raise UserError(self._incomplete(parameter, state))
        return _slice_of(whole, place.cut).reshape(-1)[place.begin : place.end]

    def _range(self, parameter: str, state: str, pieces: list[_Piece], begin: int, end: int) -> torch.Tensor:
        """Elements [begin, end) of a flattened cut, whose pieces these are."""
        values, found = torch.empty(end - begin), 0
        for piece in pieces:
            first, last = max(begin, piece.place.begin), min(end, piece.place.end)
            if first < last:
                stored = self._files[piece.path][0].get_tensor(f"{parameter}.{state}")
                values[first - begin : last - begin] = stored[first - piece.place.begin : last - piece.place.begin]
                found += last - first
        if found != end - begin:
            raise UserError(self._incomplete(parameter, state))
        return values

    def _incomplete(self, parameter: str, state: str) -> str:
        return f"the optimizer states in {self._directory} are incomplete: elements of {parameter}.{state} are missing"


def _slice_of(whole: torch.Tensor, cut: Cut | None) -> torch.Tensor:
    return whole if cut is None else whole.narrow(cut.dimension, cut.begin, cut.end - cut.begin)


def restore_states(saved: SavedOptimizer, slots: list[Slot], weights: Mapping[str, Any]) -> None:
    """Puts moments, step counts and master weights where this process's optimizer has them.

    Args:
        saved: of a checkpoint, by any plugin on any number of ranks.
        slots: of the boosted optimizer, whose model has the checkpoint's weights.
        weights: functions that read the checkpoint's fp32 model weights by name; they serve as
            master weights where a plugin that keeps no others has saved.

    Raises:
        UserError: parameters that are trained now were not trained in the saved run, or had another
            shape.
    """
    _refuse_others(saved, slots)
    for slot in slots:
        if saved.has(slot.name, _MASTER):
            master = saved.read(slot.name, _MASTER, slot.place)
        elif slot.keeps_master and slot.name in weights:
            place = slot.place
            master = _slice_of(weights[slot.name](), place.cut).reshape(-1)[place.begin : place.end]
        else:
            master = slot.master[:0]
        slot.master[: len(master)].copy_(master)
        step = saved.step(slot.name)
        slot.states.clear()
        if step:
            moments = {
                name: _placed(saved.read(slot.name, name, slot.place), slot) for name in ("exp_avg", "exp_avg_sq")
            }
            slot.states.update(step=step, **moments)


def _placed(values: torch.Tensor, slot: Slot) -> torch.Tensor:
    """A state as the optimizer keeps it: on its device, in its shape, padded with zeros."""
    state = torch.zeros(slot.shape.numel(), dtype=slot.key.dtype, device=slot.key.device)
    state[: len(values)].copy_(values)
    return state.view(slot.shape)


def _refuse_others(saved: SavedOptimizer, slots: list[Slot]) -> None:
    strange = [slot.name for slot in slots if saved.shape(slot.name) is None]
    if strange:
        raise UserError(
            f"the checkpoint has no optimizer states of {len(strange)} parameters that are trained now ({strange[0]} "
            "…): it was saved by a "
            "run that trained others (--freeze_non_embeds_params, --lora_rank). To begin a new stage from its weights "
            "give its modelling "
            "folder to --load_checkpoint"
        )
    for slot in slots:
        there, here = saved.shape(slot.name), slot.place.shape
        if there != here:
            raise UserError(
                f"the checkpoint's optimizer states of {slot.name} have the shape {there}, the model's is {here}"
            )
