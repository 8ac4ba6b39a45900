"""One's own questions, in a file of any format that the readers read.

    {"question": "…", "choices": ["…", "…"], "answer": "B"}      scored by the first token
    {"prompt": "…", "target": "…"}                               scored by what is generated

`choices` is a list, or an object by letter; in csv also columns A, B, …. `answer` is a letter, a
place from 0, or the text of a choice. `subject` and `category` are lines of the table. Examples are
read from `NAME_dev` with the same ending, next to the file.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from colossal_llama.evaluation.questions import FIRST_TOKEN, TARGET, Example, Question, Subject
from colossal_llama.evaluation.tasks.template import Template, filled
from colossal_llama.readers.damage import DamagedFileError
from colossal_llama.readers.formats import ending_of
from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB
from colossal_llama.readers.listing import InputFile, find_input_files
from colossal_llama.readers.record import RecordError, kind_of, parse_row, string_of
from colossal_llama.readers.rows import FileRange, read_rows, row_places
from colossal_llama.utils.errors import UserError

SHOTS = 5
"""Examples before a question, where a file with examples is there."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CHOICES = Template("Question: {question}\n{choices}\nAnswer: ")
_PROMPT = Template("{prompt}")
_SHORTEST_ANSWER_TOKENS = 16
_LONGEST_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class QuestionRow:
    """A row of a file: its number from 0, place for messages, and record or what is wrong."""

    index: int
    place: str
    record: dict
    fault: str | None


def read_own_questions(path: Path, template: Template | None, shots: int | None) -> list[Subject]:
    """Reads a file of one's own questions: a subject for each value of `subject`.

    Args:
        path: of the file.
        template: wording; None for the built-in one.
        shots: most examples; None for `SHOTS`, if there is a file of examples.

    Raises:
        UserError: the file cannot be read, or holds no question that could be scored.
    """
    rows = read_question_rows(path)
    keys = {key for row in rows for key in row.record}
    is_generated = _is_generated(path, rows)
    template = template or (_PROMPT if is_generated else _CHOICES)
    template.refuse_unknown(keys | ({"prompt"} if is_generated else {"question", "choices", "letters"}))
    template.refuse_answers({"target"} if is_generated else {"answer"})
    read = _generated_question if is_generated else _choice_question
    questions = [read(row, template) for row in rows]
    if not any(question.is_scored for question in questions):
        raise UserError(f"{path} holds no question that could be scored: {rows[0].place}: {questions[0].fault}")
    examples, notes = _examples(path, template, is_generated, SHOTS if shots is None else shots)
    if shots and not examples:
        notes = (f"no examples are given, as {_dev_file(path)} does not exist",)
    if not is_generated and "choices" not in template.placeholders:
        notes = (
            *notes,
            f"{template.file} does not show {{choices}}: the model sees no options but those in the question",
        )
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(_subject_and_category(row.record, _stem(path)), []).append(number)
    return [
        Subject(
            task=_stem(path),
            name=name,
            group=category,
            file=str(path),
            opening=_opening(template, [rows[number] for number in numbers]),
            examples=examples,
            questions=tuple(questions[number] for number in numbers),
            scored_by=TARGET if is_generated else FIRST_TOKEN,
            max_new_tokens=_new_tokens(questions) if is_generated else 0,
            notes=notes if place == 0 else (),
        )
        for place, ((name, category), numbers) in enumerate(sorted(groups.items()))
    ]


def _stem(path: Path) -> str:
    return path.name.removesuffix(ending_of(path.name)) or path.name


def read_question_rows(path: Path, option: str = "--tasks") -> list[QuestionRow]:
    """Reads the rows of a file of questions; what they hold is not looked at.

    Args:
        path: of the file.
        option: that names it, for messages.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    files, _ = find_input_files([path], option=option)
    rows = [row for file in files for row in _rows_of(file, option)]
    if not rows:
        raise UserError(f"{option} {path} holds no question")
    return rows


def _rows_of(file: InputFile, option: str) -> Iterator[QuestionRow]:
    parsed: list[tuple[int, dict, str | None]] = []
    try:
        for number, row in read_rows(FileRange(file), MAX_LINE_MB * BYTES_PER_MB):
            if row == b"" or (isinstance(row, bytes) and not row.strip()):
                continue
            try:
                parsed.append((number, parse_row(row), None))
            except RecordError as error:
                parsed.append((number, {}, str(error)))
    except DamagedFileError as error:
        raise UserError(f"{option} {file.path}: {error}") from None
    places = row_places(FileRange(file), [number for number, _, _ in parsed]) if parsed else []
    for index, ((_, record, fault), place) in enumerate(zip(parsed, places, strict=True)):
        below = place.removeprefix(str(file.path)).lstrip(":, ")
        yield QuestionRow(index, f"line {below}" if below.isdecimal() else below or "the file", record, fault)


def _is_generated(path: Path, rows: list[QuestionRow]) -> bool:
    """True where the rows are prompts with targets; a file has one kind."""
    kinds = Counter("target" in row.record or "prompt" in row.record for row in rows if row.record)
    if len(kinds) == 2:
        first = next(row for row in rows if row.record and ("target" in row.record or "prompt" in row.record))
        raise UserError(
            f'--tasks {path}: {first.place} is a "prompt" with a "target", and other rows are questions with choices: '
            "give them as two files"
        )
    return kinds[True] > 0


def _subject_and_category(record: dict, stem: str) -> tuple[str, str]:
    """The lines of the table: `subject` in `category`; a category alone is the subject."""
    values = [record.get(key) for key in ("subject", "category")]
    subject, category = (" ".join(str(value).split()) if isinstance(value, str | int) else "" for value in values)
    return (subject, category) if subject else (category or stem, "")


def _opening(template: Template, rows: list[QuestionRow]) -> str:
    """The line that the prompts of a subject begin with.

    Raises:
        UserError: a field in it differs between questions of the subject.
    """
    worded = {
        filled(template.opening, {name: row.record.get(name, "") for name in template.placeholders}): row.place
        for row in reversed(rows)
        if row.record
    }
    if len(worded) > 1:
        (second, place), (first, first_place) = list(worded.items())[-2:]
        raise UserError(
            f"{template.file}: the opening above --- is {first!r} for {first_place} and {second!r} for {place}, which "
            'are one subject: use fields that a subject shares, or give each a "subject"'
        )
    return next(iter(worded), "")


def _choice_question(row: QuestionRow, template: Template) -> Question:
    try:
        if row.fault:
            raise RecordError("row", row.fault)
        question = string_of(row.record, "question")
        options, names = _options(row.record)
        label = _label(row.record, options, names)
        shown = "\n".join(f"{letter}. {option}" for letter, option in options.items())
        fields = {**row.record, "question": question, "choices": shown, "letters": ", ".join(options)}
        text = _worded(template, fields)
    except RecordError as error:
        return Question(row.index, "", "", fault=str(error), is_scored=False, place=row.place)
    faults = [] if question.strip() else ["the question is empty"]
    faults += [f"option {letter} is empty" for letter, option in options.items() if not option.strip()]
    return Question(
        row.index,
        text,
        label,
        tuple(options),
        tuple(options.values()),
        "; ".join(faults) or None,
        is_scored=bool(text.strip()),
        place=row.place,
        stem=question,
    )


def _generated_question(row: QuestionRow, template: Template) -> Question:
    try:
        if row.fault:
            raise RecordError("row", row.fault)
        prompt = string_of(row.record, "prompt")
        target = row.record.get("target")
        target = str(target) if isinstance(target, int | float) and not isinstance(target, bool) else target
        target = string_of({"target": target} if "target" in row.record else {}, "target").strip()
        if not target:
            raise RecordError("empty", '"target" is empty')
        text = _worded(template, {**row.record, "prompt": prompt})
    except RecordError as error:
        return Question(row.index, "", "", fault=str(error), is_scored=False, place=row.place)
    fault = None if prompt.strip() else "the prompt is empty"
    return Question(row.index, text, target, fault=fault, is_scored=bool(text.strip()), place=row.place, stem=prompt)


def _worded(template: Template, fields: dict) -> str:
    missing = [name for name in template.placeholders if fields.get(name) is None]
    if missing:
        raise RecordError("missing_field", f'"{missing[0]}" is missing, which the template names')
    return filled(template.question, fields)


def _options(record: dict) -> tuple[dict[str, str], dict[str, str]]:
    """The choices by letter; those of an object by other names are lettered in its order.

    Returns:
        Texts by letter, and letters by the names that the object has.
    """
    given = record.get("choices")
    if given is None:  # csv
        given = {letter: record[letter] for letter in _LETTERS if record.get(letter) not in (None, "")} or None
    if isinstance(given, str) and given.strip()[:1] in ("[", "{"):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            raise RecordError("wrong_type", '"choices" is a text that is no JSON list or object') from None
    if isinstance(given, dict) and given.keys() == {"text", "label"} and isinstance(given["text"], list):
        given = dict(zip(given["label"], given["text"], strict=False))
    if not isinstance(given, list | dict):
        problem = "is missing" if given is None else f"is {kind_of(given)}"
        raise RecordError("wrong_type", f'"choices" {problem}: a list of texts is needed, or an object by letter')
    if not 2 <= len(given) <= len(_LETTERS):
        raise RecordError("wrong_type", f'"choices" has {len(given)} entries: 2 to {len(_LETTERS)} are needed')
    keys = [str(key).strip() for key in given] if isinstance(given, dict) else list(_LETTERS[: len(given)])
    letters = [key.upper() for key in keys]
    if len(set(letters)) < len(letters) or not set(letters) <= set(_LETTERS):
        letters = list(_LETTERS[: len(given)])
    texts = dict(sorted(zip(letters, given.values() if isinstance(given, dict) else given, strict=True)))
    for letter, option in texts.items():
        if option is None or isinstance(option, list | dict | bool):
            raise RecordError("wrong_type", f"option {letter} is {kind_of(option)}, a text is needed")
    return {letter: str(option) for letter, option in texts.items()}, dict(zip(keys, letters, strict=True))


def _label(record: dict, options: dict[str, str], names: dict[str, str]) -> str:
    """The letter of the right answer.

    Raises:
        RecordError: the answer names no choice, or could mean several.
    """
    answer = record.get("answer")
    if answer is None or isinstance(answer, bool | list | dict):
        raise RecordError("wrong_type", f'"answer" is {"missing" if "answer" not in record else kind_of(answer)}')
    text = str(answer).strip()
    letters = list(options)
    meant = {letter for letter, option in options.items() if option.strip() == text}
    is_lettered = set(names.values()) == {name.upper() for name in names}
    if text in names and not is_lettered:
        meant.add(names[text])
    elif is_lettered and text.upper() in options:
        meant.add(text.upper())
    if text.isdecimal() and int(text) < len(letters) and (isinstance(answer, int) or not meant):
        meant.add(letters[int(text)])
    if len(meant) == 1:
        return meant.pop()
    if meant:
        raise RecordError("ambiguous", f'"answer" {answer!r} could mean {" or ".join(sorted(meant))}: give the letter')
    raise RecordError("no_choice", f'"answer" {answer!r} is no letter, place from 0 or text of a choice')


def _dev_file(path: Path) -> Path:
    ending = ending_of(path.name)
    return path.with_name(f"{path.name.removesuffix(ending)}_dev{ending}")


def _examples(
    path: Path, template: Template, is_generated: bool, shots: int
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The first examples of the file next to the questions, and a note that says so."""
    dev = _dev_file(path)
    if not shots or not dev.is_file():
        return (), ()
    rows = read_question_rows(dev)[:shots]
    read = _generated_question if is_generated else _choice_question
    questions = [read(row, template) for row in rows]
    problems = [f"{dev}, {found.place}: {found.fault}" for found in questions if not found.is_scored]
    if problems:
        raise UserError(problems)
    examples = tuple(Example(question.text, question.label) for question in questions)
    return examples, (f"the examples are the first {len(examples)} of {dev}",)


def _new_tokens(questions: list[Question]) -> int:
    """Enough for the longest target: a token is at least a byte."""
    longest = max(len(question.label.encode()) for question in questions) + 8
    return min(max(longest, _SHORTEST_ANSWER_TOKENS), _LONGEST_ANSWER_TOKENS)
