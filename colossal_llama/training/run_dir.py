"""Output directories of a run: locked, cleared of interrupted writes, earlier results archived."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.checkpoint.archive import (
    archive,
    archive_foreign_writes,
    archive_later_checkpoints,
    entry_written_by_a_run,
    is_name_of_a_run,
)
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL
from colossal_llama.training.distributed import consensus, watchdog
from colossal_llama.utils.atomic_io import clean_up_interrupted_writes
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.file_lock import directory_lock


@contextmanager
def locked_run_dirs(arguments: TrainingArguments) -> Iterator[None]:
    """Locks `--save_dir` and `--tensorboard_dir` on rank 0 until the run ends. A collective.

    A benchmark does not lock `--save_dir`, a dry run locks neither: they write nothing there.

    Raises:
        UserError: another run holds the lock, or the directory cannot be written.
    """
    save_dir, logs = arguments.checkpoint.save_dir, arguments.records.tensorboard_dir
    is_benchmark, is_dry_run = arguments.benchmark.benchmark, arguments.dry_run.dry_run
    with ExitStack() as locks:
        if not is_benchmark and not is_dry_run:
            with consensus.raise_on_all_ranks():
                if is_rank_zero():
                    _lock("--save_dir", save_dir, locks)
            consensus.check_shared(save_dir, "--save_dir")
        if not is_dry_run and (is_benchmark or logs.resolve() != save_dir.resolve()):
            with consensus.raise_on_all_ranks():
                if is_rank_zero():
                    _lock("--tensorboard_dir", logs, locks)
        yield


def _lock(option: str, directory: Path, locks: ExitStack) -> None:
    try:
        locks.enter_context(directory_lock(directory))
        if option == "--save_dir":
            _clear_interrupted_writes(directory)
    except BlockingIOError as error:
        raise UserError(
            f"another run is writing into {directory} ({error.filename}): wait for it to end, or give another {option}"
        ) from None
    except OSError as error:
        raise UserError(f"{option} {directory} cannot be written: {error.strerror}") from None


def _clear_interrupted_writes(save_dir: Path) -> None:
    """Deletes half-written checkpoints of a killed run, and prints its failure report."""
    for path in archive_foreign_writes(save_dir):
        log_rank_zero(f"a directory in the place of an interrupted write holds other files: it is kept as {path}")
    for name in clean_up_interrupted_writes(save_dir, is_name_of_a_run):
        log_rank_zero(f"{save_dir / name} was incomplete when an earlier run ended: it is deleted")
    for line in watchdog.take_failure_report(save_dir):
        log_rank_zero(f"failure report of an earlier run: {line}")


def archive_earlier_results(save_dir: Path, kept_steps: int, start_paths: Sequence[Path | None]) -> None:
    """Archives checkpoints and final models of earlier runs that this run would replace.

    Args:
        save_dir: of this run.
        kept_steps: checkpoints up to this step belong to this run; 0: it is a fresh run.
        start_paths: model and adapter that this run starts from; they are not archived.
    """
    for path in archive_later_checkpoints(save_dir, kept_steps):
        log_rank_zero(f"a checkpoint of an earlier run is archived as {path}")
    if kept_steps:
        return
    used = {entry_written_by_a_run(path, save_dir) for path in start_paths if path is not None}
    for name in {MODEL, MERGED_MODEL} - used:
        if (save_dir / name).exists():
            log_rank_zero(f"the finished model of an earlier run is archived as {archive(save_dir / name)}")
