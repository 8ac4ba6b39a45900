"""Argument parsing that reports every problem at once.

Imports neither torch nor transformers, so that `--help` is instant.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from colossal_llama.utils.atomic_io import temporary_path
from colossal_llama.utils.distributed_env import is_multi_host, speaks_for_host

_TRUE = {"true", "t", "yes", "y", "on", "1"}
_FALSE = {"false", "f", "no", "n", "off", "0"}
PROGRAM = "colossal-llama"
"""The console command, whose sub-commands are in colossal_llama/commands.py."""
LARGEST_INTEGER = 2**63 - 1
"""The largest that libraries take, where an option has no limit of its own."""
MAX_SEED = 2**32 - 1
"""The largest seed that NumPy takes, and with it ColossalAI's launch."""


class InvalidArguments(SystemExit):
    """An exit with code 2 because of invalid arguments.

    Attributes:
        problems: a message for each.
    """

    def __init__(self, problems: list[str]):
        super().__init__(2)
        self.problems = problems


class CollectingArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that collects problems instead of stopping at the first.

    These are values that do not convert, values outside `choices`, missing and unknown arguments,
    and what the caller adds with `problem(...)`. `finish()` prints all of them at once, and exits
    with code 2 if there is any.

    As a sub-command of `colossal-llama` the usage line shows that command instead of `prog`.
    """

    def __init__(self, **settings: Any):
        if sys.argv[0].startswith(f"{PROGRAM} "):
            settings["prog"] = sys.argv[0]
        settings.setdefault("formatter_class", HelpFormatter)
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)
        self._problems: list[str] = []
        self._is_refused = False  # a value of the option that is being parsed

    def problem(self, text: str) -> None:
        """Adds a message: what is wrong, why, what to do next."""
        self._problems.append(text)

    def finish(self) -> None:
        """Prints all problems and exits with code 2, or returns when there is none.

        On several hosts nothing is printed here: the ranks first exchange their problems, so that
        each host prints those of all (training/distributed/consensus.py).

        Raises:
            InvalidArguments: there are problems.
        """
        if not self._problems:
            return
        if not is_multi_host() and speaks_for_host():
            for text in self._problems:
                print(f"error: {text}", file=sys.stderr)
            print(f"'{self.prog} --help' lists the arguments.", file=sys.stderr)
        sys.stderr.flush()
        raise InvalidArguments(self._problems)

    def error(self, message: str) -> NoReturn:
        """Reports an error that ends the parsing; argparse calls this method.

        Raises:
            InvalidArguments: always.
        """
        self.problem(message)
        self.finish()
        raise AssertionError("finish() exits when there is a problem")

    def _print_message(self, message: str, file: Any = None) -> None:  # argparse's own passes over a full disk
        try:
            (file or sys.stderr).write(message)
        except OSError as error:
            error.filename = "standard output"  # what is written to stderr has no errors (prepare_streams)
            raise

    # argparse converts and checks each value in these methods and gives up at the first error; here
    # parsing goes on, with the default in place of the option's values.
    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        self._is_refused = False
        values = super()._get_values(action, arg_strings)
        return action.default if self._is_refused else values

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            if not is_decodable(arg_string):
                encoding = sys.getfilesystemencoding()
                raise argparse.ArgumentError(
                    action, f"{arg_string!r} contains bytes that are not {encoding}: convert it (a name: rename it)"
                )
            value = super()._get_value(action, arg_string)
            if problem := _path_problem(value, arg_string):
                raise argparse.ArgumentError(action, problem)
        except argparse.ArgumentError as error:
            return self._refuse(str(error), action)
        except OSError as error:  # what the system says of a name that is too long, a loop of links …
            return self._refuse(str(argparse.ArgumentError(action, f"{arg_string}: {error.strerror}")), action)
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            if not self._is_refused:
                super()._check_value(action, value)
        except argparse.ArgumentError as error:
            self._refuse(str(error), action)

    def _refuse(self, problem: str, action: argparse.Action) -> Any:
        self.problem(problem)
        self._is_refused = True
        return action.default


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help on lines of 120 columns, with each default that is worth printing."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=120)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:  # a table keeps its lines
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, (), argparse.SUPPRESS) or "default" in (action.help or ""):
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def parse_bool(text: str) -> bool:
    """Converts `True`, `false`, `yes`, `0` and the like to a boolean (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: the text is none of these.
    """
    if text.strip().lower() in _TRUE:
        return True
    if text.strip().lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def is_decodable(given: str) -> bool:
    """True when no character stands for a byte that could not be decoded (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in given)


def usable_name(text: str) -> str:
    """Returns the name of a file or directory that need not exist, or of a hub model.

    Raises:
        argparse.ArgumentTypeError: it is empty, or the system does not take it.
    """
    if problem := _path_problem(Path(text), text):
        raise argparse.ArgumentTypeError(problem)
    return text


def _path_problem(value: Any, text: str) -> str | None:
    """Explains why the system takes no such name; None for other values than paths.

    Raises:
        OSError: the system's own answer: too long, a loop of links, no permission …
    """
    if not isinstance(value, Path):
        return None
    if not text.strip():
        return "the name is empty"
    # Output is written under a temporary name first, which is longer.
    for path in (value, temporary_path(value)) if value.name else (value,):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    return None


def creatable_directory(text: str) -> Path:
    """Returns the path of a directory that can be created (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: the nearest existing parent is a file, or is not writable.
    """
    path = Path(text)
    parents = path.absolute().parents
    parent = next((parent for parent in parents if parent.exists() or parent.is_symlink()), path)
    if not parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be created: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be created: no permission to write in {parent}")
    return path


def number_in_range(
    kind: type, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> Callable:
    """Returns a converter to `kind` that also checks the range, for argparse's `type=`.

    Args:
        kind: `int` or `float`.
        minimum: the smallest value allowed.
        maximum: the largest value allowed; None: any number, or `LARGEST_INTEGER`.
        above: the value must be strictly greater.

    Returns:
        A function from text to number; it raises `argparse.ArgumentTypeError`.
    """
    if maximum is None and kind is int:
        maximum = LARGEST_INTEGER

    def convert(text: str) -> float:
        """Returns the finite number in the range that the text is."""
        try:
            value = kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if minimum is not None and value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"{text} is more than {maximum}")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{text} is not greater than {above}")
        return value

    return convert


def existing_directory(text: str) -> Path:
    """Returns the path of an existing directory (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: it is a file, or does not exist.
    """
    path = Path(text)
    if reason := directory_problem(path):
        raise argparse.ArgumentTypeError(f"{text} {reason}")
    return path


def directory_problem(path: Path) -> str | None:
    """Explains why a path is not a directory; None where it is one."""
    if path.is_dir():
        return None
    return "is a file, not a directory" if path.exists() else "does not exist"


def existing_file(text: str) -> Path:
    """Returns the path of an existing file (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: it is a directory, or does not exist.
    """
    path = Path(text)
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "a device or a pipe"
        reason = f"is {kind}, not a file" if path.exists() else "does not exist"
        raise argparse.ArgumentTypeError(f"{text} {reason}")
    return path
