"""Files of a repository: those that a model or a tokenizer needs, and those that are still missing.

Weights are safetensors alone: pickled ones (`.bin`, `.pt`) run code when they are loaded. Code is
not needed either, since it is never run.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import ModelName
from colossal_llama.utils.json_files import read_json_object

RECORD = ".hub_source.json"
"""Hidden, so that it is no part of the model (`fingerprint_directory`, checksums)."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model")
_TOKENIZER = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "expansion_report.json",
    "init_report.json",
    "new_rows.json",
    *VOCABULARIES,
)
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CHECKSUMS = "checksums.json"
_MODEL = ("generation_config.json", _ADAPTER_CONFIG, _CHECKSUMS)
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx")
_BLOCK_BYTES = 1 << 20


class Needed(Enum):
    """Files that a script needs of a repository."""

    TOKENIZER = "the tokenizer"
    CONFIGURATION = "configuration and tokenizer"
    MODEL = "the model"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as its hub describes it.

    Attributes:
        size_bytes: None where the hub does not say.
        sha256: of large files; None where the hub does not say.
        git_sha1: of small files, which git keeps itself: of the length and the content.
    """

    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    def problem_in(self, path: Path, whole_content: bool = False) -> str | None:
        """Explains why a local copy is not the file; None where it is.

        Args:
            path: of the copy.
            whole_content: compares the content as well, not the size alone.
        """
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            return f"has {size:,} bytes of {self.size_bytes:,}"
        digest, wanted = (hashlib.sha256(), self.sha256) if self.sha256 else (hashlib.sha1(), self.git_sha1)
        if not whole_content or wanted is None:
            return None
        if not self.sha256:
            digest.update(b"blob %d\0" % size)
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return None if digest.hexdigest() == wanted else "has another content than the hub's (its checksum differs)"


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one revision.

    Attributes:
        name: with the exact revision: the commit, where the hub has one.
        asked: the revision that was asked for; None for the default branch.
        files: by name, those of the top directory alone.
    """

    name: ModelName
    asked: str | None
    files: Mapping[str, RemoteFile]

    def write(self, directory: Path) -> None:
        """Records in a directory, which may be new, where its files come from."""
        directory.mkdir(parents=True, exist_ok=True)
        source = {"hub": self.name.hub, "repository": self.name.repository, "revision": self.name.revision}
        files = {name: asdict(file) for name, file in sorted(self.files.items())}
        write_json(directory / RECORD, {**source, "asked": self.asked, "files": files})


def read_listing(directory: Path) -> Listing | None:
    """Reads where a directory's files come from; None where no readable record is."""
    try:
        record: dict[str, Any] = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        files = {name: RemoteFile(**facts) for name, facts in record["files"].items()}
        name = ModelName(record["repository"], record["revision"], record["hub"])
        return Listing(name, record["asked"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def settings_files(names: Iterable[str], needed: Needed) -> list[str]:
    """Chooses the small files: configuration, tokenizer, and the index of the weights."""
    available = set(names)
    chosen = [*_TOKENIZER, *(_MODEL if needed is not Needed.TOKENIZER else ())]
    if needed is Needed.MODEL and _CHECKSUMS in available:
        chosen.append("README.md")  # it is among the files that the checksums name
    if needed is Needed.MODEL and _SINGLE not in available and _ADAPTER_CONFIG not in available:
        chosen.append(_INDEX)
    return [name for name in chosen if name in available]


def weight_files(names: Iterable[str], directory: Path, source: str) -> list[str]:
    """Chooses the weight files, those of an adapter where the repository is one.

    Args:
        names: of the repository's files.
        directory: holds the index of the weights already, if there is one.
        source: for messages.

    Raises:
        UserError: there are no safetensors, or the index names other files.
    """
    available = set(names)
    if problem := no_weights_problem(available, source):
        raise UserError(problem)
    if _ADAPTER_CONFIG in available:
        chosen = [_ADAPTER_WEIGHTS]
    elif _INDEX in available and _SINGLE not in available:
        chosen = _shards(directory)
    else:
        chosen = [_SINGLE]
    absent = [name for name in chosen if name not in available]
    if absent or not chosen:
        raise UserError(
            f"{source}: {_INDEX} names {', '.join(map(repr, absent[:3])) or 'no file'}, which the repository does "
            "not have: tell its owner, or name another revision"
        )
    return chosen


def no_weights_problem(names: Iterable[str], source: str) -> str | None:
    """Explains why a repository has no weights that can be used; None where it has."""
    available = set(names)
    if available & ({_ADAPTER_WEIGHTS} if _ADAPTER_CONFIG in available else {_SINGLE, _INDEX}):
        return None
    pickled = sorted(name for name in available if name.endswith(_PICKLED))
    if not pickled:
        return f"{source} holds no model weights: neither {_SINGLE} nor {_INDEX} is there"
    return (
        f"{source} has no safetensors, only {', '.join(pickled[:3])}{' …' if pickled[3:] else ''}: weights in other "
        "formats are not downloaded, since pickled ones run code when they are loaded. Look for a revision with "
        "safetensors (on the hub: refs/pr/N), or convert the weights where you trust them, and give the directory"
    )


def missing_files(directory: Path, needed: Needed, listing: Listing | None = None) -> list[str]:
    """Compares a local copy with the listing of its repository, by names and sizes.

    A copy without a listing was made by another program: it must hold what any model has.

    Args:
        directory: of the copy.
        needed: decides which files.
        listing: of the repository; None: as recorded in the copy.

    Returns:
        A phrase for each file that is missing or not whole.
    """
    listing = listing or read_listing(directory)
    if listing is None:
        return _missing_of_any_model(directory, needed)
    files, source = listing.files, str(listing.name)
    problems = _problems(directory, files, settings_files(files, needed))
    if needed is Needed.MODEL and not problems:
        try:
            problems = _problems(directory, files, weight_files(files, directory, source))
        except UserError as error:
            problems = error.problems
    return problems


def _problems(directory: Path, files: Mapping[str, RemoteFile], names: Iterable[str]) -> list[str]:
    found = ((name, files[name].problem_in(directory / name)) for name in names)
    return [f"{name} {problem}" for name, problem in found if problem]


def _missing_of_any_model(directory: Path, needed: Needed) -> list[str]:
    is_there: Callable[[str], bool] = lambda name: (directory / name).is_file()  # noqa: E731
    if is_there(_ADAPTER_CONFIG) and needed is Needed.MODEL:
        return [] if is_there(_ADAPTER_WEIGHTS) else [f"{_ADAPTER_WEIGHTS} is missing"]
    wanted = ["tokenizer_config.json", *([] if needed is Needed.TOKENIZER else ["config.json"])]
    problems = [f"{name} is missing" for name in wanted if not is_there(name)]
    if not any(map(is_there, VOCABULARIES)):
        problems.append(f"{' or '.join(VOCABULARIES)} is missing")
    if needed is not Needed.MODEL or is_there(_SINGLE):
        return problems
    if not is_there(_INDEX):
        return [*problems, f"{_SINGLE} or {_INDEX} is missing"]
    return [*problems, *(f"{name} is missing" for name in _shards(directory) if not is_there(name))]


def _shards(directory: Path) -> list[str]:
    """The weight files that an index names."""
    weight_map = read_json_object(directory / _INDEX, "name another revision").get("weight_map")
    return sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
