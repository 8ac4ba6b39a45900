"""System prompt of a format (`--system`, `--system_file`): the sentence before a chat, or none."""

import argparse
from pathlib import Path

from colossal_llama.utils.errors import UserError

DEFAULT_SYSTEM = (
    "A conversation between a human who is curious about many things and an artificial intelligence assistant. The "
    "assistant answers the human's questions helpfully, in detail and politely."
)


def system_text(text: str) -> str:
    """Type of `--system`: a text, or an empty one for no system prompt.

    Raises:
        ArgumentTypeError: it has nothing but blanks.
    """
    if text and not text.strip():
        raise argparse.ArgumentTypeError("the text has nothing but blanks: give '' for no system prompt")
    return text


def given_system(system: str | None, system_file: Path | None) -> str | None:
    """Text of `--system` or `--system_file`, None without either.

    The line ends at the end of a file do not count.

    Raises:
        UserError: both are given; the file cannot be read, is not UTF-8, or has nothing but blanks.
    """
    if system_file is None:
        return system
    if system is not None:
        raise UserError("--system and --system_file both give the system prompt: leave one out")
    try:
        return system_text(system_file.read_text(encoding="utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"--system_file {system_file} is not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"--system_file {system_file} cannot be read: {error.strerror}") from error
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--system_file {system_file}: {error}") from error


def shown_system(system: str) -> str:
    """Names a system prompt in messages."""
    if not system:
        return "no system prompt"
    start = " ".join(system.split())
    return f"the system prompt {start[:40]!r}{' …' if len(start) > 40 else ''}"
