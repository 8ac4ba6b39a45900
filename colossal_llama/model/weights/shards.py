"""Weight files of a model that is written: tensors over files of limited size, as a stream."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.model.weights.weight_files import SAFETENSORS_INDEX, write_safetensors
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.checksums import ChecksumBuilder, FileChecksum
from colossal_llama.utils.console import progress_bar

SINGLE_FILE = "model.safetensors"
Blocks = Callable[[str], Iterable[np.ndarray]]
"""Returns the blocks of a tensor by its name, in the dtype in which they are written."""


def distribute(shapes: Mapping[str, TensorShape], max_bytes: int) -> list[list[str]]:
    """Distributes tensors over files in their order; one that is too large has a file of its own.

    >>> distribute({"a": TensorShape((4,), "F32"), "b": TensorShape((2,), "F32")}, 16)
    [['a'], ['b']]
    """
    files: list[list[str]] = []
    size = 0
    for name, shape in shapes.items():
        if not files or size + shape.bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += shape.bytes
    return files


def write_shards(
    shapes: Mapping[str, TensorShape], blocks: Blocks, max_bytes: int, directory: Path
) -> dict[str, FileChecksum]:
    """Writes the tensors of a model, with an index if there are several files.

    Returns:
        The checksum of each weight file by name.
    """
    files = distribute(shapes, max_bytes)
    if len(files) == 1:
        return write_weight_files(shapes, blocks, {SINGLE_FILE: files[0]}, directory)
    named = {f"model-{number:05d}-of-{len(files):05d}.safetensors": names for number, names in enumerate(files, 1)}
    checksums = write_weight_files(shapes, blocks, named, directory)
    index = {
        "metadata": {"total_size": sum(shape.bytes for shape in shapes.values())},
        "weight_map": dict(sorted((name, file) for file, names in named.items() for name in names)),
    }
    write_json(directory / SAFETENSORS_INDEX, index)
    return checksums


def write_weight_files(
    shapes: Mapping[str, TensorShape], blocks: Blocks, files: Mapping[str, list[str]], directory: Path
) -> dict[str, FileChecksum]:
    """Writes files of given tensors, a block of a tensor in memory at a time.

    Args:
        shapes: shapes and dtypes of the tensors as they are written.
        blocks: their content.
        files: names of the tensors by the name of their file.
        directory: where they are written.

    Returns:
        The checksum of each file by name.
    """
    checksums: dict[str, FileChecksum] = {}
    total = sum(shape.bytes for shape in shapes.values())
    with progress_bar(total=total, desc="writing weights", unit="B", unit_scale=True) as bar:
        for file, names in files.items():
            builder, inside = ChecksumBuilder(), {name: shapes[name] for name in names}
            write_safetensors(directory / file, inside, blocks, {"format": "pt"}, bar.update, builder.update)
            checksums[file] = builder.result()
    return checksums
