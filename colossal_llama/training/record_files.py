"""Names of a run's record files, and whose file is there already. Imports no torch.

No file is replaced, renamed or shortened that no run of this suite wrote.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

METRICS_FILE, BENCHMARK_FILE = "metrics.jsonl", "benchmark.jsonl"
WRITER_FILE = "run.json"
"""Names the `--save_dir` of the run whose metrics a directory holds."""
NONFINITE_STEPS_FILE = "bad_steps.jsonl"
"""File in the save directory: one line a non-finite step."""
EVENTS = "events.out.tfevents.*"
"""TensorBoard's files."""
RUN_KEYS = frozenset(("command", "arguments", "world_size"))
"""Of the `--config_file` of a run."""
_DRY_RUN_KEYS = frozenset(("arguments", "memory_bytes"))


def dry_run_file(config_file: Path) -> Path:
    """Path of a dry run's record: next to the configuration file of the run itself."""
    return config_file.with_name(f"{config_file.name}.dry_run.json")


def config_file_problem(config_file: Path, dry_run: bool) -> str | None:
    """Explains why `--config_file`, or a dry run's record, cannot be written; None where it can."""
    file, keys = (dry_run_file(config_file), _DRY_RUN_KEYS) if dry_run else (config_file, RUN_KEYS)
    if not _is_there(file) or file.is_dir():  # the caller names a directory
        return None
    if not file.is_symlink() and file.is_file():
        try:
            if keys <= read_json_object(file).keys():
                return None
        except UserError:
            pass  # not JSON: somebody else's
    return f"--config_file: {file} exists and is no record of a {'dry run' if dry_run else 'run'}: name another"


def foreign_records(tensorboard_dir: Path, save_dir: Path) -> Iterator[str]:
    """Problems of files with the names of a run's records that no run has written."""
    lines = [("--tensorboard_dir", tensorboard_dir / name) for name in (METRICS_FILE, BENCHMARK_FILE)]
    lines.append(("--save_dir", save_dir / NONFINITE_STEPS_FILE))
    foreign = [(option, file) for option, file in lines if _is_there(file) and not _holds_steps(file)]
    writer = tensorboard_dir / WRITER_FILE
    if _is_there(writer) and not _names_a_save_dir(writer):
        foreign.append(("--tensorboard_dir", writer))
    for option, file in foreign:
        yield f"{option}: {file} exists, and no run wrote it: give another {option}, or move it away"
    metrics = [path for path in (writer, tensorboard_dir / METRICS_FILE) if _is_there(path)]
    events = sorted(tensorboard_dir.glob(EVENTS)) if not metrics else []
    if events:
        yield (
            f"--tensorboard_dir: {events[0]} exists without {METRICS_FILE}, so no run wrote it: give another "
            "--tensorboard_dir"
        )


def clashing_names(config_file: Path, tensorboard_dir: Path, save_dir: Path) -> Iterator[str]:
    """Problems of a `--config_file` that has the name of another file of the run."""
    names = [tensorboard_dir / name for name in (METRICS_FILE, BENCHMARK_FILE, WRITER_FILE)]
    for file in (*names, save_dir / NONFINITE_STEPS_FILE):
        if config_file.resolve() == file.resolve():
            yield f"--config_file: {file} is the name of another record of the run: name another"


def file_among_inputs(config_file: Path, inputs: Iterable[Path]) -> Iterator[str]:
    """Problems of a `--config_file` in a directory of the model or of a part, which others read."""
    for directory in inputs:
        if config_file.resolve().parent == directory.resolve():
            yield f"--config_file: {config_file} lies in {directory}, which the run only reads: name another"


def _is_there(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def _holds_steps(file: Path) -> bool:
    """True for a file whose first line is that of a step; also for an empty file."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with file.open("rb") as lines:
            line = lines.readline(1 << 20)
        return not line or "step" in json.loads(line)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _names_a_save_dir(file: Path) -> bool:
    try:
        return not file.is_symlink() and isinstance(read_json_object(file).get("save_dir"), str)
    except UserError:
        return False
