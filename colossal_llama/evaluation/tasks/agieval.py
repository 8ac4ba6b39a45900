"""AGIEval: entrance exams in English and Chinese (Zhong et al. 2023); eleven sets are scored.

    {"passage": …, "question": …, "options": ["(A)…", "(B)…", "(C)…", "(D)…"], "label": "B"}

That is a line of `v1/sat-en.jsonl`. `few_shot_prompts.csv` has a column for each set, and the rows
`sample 1`, `explanation 1`, `sample 2` and so on.
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.evaluation.questions import LETTER_OR_FIRST_TOKEN, Example, Question, Subject
from colossal_llama.evaluation.tasks.directories import files_of, folders_below
from colossal_llama.evaluation.tasks.file_rows import read_csv, read_json_lines
from colossal_llama.evaluation.tasks.task import SubjectFile, Task
from colossal_llama.readers.record import encoding_problem
from colossal_llama.utils.errors import UserError

_SCORED_ENGLISH = {"logiqa-en", "sat-math", "sat-en", "sat-en-without-passage", "gaokao-english"}
_SCORED_CHINESE = {"logiqa-zh"} | {
    f"gaokao-{subject}" for subject in ("chinese", "geography", "history", "biology", "chemistry")
}
SCORED = _SCORED_ENGLISH | _SCORED_CHINESE
"""The sets of four choices, which the table is over: 3,337 questions."""
_ENGLISH = _SCORED_ENGLISH | {"lsat-ar", "lsat-lr", "lsat-rc", "aqua-rat", "math"}
_UNSCORED = {"lsat-ar", "lsat-lr", "lsat-rc", "aqua-rat", "math", "jec-qa-kd", "jec-qa-ca"} | {
    f"gaokao-{subject}" for subject in ("physics", "mathqa", "mathcloze")
}
_LETTERS = "ABCDEFGHIJ"
_OPTION = re.compile(r"\s*(?:\(([A-J])\)|([A-J])(?=[\s.．。、:：]))")
_WITHOUT_PASSAGE = "-without-passage"
_PROMPTS = "few_shot_prompts.csv"
_NEW_TOKENS = 32


@dataclass(frozen=True)
class _Language:
    """The words of the prompts of a language."""

    name: str
    opening: str
    question: str
    choose: str
    answer: str


_EN = _Language(
    "English",
    "Here are the answers for the problems in the exam.",
    "Question: ",
    "Choose from the following options: ",
    "Answer: ",
)
_ZH = _Language("Chinese", "以下是考试中各个问题的答案。", "问题：", "从以下选项中选择：", "答案：")


def find(directory: Path) -> list[SubjectFile]:
    """Lists the sets of the nearest folder that holds one of the scored ones: v1 before v1_1.

    Where none holds one, the nearest with another set.
    """
    for wanted in (SCORED, _UNSCORED):
        for folder in folders_below(directory, levels=2):
            paths = files_of(folder, ".jsonl")
            if any(path.stem in wanted for path in paths):
                return [SubjectFile(path.stem, path, directory, path.stem in SCORED) for path in paths]
    return []


def read(file: SubjectFile, shots: int) -> Subject:
    """Reads a set and its examples.

    Raises:
        UserError: the file or its examples cannot be read, or it is not multiple choice.
    """
    language = _EN if file.name in _ENGLISH else _ZH
    rows = read_json_lines(file.path)
    letters = _letters([row for _, row in rows if isinstance(row, dict)], file)
    questions = tuple(_question(index, line, row, letters, language) for index, (line, row) in enumerate(rows))
    if not any(question.is_scored for question in questions):
        first = questions[0]
        raise UserError(f"{file.path} has no question that could be scored ({first.place}: {first.fault})")
    return Subject(
        task="agieval",
        name=file.name,
        group=language.name,
        file=str(file.path),
        opening=language.opening,
        examples=_examples(file, language, shots) if shots else (),
        questions=questions,
        scored_by=LETTER_OR_FIRST_TOKEN,
        max_new_tokens=_NEW_TOKENS,
    )


def _letters(records: list[dict], file: SubjectFile) -> tuple[str, ...]:
    """The choices: A to D for the scored sets, else as many as most questions have options."""
    counts = Counter(len(record["options"]) for record in records if isinstance(record.get("options"), list))
    number = max(counts, key=lambda count: counts[count], default=0)
    if not 2 <= number <= len(_LETTERS):
        raise UserError(f"{file.path} is not multiple choice (its questions have no options): it is not scored here")
    return tuple(_LETTERS[: 4 if file.name in SCORED else number])


def _question(index: int, line: int, row: dict | str, letters: tuple[str, ...], language: _Language) -> Question:
    place = f"line {line}"
    if isinstance(row, str) or not isinstance(row.get("question"), str):
        fault = row if isinstance(row, str) else '"question" is no text'
        return Question(index, "", "", letters, fault=fault, is_scored=False, place=place)
    options = _texts(row.get("options"))
    passage = row["passage"] if isinstance(row.get("passage"), str) else ""
    text = f"{passage}\n\n" if passage else ""
    text += f"{language.question}{row['question']} {language.choose}{' '.join(options)}\n{language.answer}"
    label, label_fault = _label(row.get("label"), letters)
    faults = [] if row["question"].strip() else ["the question is empty"]
    faults += [] if isinstance(row.get("passage"), str | None) else ["the passage is no text, and left out"]
    faults += _option_faults(options, letters)
    faults += [label_fault] if label_fault else []
    # What follows the letter's mark in an option.
    bare = tuple(_OPTION.sub("", option, count=1).strip() for option in options)
    stem = f"{passage}\n\n{row['question']}" if passage else row["question"]
    return Question(index, text, label or "", letters, bare, "; ".join(faults) or None, label is not None, place, stem)


def _texts(options: Any) -> list[str]:
    return [str(option) for option in options if option is not None] if isinstance(options, list) else []


def _option_faults(options: list[str], letters: tuple[str, ...]) -> list[str]:
    if not options:
        return ["it has no options"]
    found = [_OPTION.match(option) for option in options]
    marks = [match and (match[1] or match[2]) for match in found]
    empty = [
        f"option {mark} is empty"
        for option, match, mark in zip(options, found, marks, strict=True)
        if match and not option[match.end() :].strip(" .．。、:：")
    ]
    if not all(marks):
        count = [f"{len(options)} options, {len(letters)} are needed"] if len(options) != len(letters) else []
        unmarked = [f"option {place} has no letter" for place, mark in enumerate(marks, start=1) if not mark]
        return empty + count + (unmarked if any(marks) else [])
    missing = [f"option {letter} is missing" for letter in letters if letter not in marks]
    doubled = [f"{count} options are {mark}" for mark, count in Counter(marks).items() if count > 1]
    further = [f"there is an option {mark}" for mark in dict.fromkeys(marks) if mark not in letters]
    return empty + missing + doubled + further


def _label(label: Any, letters: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The letter that is right, None if no single one is, and what is wrong with the label."""
    single = label[0] if isinstance(label, list) and len(label) == 1 else label
    letter = single.strip().upper() if isinstance(single, str) else None
    if letter in letters:
        return letter, "the label is a list of one letter" if isinstance(label, list) else None
    if label in (None, "", []):
        return None, "it has no label"
    shown = ", ".join(map(str, label)) if isinstance(label, list) else str(label)
    return None, f"its label is {shown}, not one letter of {letters[0]} to {letters[-1]}"


def _examples(file: SubjectFile, language: _Language, shots: int) -> tuple[Example, ...]:
    """The first examples of a set; `sat-en-without-passage` has those of sat-en, without passages.

    Where an example has no passage, the space that would follow it stays, as published.
    """
    path = _prompts_file(file)
    rows = read_csv(path)
    column = file.name.removesuffix(_WITHOUT_PASSAGE)
    if column not in rows[0].cells:
        raise UserError(f"{path} has no column {column}, which has the examples of {file.name}: give --shots 0")
    place = rows[0].cells.index(column)
    samples = [row for row in rows[1:] if row.cells and row.cells[0].casefold().startswith("sample")]
    cells = [(row.line, row.cells[place]) for row in samples or rows[1::2] if len(row.cells) > place]
    examples = []
    for line, cell in [(line, cell) for line, cell in cells if cell.strip()][:shots]:
        parsed = _parsed(path, line, column, cell)
        passage = "" if file.name.endswith(_WITHOUT_PASSAGE) else parsed.get("passage") or ""
        options = " ".join(_texts(parsed.get("options")))
        text = f"{language.question}{passage} {parsed['question']}\n{language.choose}{options}\n{language.answer}"
        examples.append(Example(text, _example_label(parsed.get("label"))))
    if not examples:
        raise UserError(f"{path} has no example in its column {column}: copy it again, or give --shots 0")
    return tuple(examples)


def _example_label(label: Any) -> str:
    """The answer of an example: a letter, or several as the file's list shows them."""
    return label if isinstance(label, str) else str(label)


def _prompts_file(file: SubjectFile) -> Path:
    for folder in [*file.path.parents[:3], *folders_below(file.directory, levels=2)]:
        if (folder / _PROMPTS).is_file():
            return folder / _PROMPTS
    raise UserError(f"{file.directory / _PROMPTS} does not exist, which has the examples: copy it, or give --shots 0")


def _parsed(path: Path, line: int, column: str, cell: str) -> dict:
    """Parses a cell, which is a Python literal, without running it."""
    where = f"{path}: the row that begins in line {line}, column {column}"
    try:
        parsed = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where} is no Python literal: copy the file again, or give --shots 0") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("question"), str) or not parsed.get("label"):
        raise UserError(f"{where} has no question with a label: copy the file again, or give --shots 0")
    texts = (parsed["question"], str(parsed.get("passage")), *_texts(parsed.get("options")))
    if encoding_problem("".join(texts).encode("utf-8", "surrogatepass")):
        raise UserError(f"{where} has half a character: copy the file again, or give --shots 0")
    return parsed


TASK = Task(
    name="agieval",
    title="AGIEval",
    folders=("agieval",),
    shots=5,
    layout="v1/SET.jsonl and few_shot_prompts.csv, also below data/",
    find=find,
    read=read,
)
