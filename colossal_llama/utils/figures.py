"""Figures of matplotlib: drawn without a display, labelled in any script, written at once.

matplotlib is imported when a figure is drawn: it takes half a second.
"""

import argparse
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.cli import creatable_directory
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.output_file import output_file_problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
_BASIC_FONT = "DejaVu Sans"
"""The font that matplotlib brings along: Latin, Greek, Cyrillic, Arabic, no Chinese."""
_PREFERRED_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Arial Unicode MS", "Noto Sans"),
)
_LONGEST_LABEL = 30


def figure_output_problem(path: Path, title: str) -> str | None:
    """Explains why a command cannot write its figure; a directory that is not there can be made.

    Args:
        path: name of the output.
        title: of the command's figures, of which an earlier one is replaced.
    """
    if path.suffix.lower() not in FORMATS:
        return f"{path}: the name must end in .png, .pdf or .svg"
    if path.parent.exists():
        return _existing_figure_problem(path, title)
    try:
        creatable_directory(str(path.parent))
    except argparse.ArgumentTypeError as error:
        return str(error)
    return None


def _existing_figure_problem(path: Path, title: str) -> str | None:
    """Explains why no figure can be written; one of the title is replaced, another file is not."""
    problem = output_file_problem(path)
    if problem is None or path.is_symlink() or not path.is_file():
        return problem
    if title.encode() in path.read_bytes():
        return None
    return f"{path} exists already, and is no plot of this command: give a new name, or remove it"


def save_figure(figure: "Figure", path: Path, title: str) -> None:
    """Writes a figure in the format of the file's ending.

    Args:
        figure: is not changed.
        path: the file; its directory is made.
        title: in the metadata of the file, tells it from files of other programs.

    Raises:
        UserError: the file cannot be written, or matplotlib does not know its format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=130, metadata={"Title": title})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be plotted: {getattr(error, 'strerror', None) or error}") from error


def label_of(text: str, note: str | None = None) -> str:
    """A text for matplotlib: of one line, not too long, no formula, none that legends omit.

    Args:
        text: what is shown.
        note: in brackets behind it.
    """
    shown = _shortened(text) + (f" ({_shortened(note)})" if note else "")
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def distinct_labels(texts: Sequence[str]) -> list[str]:
    """Labels of texts in their order; those that are alike when cut off begin with their places."""
    labels = [label_of(text) for text in texts]
    numbered = [f"#{place} {label.lstrip()}" for place, label in enumerate(labels, start=1)]
    return [numbered[place] if labels.count(label) > 1 else label for place, label in enumerate(labels)]


def _shortened(text: str) -> str:
    """A text whose unprintable characters are dots, cut off after 30 columns of a terminal."""
    shown = "".join(character if character.isprintable() else "·" for character in text)
    width = 0
    for position, character in enumerate(shown):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > _LONGEST_LABEL:
            return f"{shown[:position]}…"
    return shown


def fonts_for(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Chooses fonts that have the characters of all texts, as far as this host has such fonts.

    Returns:
        Their names, for the setting `font.family`, and the characters that none of them has.
    """
    from matplotlib import font_manager

    missing = {character for text in texts for character in text if not character.isspace()}
    paths = {font.name: font.fname for font in reversed(font_manager.fontManager.ttflist)}
    others = sorted(name for name in paths if not name.startswith(("Last Resort", "DejaVu", "STIX", "cm")))
    names: list[str] = []
    for name in dict.fromkeys((_BASIC_FONT, *_PREFERRED_FONTS, *others)):
        if not missing:
            break
        if name not in paths:
            continue
        found = {character for character in missing if ord(character) in _characters(paths[name])}
        if found or not names:
            names.append(name)
            missing -= found
    return names or [_BASIC_FONT], missing


def _characters(font: str) -> dict[int, int]:
    from matplotlib import font_manager

    try:
        return font_manager.get_font(font).get_charmap()
    except (OSError, RuntimeError):  # FreeType's errors on a damaged font
        return {}


def ranks_of_unprintable(texts: Sequence[str], missing: set[str]) -> dict[str, str]:
    """Short names, #1 #2 …, of the texts with characters that no font has, by the text."""
    strange = [text for text in dict.fromkeys(texts) if missing & set(text)]
    return {text: f"#{number}" for number, text in enumerate(strange, start=1)}
