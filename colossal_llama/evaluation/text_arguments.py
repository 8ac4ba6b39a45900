"""Options of `--texts` and `--questions`."""

from dataclasses import dataclass
from pathlib import Path

from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.utils.arguments import option
from colossal_llama.utils.cli import existing_file


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """Texts whose bits per byte are measured."""

    texts: tuple[Path | str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        metavar="PATH",
        help="files of texts, and directories that are searched for them: bits per byte by category",
    )


@dataclass(frozen=True, kw_only=True)
class AnswerArguments:
    """Questions that all models answer."""

    questions: Path | None = option(
        type=existing_file, metavar="FILE.jsonl", help="questions that all models answer, side by side"
    )
