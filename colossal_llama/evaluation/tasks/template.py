"""Templates: the wording of one's own questions, in any language.

    다음은 {category}에 관한 문제입니다.
    ---
    문제: {question}
    {choices}
    정답:

A line `---` separates the opening, which the prompt has once, from the question. The line end that
ends the file is no part of the wording.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from colossal_llama.evaluation.tasks.file_rows import read_bytes
from colossal_llama.readers.record import encoding_problem
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.suggestion import did_you_mean

_SEPARATOR = "---"


@dataclass(frozen=True)
class Template:
    """A wording.

    Attributes:
        question: of a question, with placeholders in braces.
        opening: line before the examples; "" for none.
        file: that it was read from; "" for a built-in one.
    """

    question: str
    opening: str = ""
    file: str = ""

    @property
    def placeholders(self) -> set[str]:
        """Names between braces in the question and the opening."""
        return _names(self.question) | _names(self.opening)

    def refuse_answers(self, names: set[str]) -> None:
        """Raises a `UserError` where a placeholder would show the model the answer."""
        if shown := sorted(self.placeholders & names):
            raise UserError(
                f"{self.file} shows {{{shown[0]}}}, so that the prompt would give the answer away: end the template "
                "where the answer begins (examples have theirs added behind it)"
            )

    def refuse_unknown(self, fields: set[str]) -> None:
        """Raises a `UserError` that names the placeholders which are no field."""
        if unknown := sorted(self.placeholders - fields):
            raise UserError(
                [
                    f"{self.file}: {{{name}}} is no field of the questions{did_you_mean(name, fields)} (there are "
                    f"{', '.join(sorted(fields))}; a brace itself is written twice)"
                    for name in unknown
                ]
            )


def read_template(path: Path) -> Template:
    """Reads a template file.

    Raises:
        UserError: it is no UTF-8 text, its braces cannot be read, or it shows no question.
    """
    content = read_bytes(path)
    if problem := encoding_problem(content):
        raise UserError(f"--template {path}: {problem}")
    text = content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
    lines = text.split("\n")
    opening = ""
    if _SEPARATOR in lines:
        place = lines.index(_SEPARATOR)
        opening, text = "\n".join(lines[:place]), "\n".join(lines[place + 1 :])
    template = Template(text, opening, str(path))
    try:
        names = _names(text)
        _names(opening)
    except ValueError as error:
        raise UserError(
            f"--template {path}: {error}: a placeholder is {{question}}, a brace itself {{{{ or }}}}"
        ) from None
    if not names & {"question", "prompt"}:
        raise UserError(f"--template {path} shows no question: put {{question}} (or {{prompt}}) where it belongs")
    return template


def filled(text: str, fields: Mapping[str, Any]) -> str:
    """Puts fields in the place of the placeholders; the fields may hold braces themselves."""
    parts = Formatter().parse(text)
    return "".join(literal + ("" if name is None else str(fields[name])) for literal, name, _, _ in parts)


def _names(text: str) -> set[str]:
    """The placeholders of a text.

    Raises:
        ValueError: a brace has no partner, or a placeholder is more than a name.
    """
    names = set()
    for _, name, form, conversion in Formatter().parse(text):
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(
                f"{{{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}}} is no name"
            )
        names.add(name)
    return names
