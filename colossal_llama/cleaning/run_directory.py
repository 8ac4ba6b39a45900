"""Manages the output directory: whether a run in it may be resumed, whose files it holds, its end.

DIR/documents/part-00000.jsonl   the corpus
DIR/dropped/REASON.jsonl         dropped documents
DIR/rejected.jsonl               rows that are no documents
DIR/cleaning.json                report; written last: the cleaning is complete
DIR/work/run.json                identity of an incomplete cleaning
DIR/.lock                        locked while a run writes here

A run that is refused leaves nothing behind, and no run deletes what another program wrote.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colossal_llama.cleaning.decontamination.decontaminate import HITS_FILE
from colossal_llama.cleaning.output_files import DOCUMENTS, DROPPED, FIGURE, LAST_RUN, REPORT, WORK
from colossal_llama.dataset.prepare.output_dir import differences, modification_times
from colossal_llama.readers.listing import InputFile
from colossal_llama.utils.atomic_io import remove_abandoned_files, temporary_path
from colossal_llama.utils.checked_json import DamagedJsonError, read_checked, with_checksum, write_checked
from colossal_llama.utils.errors import UserError, truncate_problems

State = Literal["new", "incomplete", "complete"]
RUN_RECORD = "run.json"
_REPORT_BEGINNING, _RECORD_BEGINNING = b'{\n  "format": "colossal_llama.cleaning', b'{\n  "identity": {'
QUESTIONS = "benchmark_questions"
"""Directory under work/ of the index of `--decontaminate`."""
_DROPPED_BEGINNING = b'{"reason":"'
_SHAPE = {"identity": {"input_files": [{"name": str, "size_bytes": int}]}}
_WORK = (QUESTIONS, "chunks", "quality", "parts", "signatures", "decisions", RUN_RECORD)
"""Names under work/; run.json is removed last: it identifies the rest."""
_OUTPUTS = {
    DOCUMENTS: re.compile(r"part-\d{5,}\.jsonl"),
    DROPPED: re.compile(r"[^.].*\.jsonl"),
    WORK: re.compile("|".join(map(re.escape, _WORK))),
}
_FILES = (FIGURE, HITS_FILE, "rejected.jsonl", LAST_RUN, REPORT)
_TEMPORARY = re.compile(r"\..+\.tmp-.+-\d+")


@dataclass(frozen=True)
class RunDirectory:
    """An output directory.

    Attributes:
        path: of the directory.
    """

    path: Path

    @property
    def work(self) -> Path:
        """Directory of the intermediates."""
        return self.path / WORK

    @property
    def documents(self) -> Path:
        """Directory of the corpus."""
        return self.path / DOCUMENTS

    @property
    def has_finished_chunks(self) -> bool:
        """True where a run has finished some of its work."""
        return any((self.work / "chunks").glob("chunk-*.json"))

    def open(self, identity: dict, files: Sequence[InputFile], overwrite: bool) -> State:
        """Prepares the directory for a run and returns its state.

        Args:
            identity: everything that decides the bytes of the output.
            files: of the input. Their modification times are recorded: a file whose time has not
                changed need not be read again.
            overwrite: removes what earlier runs wrote.

        Raises:
            UserError: the directory holds a cleaning of another identity, or foreign files.
        """
        records: list[tuple[Path, bytes, State]] = [
            (self.path / REPORT, _REPORT_BEGINNING, "complete"),
            (self.work / RUN_RECORD, _RECORD_BEGINNING, "incomplete"),
        ]
        known = [record for record in records if _begins(record[0], record[1])]
        self._refuse_foreign(is_ours=bool(known))
        if overwrite and known:
            self.remove_outputs()
            known = []
        for record, _, state in known:
            self._check_identity(_recorded(record, state), identity, state)
            return state
        self.work.mkdir(exist_ok=True)
        return self._record_run(identity, files)

    def _refuse_foreign(self, is_ours: bool) -> None:
        """Refuses a directory in which somebody else's files have names that a run writes.

        Raises:
            UserError: there are such files; they are named.
        """
        found = list(self._foreign(is_ours))
        if found:
            messages = [
                f"{self.path} holds {name}, which no cleaning wrote: give another --output_dir, or move it away"
                for name in found
            ]
            raise UserError(truncate_problems(messages, 10))

    def _foreign(self, is_ours: bool) -> Iterator[str]:
        if not is_ours:
            yield from (name for name in _FILES if os.path.lexists(self.path / name))
        for name, pattern in _OUTPUTS.items():
            folder = self.path / name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                yield name
                continue
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                is_own = (
                    is_ours and pattern.fullmatch(path.name) and (name != DROPPED or _begins(path, _DROPPED_BEGINNING))
                )
                if not (is_own or _TEMPORARY.fullmatch(path.name)):
                    yield f"{name}/{path.name}"

    def _check_identity(self, recorded: dict, identity: dict, state: State) -> None:
        found = list(differences("", recorded, identity))
        if found:
            verb = "was cleaned" if state == "complete" else "was begun"
            advice = "--overwrite starts afresh, or give another --output_dir:"
            raise UserError([f"{self.path} {verb} with other arguments or input; {advice}", *(f"  {x}" for x in found)])

    def _record_run(self, identity: dict, files: Sequence[InputFile]) -> State:
        """Records the identity of the run; of several jobs that start at once, one does."""
        record = self.work / RUN_RECORD
        candidate = temporary_path(record)
        write_checked(candidate, with_checksum({"identity": identity, "modified_ns": modification_times(files)}))
        try:
            os.link(candidate, record)
        except FileExistsError:
            self._check_identity(_recorded(record, "incomplete"), identity, "incomplete")
            return "incomplete"
        finally:
            candidate.unlink(missing_ok=True)
        return "new"

    def files_with_changed_times(self, files: Sequence[InputFile]) -> set[str]:
        """Names of the files whose modification time has changed since the run began."""
        for record in (self.path / LAST_RUN, self.work / RUN_RECORD):
            with suppress(FileNotFoundError, DamagedJsonError):
                known = read_checked(record, {"modified_ns": dict})["modified_ns"]
                times = modification_times(files)
                return {name for name, time in times.items() if time is None or known.get(name) != time}
        return {file.name for file in files}

    def recorded_readings(self) -> list:
        """Number of rows and SHA-256 of each range of each chunk of a complete cleaning."""
        with suppress(FileNotFoundError, DamagedJsonError):
            return read_checked(self.path / LAST_RUN, {"pieces": list})["pieces"]
        return []

    def refuse_changed(self, names: Sequence[str]) -> None:
        """Refuses to resume with changed input.

        Args:
            names: of the input files whose content has changed.

        Raises:
            UserError: there is one.
        """
        if names:
            advice = "--overwrite starts afresh, or give another --output_dir:"
            listed = truncate_problems([f"  input file {name}: its content has changed" for name in names], 10)
            raise UserError([f"{self.path} was begun with other input; {advice}", *listed])

    def remove_outputs(self) -> None:
        """Removes what earlier runs wrote; the report first: the rest is no cleaning without it."""
        (self.path / REPORT).unlink(missing_ok=True)
        for name in (DOCUMENTS, DROPPED):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        self.remove_work()

    def remove_abandoned(self) -> None:
        """Removes what killed runs left of files that they wrote; no other run writes meanwhile."""
        remove_abandoned_files(self.path, _FILES)

    def remove_work(self) -> None:
        """Removes the intermediates, the record of the run last."""
        for name in (*_WORK[:-1], RUN_RECORD):
            path = self.work / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)


def _begins(path: Path, beginning: bytes) -> bool:
    """True for a file that begins as a cleaning begins it."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def _recorded(record: Path, state: State) -> dict:
    """The identity that a record names.

    Raises:
        UserError: it is damaged.
    """
    shape = {"run": _SHAPE} if state == "complete" else _SHAPE
    try:
        content = read_checked(record, shape)
    except DamagedJsonError as error:
        raise UserError(f"{error}; --overwrite starts afresh, or give another --output_dir") from error
    return (content["run"] if state == "complete" else content)["identity"]
