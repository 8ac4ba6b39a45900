"""Answers of a model on disk: appended as they come, continued after a kill, complete at the end.

    OUT/MODEL/evaluation.json               settings, versions, counts, faults, times
    OUT/MODEL/questions.partial-RANK.jsonl  answers of a process, until all are there
    OUT/MODEL/questions.jsonl               all answers, by task, subject and index

An answer that is on disk is not computed again, by however many processes the run is continued.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.evaluation.partial_results import Append, PartialResults, read_results
from colossal_llama.evaluation.questions import Question, Subject
from colossal_llama.utils.atomic_io import atomic_file, write_json
from colossal_llama.utils.checksums import checksum_of
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.fingerprint import fingerprint_bytes
from colossal_llama.utils.json_files import read_json_object

RECORD, ANSWERS = "evaluation.json", "questions.jsonl"
_FORMAT = "colossal_llama.evaluation.1"
_SUBJECTS = "subjects"
"""Entry of the settings: fingerprints of subjects."""
Key = tuple[str, str, int]
"""Task, subject and index of a question."""
_ANOTHER = "give another --output_dir, or remove that directory"


def keys_of(subjects: Iterable[Subject]) -> list[Key]:
    """Keys of all questions that are scored, in the order of the final file."""
    return [
        (subject.task, subject.name, question.index)
        for subject in subjects
        for question in subject.questions
        if question.is_scored
    ]


def subject_fingerprint(subject: Subject) -> str:
    """Fingerprint of what decides a subject's prompts and answers, wherever its file lies."""
    content = {**asdict(subject), "file": "", "notes": ()}
    for question in content["questions"]:
        del question["stem"]  # its prompt holds it; records are older than this field
    return fingerprint_bytes(orjson.dumps(content))


class AnswerRecord:
    """The answers of a model in its directory of `--output_dir`.

    Attributes:
        directory: OUT/MODEL.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], subjects: Sequence[Subject]):
        """Prepares the record; nothing is read or written.

        Args:
            directory: OUT/MODEL.
            settings: all that decides the answers; JSON values.
            subjects: the questions.
        """
        self.directory = directory
        self._settings, self._subjects = dict(settings), subjects
        self._keys = keys_of(subjects)
        self._partials = PartialResults(directory, "questions")

    def problem(self) -> str | None:
        """Explains why answers of this run cannot be kept here; None where they can."""
        if not self.directory.exists():
            return None
        if not self.directory.is_dir():
            return f"{self.directory} is a file, and a directory of answers is to be written there: {_ANOTHER}"
        try:
            record = self.read()
        except UserError as error:
            return str(error)
        if record is None:
            if (self.directory / ANSWERS).exists() or self._partials.paths():
                return f"{self.directory} has answers without {RECORD}, which tells what they answer: {_ANOTHER}"
            return None
        differing = list(_differences(record.get("settings", {}), self._settings))
        if differing:
            shown = "; ".join(truncate_problems(differing, 5))
            return f"{self.directory} holds answers of another run ({shown}): {_ANOTHER}"
        return None

    def read(self) -> dict[str, Any] | None:
        """Content of evaluation.json; None where there is none.

        Raises:
            UserError: it is damaged, or of another format.
        """
        path = self.directory / RECORD
        if not path.exists():
            return None
        record = read_json_object(path, _ANOTHER)
        if record.get("format") != _FORMAT:
            raise UserError(f"{path} is not in the format {_FORMAT}: {_ANOTHER}")
        return record

    def is_complete(self) -> bool:
        """True when all answers are there.

        Raises:
            UserError: the file of a complete evaluation was modified since.
        """
        record = self.read()
        if record is None or not record.get("is_complete"):
            return False
        path = self.directory / ANSWERS
        if not path.is_file() or checksum_of(path).xxh3_128 != record.get("answers_xxh3_128"):
            raise UserError(f"{path} is not what was written (its checksum differs): remove {self.directory}")
        self._partials.remove()  # of a run that was killed in its last moment
        return True

    def begin(self, content: Mapping[str, Any]) -> set[Key]:
        """Writes the record of a run that begins, and gathers the answers of one that was ended.

        Args:
            content: further entries of evaluation.json.

        Returns:
            Keys of the questions that are answered already.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        former = self.read() or {}
        sessions = former.get("sessions", [])
        write_json(self.directory / RECORD, self._record(content, sessions, is_complete=False))
        return set(self._partial_answers())

    def appending(self, rank: int) -> AbstractContextManager[Append]:
        """Opens the file of a process for its answers (`PartialResults.appending`)."""
        return self._partials.appending(rank)

    def complete(self, content: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Writes all answers into one file, and the record of an evaluation that is complete.

        Args:
            content: further entries of evaluation.json.
            session: what this run has done of it.

        Raises:
            UserError: answers are absent.
        """
        answered = self._partial_answers()
        if absent := [key for key in self._keys if key not in answered]:
            task, subject, index = absent[0]
            raise UserError(
                f"{len(absent):,} answers are absent in {self.directory}, the first of {task} {subject} index {index}: "
                "every process must write into the same directory; give one that all hosts share"
            )
        with atomic_file(self.directory / ANSWERS) as file:
            file.writelines(answered[key] + b"\n" for key in self._keys)
        checksum = checksum_of(self.directory / ANSWERS).xxh3_128
        sessions = [*(self.read() or {}).get("sessions", []), dict(session)]
        record = self._record({**content, "answers_xxh3_128": checksum}, sessions, is_complete=True)
        write_json(self.directory / RECORD, record)
        self._partials.remove()

    def answers(self) -> dict[Key, dict[str, Any]]:
        """Answers of a complete evaluation."""
        return {_key(answer): answer for _, answer in read_results([self.directory / ANSWERS])}

    def _record(
        self, content: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], *, is_complete: bool
    ) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "is_complete": is_complete,
            **content,
            "settings": self._settings,
            "sessions": list(sessions),
        }

    def _partial_answers(self) -> dict[Key, bytes]:
        """Lines of this run's questions in the partial files."""
        wanted = set(self._keys)
        found = ((_key(answer), line) for line, answer in read_results(self._partials.paths()))
        return {key: line for key, line in found if key in wanted}


def _key(answer: Mapping[str, Any]) -> Key:
    return answer.get("task", ""), answer.get("subject", ""), answer.get("index", -1)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Phrases on the settings that differ; on the subjects only where the options are the same."""
    differing = [name for name in dict.fromkeys((*there, *here)) if there.get(name) != here.get(name)]
    options = [name for name in differing if name != _SUBJECTS]
    for name in options:
        if name in ("model", "tokenizer"):
            yield f"the {name} is another"
        else:
            yield f"--{name} {_shown(there.get(name))} there, {_shown(here.get(name))} now"
    if options or not differing:
        return
    former, current = there.get(_SUBJECTS, {}), here[_SUBJECTS]
    for subject in dict.fromkeys((*former, *current)):
        if subject not in current:
            yield f"{subject} is not asked for now"
        elif subject not in former:
            yield f"{subject} was not asked for there"
        elif former[subject] != current[subject]:
            yield f"questions or examples of {subject} are others"


def _shown(value: Any) -> str:
    if value in (None, []):
        return "is not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def faulty(subjects: Iterable[Subject]) -> Iterator[tuple[Subject, Question]]:
    """Questions whose files have a fault."""
    return ((subject, question) for subject in subjects for question in subject.questions if question.fault)
