"""GAOKAO-Bench: objective questions of Chinese entrance exams (Zhang et al. 2023); seven files.

    {"example": [{"question": "…", "answer": ["C"], …}]}

They lie in `Data/Objective_Questions/2010-2022_History_MCQs.json`, in older copies in
`data/Multiple-choice_Questions/` or as `data/2010-2022全国卷选择题/2010_2022历史全国卷选择题.json`.
"""

import re
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.evaluation.questions import FIRST_TOKEN, Question, Subject
from colossal_llama.evaluation.tasks.directories import files_of, folders_below
from colossal_llama.evaluation.tasks.file_rows import read_bytes
from colossal_llama.evaluation.tasks.task import SubjectFile, Task
from colossal_llama.readers.record import encoding_problem
from colossal_llama.utils.errors import UserError

_SCORED = re.compile(
    r"\d{4}[-_]\d{4}(_(English|Biology|Chemistry|History|Math_I|Math_II|Political_Science)_MCQs"
    r"|年?(英语全国卷单项选择|(生物|化学|历史|理数|文数|政治)卷?全国卷选择题))",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\d{4}[-_]\d{4}.*(MCQs|选择题)", re.IGNORECASE)
_CHOICE = re.compile(r"([A-Z])[.．]")
_OPTION = re.compile(r"([A-Z])\s*[.．]")
"""In other questions than the first, a blank may stand before the dot."""
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def find(directory: Path) -> list[SubjectFile]:
    """Lists the files of the nearest folder with one of the seven, else of one with others."""
    for wanted in (_SCORED, _OTHER):
        for folder in folders_below(directory, levels=3):
            paths = files_of(folder, ".json")
            if any(wanted.fullmatch(path.stem) for path in paths):
                return [SubjectFile(path.stem, path, directory, bool(_SCORED.fullmatch(path.stem))) for path in paths]
    return []


def read(file: SubjectFile, shots: int) -> Subject:
    """Reads a file; there are no examples.

    Raises:
        UserError: the file cannot be read, or has no question with one letter as its answer.
    """
    records = _records(file.path)
    letters = _choices(records[0])
    questions = tuple(_question(index, record, letters) for index, record in enumerate(records))
    if not any(question.is_scored for question in questions):
        first = questions[0]
        raise UserError(f"{file.path} has no question that could be scored ({first.place}: {first.fault})")
    return Subject(
        task="gaokao",
        name=file.name,
        group="",
        file=str(file.path),
        opening="",
        examples=(),
        questions=questions,
        scored_by=FIRST_TOKEN,
    )


def _records(path: Path) -> list[Any]:
    content = read_bytes(path)
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {encoding_problem(content) or error}: copy it again") from None
    records = parsed.get("example") if isinstance(parsed, dict) else parsed
    if not isinstance(records, list) or not records:
        raise UserError(f'{path} is no file of GAOKAO-Bench: a list "example" of questions is needed')
    return records


def _choices(record: Any) -> tuple[str, ...]:
    """The letters that the first question marks as `A.` or `A．`; A to D if it marks none."""
    found = set(_CHOICE.findall(_text(record)))
    number = next((place for place, letter in enumerate(_ALPHABET) if letter not in found), len(_ALPHABET))
    return tuple(_ALPHABET[: number if number > 1 else 4])


def _text(record: Any) -> str:
    question = record.get("question") if isinstance(record, dict) else None
    return question if isinstance(question, str) else ""


def _question(index: int, record: Any, letters: tuple[str, ...]) -> Question:
    place = f"index {index}"
    text = _text(record).strip()
    if not text:
        return Question(index, "", "", letters, fault="it has no question", is_scored=False, place=place)
    found = _OPTION.findall(text)
    faults = [f"option {letter} is missing" for letter in letters if letter not in found]
    label, fault = _label(record.get("answer"), letters)
    faults += [fault] if fault else []
    return Question(
        index,
        f"{text}\n答案：",
        label or "",
        letters,
        fault="; ".join(faults) or None,
        is_scored=label is not None,
        place=place,
        stem=text,
    )


def _label(answer: Any, letters: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The letter that is right, None if no single one is, and what is wrong with the answer."""
    answers = answer if isinstance(answer, list) else [answer]
    if len(answers) > 1:
        return None, f"it has {len(answers)} answers, one letter is needed"
    letter = answers[0].strip().upper() if answers and isinstance(answers[0], str) else ""
    if letter in letters:
        return letter, None
    return (
        None,
        f"its answer is {letter}, not one letter of {letters[0]} to {letters[-1]}" if letter else "it has no answer",
    )


TASK = Task(
    name="gaokao",
    title="GAOKAO-Bench",
    folders=("gaokaobench", "gaokao"),
    shots=0,
    layout="Objective_Questions/2010-2022_History_MCQs.json and others, also below Data/",
    find=find,
    read=read,
)
