"""Input paths of a command line: several by commas or as several arguments, patterns, URLs.

    --data_input_dirs corpus/zh,corpus/en.jsonl.gz 'more/*.parquet' s3://bucket/data

A path that holds a comma and exists is taken as it is. Imports neither torch nor datasets.
"""

import argparse
import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.readers.remote import local_path_of, url_problem, without_secrets

_URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
_MOST_COMMAS_OF_A_NAME = 8  # where it stands among others: each further one is a question to the system
_LEAST_SIMILARITY = 0.6


class GatherPaths(argparse.Action):
    """Puts the paths of all words, and of all occurrences of the option, into one list.

    Its option has `nargs="+"` and one of this module's functions as `type`.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Adds the paths of one occurrence; a refused one leaves the default."""
        if values is self.default:
            setattr(namespace, self.dest, values)
            return
        earlier = getattr(namespace, self.dest)
        gathered = [path for paths in values for path in paths]
        setattr(namespace, self.dest, [*earlier, *gathered] if isinstance(earlier, list) else gathered)


def input_paths(text: str) -> list[Path | str]:
    """Returns existing files and directories, and URLs as they are given (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: names all that do not exist, each with a name that is close, and
            the packages that URLs need.
    """
    paths = split_paths(text)
    checked = ((url_problem(path) if isinstance(path, str) else missing_path_problem(path)) for path in paths)
    problems = [problem for problem in checked if problem]
    if problems:
        raise argparse.ArgumentTypeError("; ".join(problems))
    return paths


def local_paths(text: str) -> list[Path]:
    """Returns paths of this host, which need not exist (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: one is a URL, or nothing matches a pattern.
    """
    paths = split_paths(text)
    for url in paths:
        if isinstance(url, str):
            raise argparse.ArgumentTypeError(
                f"{without_secrets(url)} is a URL: copy its files to this host, and give their directory"
            )
    return [Path(path) for path in paths]


def split_paths(text: str) -> list[Path | str]:
    """Splits a word at its commas, expands patterns, and removes nothing but blanks around names.

    Raises:
        argparse.ArgumentTypeError: the word names nothing, or nothing matches a pattern.
    """
    paths = [path for name in _names(text) for path in _expanded(name)]
    if not paths:
        raise argparse.ArgumentTypeError("the name is empty" if not text.strip() else f"{text!r} names nothing")
    return paths


def is_url(text: str) -> bool:
    """True for `s3://…`, `file://…` and the like."""
    return _URL.match(text) is not None


def _names(text: str) -> Iterator[str]:
    """Names between commas; of those that exist when joined by commas, the longest."""
    if _exists(text):
        yield text
        return
    parts, start = text.split(","), 0
    while start < len(parts):
        ends = range(min(len(parts), start + 1 + _MOST_COMMAS_OF_A_NAME), start + 1, -1)
        end = next((end for end in ends if _exists(",".join(parts[start:end]).strip())), start + 1)
        if name := ",".join(parts[start:end]).strip():
            yield name
        start = end


def _expanded(name: str) -> list[Path | str]:
    if is_url(name):
        local = local_path_of(name)
        return [name] if local is None else _expanded(str(local))
    if _exists(name):
        return [Path(name)]
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if _exists(path) or not glob.has_magic(str(path)):
        return [path]
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - absolute patterns, too
    if not found:
        raise argparse.ArgumentTypeError(f"nothing matches {name}")
    return outermost(sorted(map(Path, found)))  # `**` matches directories and what lies in them


def outermost(paths: Sequence[Path | str]) -> list[Path | str]:
    """Leaves out paths that are given before or lie below others, whose files are read anyway."""
    kept = {path: None if isinstance(path, str) else path.resolve() for path in paths}
    resolved = set(kept.values())
    return [path for path, real in kept.items() if real is None or resolved.isdisjoint(real.parents)]


def _exists(path: str | Path) -> bool:
    try:
        return bool(str(path)) and os.path.lexists(path)
    except ValueError:  # a null byte
        return False


def missing_path_problem(path: Path) -> str | None:
    """Explains why a path is neither a file nor a directory; None where it is one."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path} is a link to {path.readlink()}, which does not exist"
        close = _close_path(path)
        return f"{path} does not exist" + (f" (is {close} meant?)" if close else "")
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}"
    if path.is_dir() or path.is_file():
        return None
    return f"{path} is neither a file nor a directory: write what it gives into a file"


def no_directory_problem(path: Path) -> str | None:
    """Explains why a path is not a directory; None where it is one."""
    return missing_path_problem(path) or (None if path.is_dir() else f"{path} is a file, not a directory")


def _close_path(path: Path) -> Path | None:
    """The path with its first missing name replaced by the closest that is there."""
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return None
    missing, *rest = path.parts[len(parent.parts) :]
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        return None
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(missing.lower(), by_lower, 1, _LEAST_SIMILARITY)
    if not close:
        return None
    found = parent / by_lower[close[0]]
    return found.joinpath(*rest) if found.joinpath(*rest).exists() else found
