"""Csv files of questions with the choices A to D, in the forms of MMLU, CMMLU and C-Eval.

    Which planet is the largest?,Mars,Venus,Jupiter,Earth,C             no header
    question,choice0,choice1,choice2,choice3,answer                     answer 0 to 3
    ,Question,A,B,C,D,Answer                                            an index column
    id,question,A,B,C,D,answer,explanation

A header may be in any case and order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.evaluation.questions import Example, Question
from colossal_llama.evaluation.tasks.directories import file_of_subject
from colossal_llama.evaluation.tasks.file_rows import CsvRow, read_csv
from colossal_llama.evaluation.tasks.task import SubjectFile
from colossal_llama.utils.errors import UserError

LETTERS = ("A", "B", "C", "D")
_NUMBERED = ("choice0", "choice1", "choice2", "choice3")
_LETTERED = ("a", "b", "c", "d")
_OTHER_NAMES = {"input": "question", "target": "answer"}
"""Columns of copies of MMLU."""
_CELLS = 6

Wording = Callable[[str, Sequence[str]], str]
"""Makes the text that ends in `Answer: ` from a question and its four options."""


@dataclass(frozen=True)
class _Columns:
    """Places of the cells in a row; `is_numbered`: answers are 0 to 3, too; `answer` may lack."""

    question: int
    options: tuple[int, ...]
    answer: int | None
    cells: int
    is_numbered: bool = False


def read_questions(path: Path, wording: Wording, unanswered: str = "") -> tuple[Question, ...]:
    """Reads the questions of a file.

    Args:
        path: of the file.
        wording: of a question.
        unanswered: what to do with a file that has no answers, for the message.

    Raises:
        UserError: the file is of another shape, or holds no question or no answer.
    """
    columns, rows = _columns_and_rows(path)
    if columns.answer is None:
        raise UserError(f"{path} has no column of answers: {unanswered or 'copy the file again'}")
    if not rows:
        raise UserError(f"{path} holds no question below its header: copy it again")
    questions = tuple(_question(index, row, columns, wording) for index, row in enumerate(rows))
    if not any(question.is_scored for question in questions):
        first = questions[0]
        remedy = f": {unanswered}" if unanswered else ""
        raise UserError(f"{path} holds no question that could be scored ({first.place}: {first.fault}){remedy}")
    return questions


def read_examples(
    file: SubjectFile, subject: str, wording: Wording, shots: int
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Reads the first `shots` development examples of a subject, or fewer if its file has fewer.

    Returns:
        The examples, and notes that name what is wrong with them.

    Raises:
        UserError: the file is missing or cannot be read, or one of the examples has no answer.
    """
    if not shots:
        return (), ()
    path = file_of_subject(file.directory, "dev", (f"{subject}_dev", subject))
    if path is None:
        wanted = file.directory / "dev" / f"{subject}_dev.csv"
        raise UserError(f"{wanted} does not exist, which has the examples: copy it there, or give --shots 0")
    examples = read_questions(path, wording)[:shots]
    for example in examples:
        if not example.is_scored:
            raise UserError(f"{path}, {example.place}: {example.fault}: an example needs its answer; copy it again")
    notes = [f"an example in {path}, {example.place}: {example.fault}" for example in examples if example.fault]
    return tuple(Example(example.text, example.label) for example in examples), tuple(notes)


def _columns_and_rows(path: Path) -> tuple[_Columns, list[CsvRow]]:
    """Recognises the form of a file by its first row; the rows are without a header."""
    rows = read_csv(path)
    names = [cell.strip().casefold() for cell in rows[0].cells]
    first = [_OTHER_NAMES.get(name, name) for name in names]
    for options in (_NUMBERED, _LETTERED):
        if {"question", *options} <= set(first):
            if {"e", "choice4"} & set(first):
                raise UserError(f"{path} has more than four choices: give it in --tasks, as a file of your own")
            answer = first.index("answer") if "answer" in first else None
            places = tuple(first.index(name) for name in options)
            return _Columns(first.index("question"), places, answer, len(first), options == _NUMBERED), rows[1:]
    widths = [len(row.cells) for row in rows if row.cells] or [0]
    width = max(set(widths), key=lambda width: (widths.count(width), width == _CELLS))
    start = width - _CELLS
    is_headerless = start == 0 or (start == 1 and all(row.cells[0].strip().isdigit() for row in rows if any(row.cells)))
    answers = [row.cells[-1].strip() for row in rows if row.cells and len(row.cells) == width]
    if not is_headerless or not any(answer.upper() in LETTERS for answer in answers):
        raise UserError(
            f"{path}:{rows[0].line} is no csv of questions with four choices: a row is the question, its options A to "
            "D and the letter of the answer, or the header names question, A to D (or choice0 to choice3) and answer"
        )
    return _Columns(start, tuple(range(start + 1, start + 5)), start + 5, width), rows


def _question(index: int, row: CsvRow, columns: _Columns, wording: Wording) -> Question:
    place = f"line {row.line}"
    if len(row.cells) != columns.cells:
        what = row.problem or f"{len(row.cells)} cells, {columns.cells} are needed: is a quote or a comma missing?"
        return Question(index, "", "", LETTERS, fault=what, is_scored=False, place=place)
    text = row.cells[columns.question]
    options = tuple(row.cells[number] for number in columns.options)
    answer = "" if columns.answer is None else row.cells[columns.answer]
    label = _label(answer, columns.is_numbered)
    faults = [row.problem] if row.problem else []
    faults += [] if text.strip() else ["the question is empty"]
    faults += [
        f"option {letter} is empty" for letter, option in zip(LETTERS, options, strict=True) if not option.strip()
    ]
    if label is None:
        faults.append(f"the answer is {answer!r}, no letter of A to D" if answer.strip() else "it has no answer")
    return Question(
        index,
        wording(text, options),
        label or "",
        LETTERS,
        options,
        "; ".join(faults) or None,
        label is not None,
        place,
        text,
    )


def _label(answer: str, is_numbered: bool) -> str | None:
    answer = answer.strip().upper()
    if answer in LETTERS:
        return answer
    number = answer.removesuffix(".0")
    return LETTERS[int(number)] if is_numbered and number in ("0", "1", "2", "3") else None
