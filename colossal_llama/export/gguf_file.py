"""GGUF file of an exported directory: its name and size, and the call of its writer."""

from pathlib import Path
from typing import Any

from colossal_llama.export.gguf import write_gguf

_BYTES_PER_VALUE = {"f16": 2.0, "q8_0": 34 / 32}
"""q8_0 stores 32 values as a half-precision scale and 32 bytes."""


def gguf_name(output_dir: Path, outtype: str) -> str:
    """Name of the file, as llama.cpp's users write it.

    >>> gguf_name(Path("export/zh"), "q8_0")
    'zh-Q8_0.gguf'
    """
    return f"{output_dir.resolve().name}-{outtype.upper()}.gguf"


def gguf_bytes(values: int, outtype: str) -> int:
    """Approximate size of the file of a model with this number of values."""
    return int(values * _BYTES_PER_VALUE[outtype])


def add_gguf(directory: Path, name: str, outtype: str) -> dict[str, Any]:
    """Writes the file into a complete model directory; returns what its writer reports."""
    return {"file": name, "type": outtype, **write_gguf(directory, directory / name, outtype)}
