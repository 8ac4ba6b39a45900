r"""GSM8K: school mathematics with worked answers (Cobbe et al. 2021); an answer is generated.

    {"question": "…", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\n#### 24"}

The examples are the first of `train.jsonl`, not those of other evaluators.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.evaluation.questions import NUMBER, Example, Question, Subject
from colossal_llama.evaluation.tasks.directories import folders_below
from colossal_llama.evaluation.tasks.file_rows import read_json_lines
from colossal_llama.evaluation.tasks.task import SubjectFile, Task
from colossal_llama.utils.errors import UserError

_CALCULATION = re.compile(r"<<[^<>]*>>")
_MARK = "####"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NEW_TOKENS = 256


def find(directory: Path) -> list[SubjectFile]:
    """Lists the test file."""
    for folder in folders_below(directory, levels=2):
        if (folder / "test.jsonl").is_file():
            return [SubjectFile("test", folder / "test.jsonl", folder)]
    return []


def read(file: SubjectFile, shots: int) -> Subject:
    """Reads the questions, and the first questions of the train file as examples.

    Raises:
        UserError: a file cannot be read, or no question has a number as its answer.
    """
    questions = _questions(file.path)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    if shots:
        train = file.directory / "train.jsonl"
        if not train.is_file():
            raise UserError(f"{train} does not exist, which has the examples: copy it there, or give --shots 0")
        examples, lines = _examples(train, shots)
        notes = (f"the examples are the first {len(lines)} of {train}: lines {lines[0]} to {lines[-1]}",)
    return Subject(
        task="gsm8k",
        name=file.name,
        group="",
        file=str(file.path),
        opening="",
        examples=examples,
        questions=questions,
        scored_by=NUMBER,
        max_new_tokens=_NEW_TOKENS,
        stop_texts=("\n\n", "Question:"),
        notes=notes,
    )


def _questions(path: Path) -> tuple[Question, ...]:
    questions = tuple(_question(index, line, row) for index, (line, row) in enumerate(read_json_lines(path)))
    if not any(question.is_scored for question in questions):
        first = questions[0]
        raise UserError(f"{path} has no question that could be scored ({first.place}: {first.fault})")
    return questions


def _question(index: int, line: int, row: dict | str) -> Question:
    fault = row if isinstance(row, str) else _fault(row)
    if isinstance(row, str) or fault is not None:
        return Question(index, "", "", fault=fault, is_scored=False, place=f"line {line}")
    question, label = row["question"], _number(row["answer"])
    return Question(index, _wording(question), label, place=f"line {line}", stem=question)


def _fault(row: dict) -> str | None:
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f'"{name}" is no text'
    return None if _number(row["answer"]) else f"its answer has no number behind {_MARK}"


def _wording(question: str) -> str:
    return f"Question: {question}\nLet's think step by step\n"


def _number(answer: str) -> str:
    """The number behind the mark without thousands separators; "" if there is none."""
    _, mark, number = answer.rpartition(_MARK)
    number = number.strip().replace(",", "").replace("$", "")
    return number if mark and _NUMBER.fullmatch(number) else ""


def _examples(path: Path, shots: int) -> tuple[tuple[Example, ...], Sequence[int]]:
    """The first whole questions of a file with their worked answers, and their lines.

    The calculator's notes (`<<48/2=24>>`) are taken out; `The answer is 24` ends an answer, as the
    generated ones are read.
    """
    examples: list[Example] = []
    lines: list[int] = []
    for line, row in read_json_lines(path):
        if len(examples) == shots:
            break
        if isinstance(row, dict) and _fault(row) is None:
            lines_of_work = _CALCULATION.sub("", row["answer"].rpartition(_MARK)[0]).splitlines()
            work = "\n".join(line for line in lines_of_work if line.strip())  # an answer ends at a blank line
            examples.append(Example(_wording(row["question"]), f"{work}\nThe answer is {_number(row['answer'])}"))
            lines.append(line)
    if not examples:
        raise UserError(f"{path} has no question with a worked answer: copy it again, or give --shots 0")
    return tuple(examples), lines


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    folders=("gsm8k", "gsm", "gradeschoolmath"),
    shots=8,
    layout="test.jsonl and train.jsonl, also below grade_school_math/data/",
    find=find,
    read=read,
)
