"""Questions of benchmarks as their files hold them, before a tokenizer or model has seen them."""

from dataclasses import dataclass

FIRST_TOKEN, LETTER_OR_FIRST_TOKEN, NUMBER, TARGET = "first_token", "letter_or_first_token", "number", "target"
"""How a task is scored: `Subject.scored_by`."""


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        index: its place in the file, from 0.
        text: what the prompt ends with, `Answer: ` included.
        label: the right answer: a letter of `choices`, a number, or a text.
        choices: letters that can be chosen; empty where the answer is generated.
        options: texts behind the letters, for `--protocol likelihood`; may be empty.
        fault: what is wrong with it in the file, without file and line; None if nothing is.
        is_scored: False where the fault leaves no answer that could be right.
        place: in the file, for messages: `line 17`, `record 3`; the file is the subject's.
        stem: the question itself with its passage, as the file has it: without the words of the
            prompt and, where the file has them apart, without the choices.
    """

    index: int
    text: str
    label: str
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    fault: str | None = None
    is_scored: bool = True
    place: str = ""
    stem: str = ""


@dataclass(frozen=True)
class Example:
    """A development example with its answer, which the prompt gives before the question.

    Attributes:
        text: as a question's.
        answer: stands directly behind `text`.
    """

    text: str
    answer: str


@dataclass(frozen=True)
class Subject:
    """The questions of one file, which share an opening line and examples.

    Attributes:
        task: `mmlu`, `cmmlu`, `ceval`, `agieval`, `gaokao`, `gsm8k`, or the name of an own file.
        name: of the file, without its ending.
        group: subjects of it are averaged in the table: `STEM`, `Humanities` …; "" for none.
        file: path of the file, as messages name it.
        opening: line before the examples; "" for none.
        examples: in the order of the file, at most as many as the task has shots.
        questions: in the order of the file.
        scored_by: one of the names above.
        max_new_tokens: of generated answers; 0 where nothing is generated.
        stop_texts: end a generated answer and are not part of it.
        second_group: that it is in, too, as CMMLU's `China specific`; "" for none.
        notes: sentences about the file for the user and the record: what is left out or made up.
    """

    task: str
    name: str
    group: str
    file: str
    opening: str
    examples: tuple[Example, ...]
    questions: tuple[Question, ...]
    scored_by: str
    max_new_tokens: int = 0
    stop_texts: tuple[str, ...] = ()
    second_group: str = ""
    notes: tuple[str, ...] = ()
