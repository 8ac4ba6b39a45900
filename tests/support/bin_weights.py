"""Weights as PyTorch's .bin files, as older models have them: transformers 5 writes none."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def convert_to_bin(directory: Path) -> None:
    """Rewrites the safetensors of a model directory, and their index, as .bin files."""
    index = directory / "model.safetensors.index.json"
    for path in sorted(directory.glob("*.safetensors")):
        torch.save(load_file(path), directory / _bin_name(path.name))
        path.unlink()
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {name: _bin_name(file) for name, file in content["weight_map"].items()}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()


def _bin_name(name: str) -> str:
    return f"pytorch_{name.removesuffix('.safetensors')}.bin"
