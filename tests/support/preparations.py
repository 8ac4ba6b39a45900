"""A preparation: its arguments as a script would parse them, and what it leaves."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossal_llama.dataset.prepare.arguments import ARGUMENTS, Kind, PrepareArguments
from colossal_llama.utils.arguments import from_namespace


def preparation(
    kind: Kind, input_dirs: Sequence[Path], tokenizer_dir: Path, output_dir: Path, **options: Any
) -> PrepareArguments:
    """Arguments with one worker and the defaults of all options that are not given."""
    paths = {"data_input_dirs": tuple(input_dirs), "tokenizer_dir": tokenizer_dir, "data_output_dirs": output_dir}
    return from_namespace(ARGUMENTS[kind], Namespace(**{"num_workers": 1, **paths, **options}))


def content(directory: Path) -> dict[str, bytes]:
    """What a preparation leaves, by name, without the record of how long it took."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "last_run.json" and not path.name.startswith(".lock")
    }
