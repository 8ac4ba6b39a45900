"""Models to evaluate: found and checked before one is loaded, named apart, and loaded."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from colossal_llama.evaluation.arguments import DTYPES
from colossal_llama.model.config_file import read_model_config
from colossal_llama.model.device import select_device
from colossal_llama.model.pretrained import base_model_of, load_for_inference
from colossal_llama.model.weights.adapter_files import is_adapter
from colossal_llama.model.weights.weight_files import tensor_shapes
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.utils.checksums import checksum_of
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes
from colossal_llama.utils.hub.fetch import option_directory
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import ModelName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_FILES_OF_A_MODEL = (*_WEIGHT_SUFFIXES, ".json", ".model", ".jinja")
_SAID_BY_THE_PARENT = ("modelling", "modelling_merged", "adapter")
"""Names of directories that do not tell models from each other."""
_OUTPUTS = ("table", "texts", "answers")
"""Files of `--output_dir` have these names."""
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that can be loaded.

    Attributes:
        name: of its directory in `--output_dir`, and in the tables.
        directory: of the model or adapter.
        base: directory of its weights: an adapter's base model, else the same.
        weights: number of parameters.
        fingerprint: of the contents of its files.
        tokenizer: fingerprint of its tokenizer.
    """

    name: str
    directory: Path
    base: Path
    weights: int
    fingerprint: str
    tokenizer: str

    def identity(self) -> dict[str, str]:
        """Fingerprints by which records tell it from other models."""
        return {"model": self.fingerprint, "tokenizer": self.tokenizer}


def find_models(path: Path | ModelName, compare: Sequence[Path | ModelName], max_length: int) -> list[EvaluatedModel]:
    """Finds the model and those to compare it with.

    Args:
        path: the model.
        compare: the others.
        max_length: tokens that each must take, examples and answers included.

    Raises:
        UserError: names all that cannot be evaluated.
    """
    sources = [("--model_path", path), *(("--compare", source) for source in compare)]
    names = directory_names([source for _, source in sources])
    found, problems = [], []
    for (option, source), name in zip(sources, names, strict=True):
        try:
            found.append(_find(option_directory(option, source, Needed.MODEL), name, max_length))
        except UserError as error:
            problems += [problem if problem.startswith("--") else f"{option}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    return found


def directory_names(sources: Iterable[Path | ModelName]) -> list[str]:
    """Names for the models' directories: as short as tells them apart, the first come first.

    >>> directory_names([Path("/a/m"), Path("/b/m"), Path("/runs/sft/modelling")])
    ['m', 'b-m', 'sft']
    """
    names: list[str] = []
    taken = {f"{name}.{ending}" for name in _OUTPUTS for ending in ("md", "json", "jsonl", "png")}
    for source in sources:
        for name in _possible_names(source):
            if name.casefold() not in taken:
                break
        taken.add(name.casefold())
        names.append(name)
    return names


def _possible_names(source: Path | ModelName) -> Iterable[str]:
    """Names of a model, each longer than the one before; there is always one more."""
    if isinstance(source, ModelName):
        parts = source.repository.split("/")
    else:  # the name that was given, of a link too
        path = source.resolve() if source.name in ("", "..") or ".." in source.parts else source.absolute()
        parts = list(path.parts[1:])
    while len(parts) > 1 and parts[-1] in _SAID_BY_THE_PARENT:
        parts.pop()
    fewest = 2 if parts and parts[-1].startswith("epoch-") else 1  # a checkpoint, and its run
    for count in range(fewest, max(len(parts), fewest) + 1):
        yield "-".join(parts[-count:]) or "model"
    number = 2
    while True:
        yield f"{'-'.join(parts[-fewest:]) or 'model'}_{number}"
        number += 1


def _find(directory: Path, name: str, max_length: int) -> EvaluatedModel:
    base = base_model_of(directory) if is_adapter(directory) else directory
    positions = read_model_config(base).get("max_position_embeddings")
    if positions is not None and positions < max_length:
        raise UserError(f"{base} has {positions:,} positions: give --max_length {positions}, or less")
    weights = sum(math.prod(shape) for shape in tensor_shapes(base).values())
    tokenizer = tokenizer_fingerprint(_tokenizer_in(directory, base))
    fingerprint = _fingerprint(dict.fromkeys((directory, base)))
    return EvaluatedModel(name, directory, base, weights, fingerprint, tokenizer)


def _tokenizer_in(directory: Path, base: Path) -> "PreTrainedTokenizerFast":
    has_tokenizer = any((directory / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
    return load_tokenizer(directory if has_tokenizer else base)


def tokenizer_of(model: EvaluatedModel) -> "PreTrainedTokenizerFast":
    """Loads a model's tokenizer alone: an adapter's own, if it has one."""
    return _tokenizer_in(model.directory, model.base)


def _fingerprint(directories: Iterable[Path]) -> str:
    """Fingerprint of the names and contents of a model's files, weights included."""
    files = [
        path
        for directory in directories
        for path in sorted(directory.iterdir())
        if path.suffix in _FILES_OF_A_MODEL and not path.name.startswith(".") and path.is_file()
    ]
    with ThreadPoolExecutor(4) as readers:
        checksums = readers.map(checksum_of, files)
        named = zip(files, checksums, strict=True)
        return fingerprint_bytes(*(f"{path.name} {checksum.xxh3_128}".encode() for path, checksum in named))


def device_of(name: str | None, local_rank: int) -> torch.device:
    """Returns the device of a process.

    Args:
        name: `--device`; None for a GPU of its own, or the CPU where there is none.
        local_rank: number of the process on its host.

    Raises:
        UserError: it cannot be used, or two processes would share a GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name is None and gpus:
        shows_each_its_own = gpus == 1 and "SLURM_STEP_ID" in os.environ
        if processes > gpus and not shows_each_its_own:
            raise UserError(f"this host has {gpus} GPUs for {processes} processes: start at most {gpus} on each host")
        name = f"cuda:{local_rank % gpus}"
    elif name is not None and name != "cpu" and processes > 1:
        raise UserError(f"--device {name} would be shared by {processes} processes: leave it out, each takes its own")
    device = select_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def check_memory(model: EvaluatedModel, device: torch.device, dtype: str) -> None:
    """Refuses a model whose weights do not fit into the device's free memory.

    Args:
        model: it.
        device: of this process.
        dtype: of `DTYPES`.

    Raises:
        UserError: they do not fit.
    """
    needed = model.weights * _BYTES[dtype]
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], str(device)
        remedy = "evaluate.py puts a whole model on each GPU: use one with more memory"
    elif device.type == "cpu":
        free, where = _free_host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "this host"
        remedy = "use a host with more memory, or fewer processes"
    else:
        return
    if needed > free:
        raise UserError(
            f"the weights of {model.directory} take {needed / 2**30:,.1f} GiB in {dtype}, and {where} has "
            f"{free / 2**30:,.1f} GiB free{' for each process' if device.type == 'cpu' else ''}: {remedy}"
            f"{', or --dtype bf16' if dtype == 'fp32' else ''}"
        )


def _free_host_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    (free_kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return free_kib * 1024


def load(
    model: EvaluatedModel, device: torch.device, dtype: str, say: Callable[[str], Any]
) -> tuple[Any, "PreTrainedTokenizerFast"]:
    """Loads a model in evaluation mode, and its tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    return load_for_inference(model.directory, DTYPES[dtype], device, say)
