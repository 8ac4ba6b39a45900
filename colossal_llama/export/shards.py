"""Weight files of an export: tensors over files of limited size, as a stream."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from colossal_llama.export.conversion import ConversionCounts, converted_blocks
from colossal_llama.export.weights import Weights
from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.model.weights.weight_files import SAFETENSORS_INDEX, write_safetensors
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.checksums import ChecksumBuilder, FileChecksum
from colossal_llama.utils.console import progress_bar

SINGLE_FILE = "model.safetensors"


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
    weights: Weights, targets: Mapping[str, TensorShape], max_bytes: int, directory: Path, counts: ConversionCounts
) -> dict[str, FileChecksum]:
    """Writes all tensors in their new dtype, with an index if there are several files.

    Returns:
        The checksum of each weight file by name.
    """
    files = distribute(targets, max_bytes)
    if len(files) == 1:
        return write_weight_files(weights, targets, {SINGLE_FILE: files[0]}, directory, counts)
    named = {f"model-{number:05d}-of-{len(files):05d}.safetensors": names for number, names in enumerate(files, 1)}
    checksums = write_weight_files(weights, targets, named, directory, counts)
    index = {
        "metadata": {"total_size": sum(shape.bytes for shape in targets.values())},
        "weight_map": dict(sorted((name, file) for file, names in named.items() for name in names)),
    }
    write_json(directory / SAFETENSORS_INDEX, index)
    return checksums


def write_weight_files(
    weights: Weights,
    targets: Mapping[str, TensorShape],
    files: Mapping[str, list[str]],
    directory: Path,
    counts: ConversionCounts,
) -> dict[str, FileChecksum]:
    """Writes files of given tensors, a block of a tensor in memory at a time.

    Args:
        weights: the source.
        targets: shapes and dtypes as they are written.
        files: names of the tensors by the name of their file.
        directory: where they are written.
        counts: receives what the conversion changes.

    Returns:
        The checksum of each file by name.
    """

    def blocks(name: str) -> Iterator[np.ndarray]:
        return converted_blocks(name, weights.read(name), targets[name], counts)

    checksums: dict[str, FileChecksum] = {}
    total = sum(shape.bytes for shape in targets.values())
    with progress_bar(total=total, desc="writing weights", unit="B", unit_scale=True) as bar:
        for file, names in files.items():
            builder, inside = ChecksumBuilder(), {name: targets[name] for name in names}
            write_safetensors(directory / file, inside, blocks, {"format": "pt"}, bar.update, builder.update)
            checksums[file] = builder.result()
    return checksums
