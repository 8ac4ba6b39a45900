"""Weight files of a Hugging Face model directory, read lazily and rewritten shard by shard.

safetensors' own `save_file` needs every tensor of a shard in memory, the enlarged matrices
included. The writer here takes a tensor as a sequence of blocks, so that a matrix of any size
passes through a few megabytes. The format is simple: an 8-byte length, a JSON header, the raw bytes
(https://huggingface.co/docs/safetensors).
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from colossal_llama.model.weights.stored_tensors import StoredTensor, TensorShape, bytes_of, shape_of
from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

if TYPE_CHECKING:
    import torch

SAFETENSORS_INDEX = "model.safetensors.index.json"
# In transformers' order of preference: (index of the shards, single file).
_LAYOUTS = ((SAFETENSORS_INDEX, "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


@dataclass(frozen=True)
class WeightShard:
    """One weight file: names, shapes and dtypes of its tensors, and its metadata."""

    path: Path
    tensors: Mapping[str, TensorShape]
    metadata: Mapping[str, str]

    @property
    def safetensors_name(self) -> str:
        """File name as safetensors.

        `pytorch_model-00001-of-00002.bin` → `model-00001-of-00002.safetensors`.
        """
        return self.path.with_suffix(".safetensors").name.replace("pytorch_model", "model")


@dataclass(frozen=True)
class WeightFiles:
    """All weight files of a model directory, in name order."""

    shards: tuple[WeightShard, ...]
    is_sharded: bool

    def find(self, name: str) -> TensorShape | None:
        """Returns the tensor `name`, or None when no shard holds it."""
        return next((shard.tensors[name] for shard in self.shards if name in shard.tensors), None)

    def shape_of(self, name: str) -> TensorShape:
        """Returns the tensor `name`, which some shard holds."""
        shape = self.find(name)
        if shape is None:
            raise KeyError(name)
        return shape


@dataclass(frozen=True)
class Replacement:
    """New content of a tensor."""

    shape: TensorShape
    blocks: Callable[[StoredTensor], Iterable[np.ndarray]]
    """Maps the stored tensor to the new tensor's blocks, in order."""


def find_weight_files(directory: Path, index_may_name_more: bool = False) -> WeightFiles:
    """Lists the tensors of a model directory's weight files from their headers.

    The files are safetensors or `.bin`, a single file or an index and shards.

    Args:
        directory: of the model.
        index_may_name_more: takes an index that names tensors which no file holds, as those of
            published models do (buffers); the caller checks that none is missing.

    Raises:
        UserError: there are no weights, a shard is missing or damaged, or the index and the shards
            disagree.
    """
    for index_name, single_name in _LAYOUTS:
        if (directory / single_name).is_file():
            return WeightFiles((read_shard(directory / single_name),), is_sharded=False)
        if (directory / index_name).is_file():
            return _read_sharded(directory / index_name, index_may_name_more)
    raise UserError(f"{directory} holds no model weights: none of {_layout_names()} is there")


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of all tensors in the files that transformers would load, by name.

    Other than `find_weight_files`, it takes any dtype, and indexes that name a tensor too many or
    too few, as real models have. The files of safetensors are read by header and size only.

    Raises:
        UserError: there are no weights, or a file is absent, truncated or damaged.
    """
    for index_name, single_name in _LAYOUTS:
        if (directory / single_name).is_file():
            return _shapes_of_file(directory / single_name)
        if (directory / index_name).is_file():
            files = sorted(set(_read_index(directory / index_name).values()))
            return {tensor: shape for name in files for tensor, shape in _shapes_of_file(directory / name).items()}
    raise UserError(f"{directory} holds no model weights: none of {_layout_names()} is there")


def _layout_names() -> str:
    return ", ".join(name for layout in _LAYOUTS for name in reversed(layout))


def _shapes_of_file(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in _load_bin(path).items()}
    read_metadata(path)
    return {name: tuple(entry["shape"]) for name, entry in _raw_header(path)[0].items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Reads a safetensors file's metadata; safetensors checks the header against the file's size.

    Raises:
        UserError: the file is absent, truncated or damaged, or a directory or a pipe.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be read: it is not a file")
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: it is incomplete or damaged ({error})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_index(index_path: Path) -> dict[str, str]:
    """Reads an index: tensor name → name of its file in the same directory; all files exist."""
    weight_map = read_json_object(index_path, "copy the model again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path} is not an index of weight files: it has no weight_map; copy the model again")
    names = weight_map.values()
    foreign = [name for name in names if not isinstance(name, str) or name != Path(name).name]
    if foreign:
        raise UserError(
            f"{index_path} names {foreign[0]!r}, which is no file of its own directory: it was changed; copy the model "
            "again"
        )
    missing = sorted({name for name in names if not (index_path.parent / name).is_file()})
    if missing:
        raise UserError(f"{index_path} names weight files that are not there: {', '.join(missing)}")
    return weight_map


def _read_sharded(index_path: Path, may_name_more: bool) -> WeightFiles:
    weight_map = _read_index(index_path)
    shards = tuple(read_shard(index_path.parent / name) for name in sorted(set(weight_map.values())))
    held = {name: shard.path.name for shard in shards for name in shard.tensors}
    compared = held.keys() if may_name_more else weight_map.keys() | held.keys()
    wrong = sorted(name for name in compared if weight_map.get(name) != held.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{index_path} and the weight files disagree on {len(wrong)} tensors, for example {name}: listed in "
            f"{weight_map.get(name, 'no file')}, found in {held.get(name, 'no file')}"
        )
    return WeightFiles(shards, is_sharded=True)


def read_shard(path: Path) -> WeightShard:
    """Reads the header of one weight file.

    Raises:
        UserError: it is absent, truncated or damaged, or holds tensors of an unknown dtype.
    """
    try:
        if path.suffix == ".safetensors":
            metadata = read_metadata(path)
            return WeightShard(path, {name: shape for name, (shape, _) in _read_header(path).items()}, metadata)
        return WeightShard(path, {name: shape_of(tensor) for name, tensor in _load_bin(path).items()}, {})
    except OSError as error:
        raise UserError(f"weight file {path} cannot be read: {error}") from error
    except KeyError as error:
        raise UserError(f"weight file {path} holds tensors of the dtype {error}, which is not supported") from error


def _read_header(path: Path) -> dict[str, tuple[TensorShape, int]]:
    """Reads shape and file offset of every tensor of a safetensors file, in its order."""
    header, begin = _raw_header(path)
    return {
        name: (TensorShape(tuple(entry["shape"]), entry["dtype"]), begin + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """Reads the entries of a checked safetensors file, and the position at which the data begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _load_bin(path: Path) -> dict[str, "torch.Tensor"]:
    """Loads the tensors of a `.bin` file, mapped; torch's old format (before 1.6) is read whole."""
    import torch  # 200 MB, which only these files need

    try:
        # torch can map its zip format only
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, …: torch raises many kinds on a damaged file
        reason = "it holds other Python objects than tensors, which are not loaded" if _is_pickle(error) else error
        raise UserError(f"weight file {path} cannot be read: {first_line(reason)}; copy the model again") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"weight file {path} is not a dictionary of tensors")
    return loaded


def _is_pickle(error: Exception) -> bool:
    """True where torch has refused to unpickle, and advises to trust the file."""
    return isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)


def first_line(error: object) -> str:
    """The first line of an error that a library has raised."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def open_tensors(shard: WeightShard) -> Iterator[Callable[[str], StoredTensor]]:
    """Yields a function that opens one tensor of the shard by name.

    Raises:
        UserError: on reading: the file has become shorter since its header was read.
    """
    if shard.path.suffix != ".safetensors":
        loaded = _load_bin(shard.path)
        yield lambda name: StoredTensor(shard.tensors[name], _reader_of_array(bytes_of(loaded[name])))
        return
    header = _read_header(shard.path)
    with shard.path.open("rb", buffering=0) as file:
        yield lambda name: StoredTensor(shard.tensors[name], _reader_of_file(file, header[name][1]))


def _reader_of_array(content: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda offset, count: content[offset : offset + count]


def _reader_of_file(file: Any, begin: int) -> Callable[[int, int], bytearray]:
    def read(offset: int, count: int) -> bytearray:
        """Reads `count` bytes of the tensor from `offset` on; UserError if the file ends before."""
        content = bytearray(count)
        rest, file_offset = memoryview(content), begin + offset
        while rest:
            got = os.preadv(file.fileno(), [rest], file_offset)
            if not got:
                raise UserError(
                    f"weight file {file.name} is incomplete: its size has changed since its header was read"
                )
            rest, file_offset = rest[got:], file_offset + got
        return content

    return read


def rewrite_shard(
    shard: WeightShard,
    directory: Path,
    replacements: Mapping[str, Replacement],
    on_bytes: Callable[[int], Any] = lambda count: None,
) -> Path:
    """Writes a shard as safetensors, atomically, with some tensors replaced and the others copied.

    Args:
        shard: the source.
        directory: where the file is written.
        replacements: tensor name → new content.
        on_bytes: called with the number of bytes after each block, for a progress bar.

    Returns:
        The file written.
    """
    shapes = {
        name: replacements[name].shape if name in replacements else shape for name, shape in shard.tensors.items()
    }

    def tensor_blocks(name: str) -> Iterable[np.ndarray]:
        stored = read(name)
        return replacements[name].blocks(stored) if name in replacements else stored.blocks()

    target = directory / shard.safetensors_name
    with open_tensors(shard) as read:
        # transformers requires {"format": "pt"}.
        write_safetensors(target, shapes, tensor_blocks, {"format": "pt", **shard.metadata}, on_bytes)
    return target


def write_safetensors(
    target: Path,
    shapes: Mapping[str, TensorShape],
    blocks: Callable[[str], "Iterable[np.ndarray | torch.Tensor]"],
    metadata: Mapping[str, str],
    on_bytes: Callable[[int], Any] = lambda count: None,
    on_data: Callable[[Any], Any] = lambda data: None,
) -> None:
    """Writes a safetensors file atomically from blocks of tensors, one block in memory at a time.

    Args:
        target: the file.
        shapes: name → shape and dtype of the whole tensor.
        blocks: returns the blocks of a tensor, together its values in row-major order: PyTorch
            tensors, or numpy arrays of the storage dtype.
        metadata: free text stored in the header.
        on_bytes: called with the number of bytes after each block, for a progress bar.
        on_data: called with each piece of the file's content, for a checksum.

    Raises:
        ValueError: the blocks of a tensor have another dtype or do not add up to its shape.
    """
    # As in safetensors, the widest dtypes first, so that every tensor is aligned to its item size.
    order = sorted(shapes, key=lambda name: (-shapes[name].storage_dtype.itemsize, name))
    with atomic_file(target) as file:
        header = _header(order, shapes, metadata)
        file.write(header)
        on_data(header)
        for name in order:
            written = 0
            for block in blocks(name):
                data = _checked_bytes(name, block, shapes[name])
                file.write(data.data)
                on_data(data.data)
                written += data.nbytes
                on_bytes(data.nbytes)
            if written != shapes[name].bytes:
                raise ValueError(f"{name}: the blocks have {written} bytes, the tensor {shapes[name].bytes}")


def _checked_bytes(name: str, block: "np.ndarray | torch.Tensor", shape: TensorShape) -> np.ndarray:
    if isinstance(block, np.ndarray):
        if block.dtype != shape.storage_dtype:
            raise ValueError(f"{name}: a block is {block.dtype}, the tensor {shape.dtype}")
        return np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    if shape_of(block).dtype != shape.dtype:
        raise ValueError(f"{name}: a block is {block.dtype}, the tensor {shape.dtype}")
    return bytes_of(block)


def _header(order: list[str], shapes: Mapping[str, TensorShape], metadata: Mapping[str, str]) -> bytes:
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        end = begin + shapes[name].bytes
        content[name] = {
            "dtype": shapes[name].dtype,
            "shape": list(shapes[name].shape),
            "data_offsets": [begin, end],
        }
        begin = end
    encoded = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # the data start at a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded
