"""Names of models: a directory, or a repository of a hub. Imports no hub's package.

    models/llama                    a directory, as long as it exists or looks like one
    ORG/NAME, ORG/NAME@REVISION     a repository of the Hugging Face hub
    modelscope:ORG/NAME[@REVISION]  a repository of ModelScope

A revision is a branch, a tag or a commit. A name without an organisation (`gpt2`) is a directory:
it could be a misspelt one as well.
"""

import argparse
import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from colossal_llama.utils.cli import directory_problem

NAME_FORMS = "a directory, or ORG/NAME[@REVISION] of the Hugging Face hub, or modelscope:ORG/NAME[@REVISION]"
"""Values of an option that takes both, for its help."""

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<hub>modelscope:)?(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[^\s@~^:?*\\[\]]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelName:
    """The name of a repository of a hub.

    Attributes:
        repository: ORG/NAME.
        revision: a branch, a tag or a commit; None for the hub's default branch.
        hub: where it is.
    """

    repository: str
    revision: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"

    def __str__(self) -> str:
        prefix = "modelscope:" if self.hub == "modelscope" else ""
        return f"{prefix}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def commit(self) -> str | None:
        """The revision where it is a whole commit hash, which always means the same files."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def at(self, revision: str | None) -> "ModelName":
        """The same repository at another revision; None for the default branch."""
        return replace(self, revision=revision)


def path_or_name(text: str) -> Path | ModelName:
    """Returns the name of a repository, or the path that the text is otherwise (argparse `type=`).

    A directory that exists wins. What begins in an existing directory is a path, too, unless a
    revision is given.

    >>> path_or_name("org/model@v1.0"), path_or_name("./model")
    (ModelName(repository='org/model', revision='v1.0', hub='huggingface'), PosixPath('model'))
    """
    path = Path(text)
    match = _NAME.fullmatch(text)
    if match is None or path.exists() or path.is_symlink():
        return path
    if not match["hub"] and not match["revision"] and path.parent.is_dir():
        return path
    if any(mark in match["repository"] for mark in ("..", "--")):
        return path
    return ModelName(match["repository"], match["revision"], "modelscope" if match["hub"] else "huggingface")


def directory_or_name(text: str) -> Path | ModelName:
    """Returns the path of an existing directory, or the name of a repository (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: the text is neither; a directory of a similar name is named.
    """
    found = path_or_name(text)
    if isinstance(found, Path) and (reason := missing_directory_problem(found)):
        raise argparse.ArgumentTypeError(f"{text} {reason}")
    return found


def missing_directory_problem(path: Path) -> str | None:
    """Explains why a path is not a directory, and what may be meant; None where it is one."""
    reason = directory_problem(path)
    if reason is None or path.exists():
        return reason
    if similar := similar_directories(path):
        reason += f": did you mean the directory {' or '.join(map(str, similar))}?"
    text = str(path)
    if text.startswith("modelscope:"):
        return f"{reason} (a model of ModelScope is named modelscope:ORG/NAME)"
    if _NAME.fullmatch(text) and path.parent.is_dir():
        return f"{reason} ({path.parent} is a directory here; a model of the Hugging Face hub: {text}@main)"
    if re.fullmatch(_PART, text):
        return f"{reason} (a model of a hub is named with its organisation: ORG/{text})"
    return reason


def similar_directories(path: Path) -> list[Path]:
    """Directories next to a path that does not exist whose names are similar to its name."""
    if not path.parent.is_dir():
        return []
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    except PermissionError:
        return []
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(path.name.casefold(), folded, n=2)
    return [path.parent / folded[name] for name in close]
