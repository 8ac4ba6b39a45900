"""Fields of a record as a document of pre-training: source, target and category.

Without options a record with a "target" is that, with its "source" before it. Else the first text
column (`record_forms.TEXT_NAMES`) is the target: the whole document is learned. Its "source" is
then no context (corpora name their origin so), and neither is a title: keys that are not read are
counted.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

import orjson

from colossal_llama.readers.formats import TEXT_KINDS, ending_of
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError, kind_of
from colossal_llama.readers.record_forms import (
    PARAGRAPH_KEYS,
    TEXT_NAMES,
    conversation_form,
    conversation_keys,
    conversation_text,
    document_form,
    named,
)
from colossal_llama.readers.unread_keys import unread
from colossal_llama.utils.arguments import option, option_values

CONVERSATION, DOCUMENT = "looks_like_a_conversation", "looks_like_a_document"
OTHER_KIND = {CONVERSATION: "use prepare_sft_dataset.py", DOCUMENT: "use prepare_pretrain_dataset.py"}
"""Reasons of records that the other prepare script reads, with what to do."""
EMPTY_CATEGORY = "empty_category"
CHOSEN = "chosen_columns."
"""Prefix of the names of counts of records in which several columns fit."""
BY_DIRECTORY = "categories_absent.directory_name"
"""Name of the count of records whose category is the name of their file's directory."""
SOURCES = ("field", "directory", "file")
"""What a category may come from; any other word is a category itself."""
_NUMBER = re.compile(r"[-_.]?\d{3,}-of-\d{3,}(-[0-9a-f]{16})?$")
"""Number of a file in its set, at the end of its name: train-00000-of-00041."""
_CACHED_NAMES_CHARACTERS = 4096
_SHOWN_NAMES_CHARACTERS = 300
_FALLBACK_CATEGORY = "default"  # of a file that has no directory


def _field_name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def _category_origin(text: str) -> str:
    if text not in SOURCES and text.strip().lower() in SOURCES:
        raise argparse.ArgumentTypeError(f"{text!r} is {text.strip().lower()!r} in small letters: which is meant?")
    if printable(text) != text:
        raise argparse.ArgumentTypeError(f"{text!r} has signs that cannot be printed")
    return _field_name(text)


@dataclass(frozen=True, kw_only=True)
class TextFields:
    """Options for the columns of a document's text."""

    text_field: str | None = option(
        type=_field_name,
        metavar="NAME",
        help="column that is the whole document, all of it target; meta.body is body inside meta (default: target, "
        f"else the first that a record has of {', '.join(TEXT_NAMES[:4])} …)",
    )
    source_field: str | None = option(
        type=_field_name, metavar="NAME", help="column of the text before the target (default: source, if there is one)"
    )
    target_field: str | None = option(
        type=_field_name, metavar="NAME", help="column of the text whose loss is computed (default: target)"
    )


@dataclass(frozen=True, kw_only=True)
class CategoryFields:
    """Options for the category of a record."""

    category_field: str | None = option(
        type=_field_name,
        metavar="NAME",
        help="column of the category, which every record then has; meta.lang is lang inside meta (default: category, "
        "if there is one)",
    )
    category_from: str | None = option(
        type=_category_origin,
        metavar="field|directory|file|NAME",
        help="field: every record has one; directory, file: the name of the record's; any other word: the category of "
        "all records (default: a record's own, else its directory's name, for conversations default)",
    )


@dataclass(frozen=True, kw_only=True)
class ExchangeFields(CategoryFields):
    """Options for the columns of a conversation that is a question and its answer."""

    source_field: str | None = option(
        type=_field_name,
        metavar="NAME",
        help="column of the question (default: the only one of instruction, prompt, question, query, problem …)",
    )
    target_field: str | None = option(
        type=_field_name,
        metavar="NAME",
        help="column of the answer (default: the only one of output, completion, response, answer, solution …)",
    )


@dataclass(frozen=True, kw_only=True)
class FieldOptions(CategoryFields, TextFields):
    """Options that say which columns of a record are read."""

    @cached_property
    def are_defaults(self) -> bool:
        """True where no option is given."""
        return not any(option_values(self).values())

    @cached_property
    def of_plain_text(self) -> "FieldOptions":
        """Options for a plain text file, which has no columns that could be named."""
        return FieldOptions(category_from=self.category_from)

    def of_file(self, file: InputFile) -> "FieldOptions":
        """Options for the records of a file."""
        return self.of_plain_text if file.format.kind in TEXT_KINDS else self


@dataclass(frozen=True)
class Document:
    """A pre-training record."""

    source: str
    target: str
    category: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Names of what is counted about it, besides what is counted of every record."""


def field_problems(options: Any) -> Iterator[str]:
    """Problems of options that contradict each other; those that a script lacks count as absent."""
    given = {name: getattr(options, name, None) for name in FieldOptions.__dataclass_fields__}
    for name in ("source_field", "target_field"):
        if given["text_field"] is not None and given[name] is not None:
            yield f"--text_field names the whole document and --{name} a part of it: leave one out"
    columns = [(name, value) for name, value in given.items() if name != "category_from" and value is not None]
    is_category_read = (
        hasattr(options, "category_from")
        and given["category_from"] in (None, "field")
        and given["category_field"] is None
    )
    for number, (name, value) in enumerate(columns):
        for other, _ in (same for same in columns[:number] if same[1] == value):
            yield f"--{other} and --{name} are both {value!r}: a column has one meaning"
        if is_category_read and _is(str(value), "category"):
            yield f"--{name} {value} is the category's column, too: give --category_from directory, file or a NAME"
    if given["category_field"] is not None and given["category_from"] not in (None, "field"):
        yield f"--category_from {given['category_from']} leaves --category_field unread: leave one out"


def document_of(record: dict, file: InputFile, fields: FieldOptions) -> Document:
    """Checks a pre-training record.

    Args:
        record: to check.
        file: that the record stands in.
        fields: which fields are read.

    Raises:
        RecordError: there is no text, a field is no string, a field that an option names is missing
            or null, or the target or the category is empty.
    """
    if len(record) == 3 and fields.are_defaults:  # the common form, checked in a third of the time
        source, target, category = record.get("source"), record.get("target"), record.get("category")
        if isinstance(source, str) and isinstance(target, str) and isinstance(category, str) and target and category:
            return Document(source, target, category)
    fields = fields.of_file(file)
    columns = columns_of(record, fields)
    source = "" if columns.source is None else _text(record, columns.source, null_is_empty=True)
    target = _text(record, columns.target)
    if not target:
        raise RecordError("empty_target", f'"{columns.target}" is empty: there is nothing to learn')
    category = _category(record, columns.category, file, fields)
    if category is None:
        return Document(source, target, directory_name(file), (*columns.notes, BY_DIRECTORY))
    return Document(source, target, category, columns.notes)


@dataclass(frozen=True)
class PlainText:
    """Text of a record of either kind, whole: source and target, or a conversation line by line."""

    text: str
    category: str
    chosen: tuple[str, ...]
    """See `Columns`."""


def plain_text_of(record: dict, file: InputFile, fields: FieldOptions) -> PlainText:
    """Reads the text of a record of either kind, which may be empty, and so may its category.

    Args:
        record: to read.
        file: that the record stands in.
        fields: which fields are read.

    Raises:
        RecordError: there is no text, or a field cannot be read.
    """
    fields = fields.of_file(file)
    try:
        columns = columns_of(record, fields)
    except RecordError as error:
        if error.reason != CONVERSATION:
            raise
        text, chosen = conversation_text(record), tuple[str, ...]()
    else:
        source = "" if columns.source is None else _text(record, columns.source, null_is_empty=True)
        text, chosen = source + _text(record, columns.target), columns.chosen
    try:
        category = category_of(record, file, fields)
    except RecordError as error:
        if error.reason != EMPTY_CATEGORY:
            raise
        category = None
    return PlainText(text, category or directory_name(file), chosen)


# ----------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """Columns of a document.

    Attributes:
        source: None where there is none.
        target: of the text to be learned.
        category: None where there is none.
        chosen: name of the count of records in which further columns fit, if they do.
        notes: those of `Document`, `chosen` among them.
    """

    source: str | None
    target: str
    category: str | None
    chosen: tuple[str, ...]
    notes: tuple[str, ...]


def columns_of(record: dict, fields: FieldOptions) -> Columns:
    """Finds the columns of a document.

    Raises:
        RecordError: no column is known as a text, or the record is a conversation.
    """
    names = tuple(record)
    texts = tuple(name for name, value in record.items() if isinstance(value, str) or _has_paragraphs(value))
    is_short = sum(map(len, names)) <= _CACHED_NAMES_CHARACTERS  # else the cache would take any amount of memory
    columns = (_columns if is_short else _columns.__wrapped__)(names, texts, fields)
    if columns is None:
        raise _no_text(record)
    return columns


@lru_cache(maxsize=1024)
def _columns(names: tuple[str, ...], texts: tuple[str, ...], fields: FieldOptions) -> Columns | None:
    """Columns of a record of these names, of which `texts` have a text; None if none is known."""
    meant = (fields.source_field, fields.category_field)
    fit = [name for name in named(texts, ("target", *TEXT_NAMES)) if name not in meant]
    is_named = fields.text_field is not None or fields.target_field is not None
    target = fields.text_field or fields.target_field or next(iter(fit), None)
    if target is None:
        return None
    source, is_pair = fields.source_field, fields.target_field is not None or _is(target, "target")
    if source is None and is_pair and fields.text_field is None:
        source = next(iter(named(names, ("source",))), None)
    category = _category_column(names, fields)
    used = [name for name in (source, target, category) if name is not None]
    unused = [name for name in names if name not in {_outer(name, names) for name in used}]
    notes = tuple(unread(name) for name in unused)
    chosen: tuple[str, ...] = ()
    if not is_named and (others := _others(unused, texts, fit)):
        read = f'"{target}"' if source is None else f'"{source}" and "{target}"'
        chosen = (f"{CHOSEN}{printable(f'{read}, not {others}')}",)
    return Columns(source, target, category, chosen, (*notes, *chosen))


def _others(unused: Sequence[str], texts: Sequence[str], fit: Sequence[str]) -> str:
    """Unused columns that would fit, too, quoted; empty without any."""
    others = [f'"{name}"' for name in (*fit, *named(texts, ("source",))) if name in unused]
    if form := conversation_keys(unused):
        others.append(form)
    return ", ".join(others)


def _is(name: str, wanted: str) -> bool:
    return bool(named([name], (wanted,)))


def _outer(name: str, names: Sequence[str]) -> str:
    """Key of the record in which the named field lies."""
    return name if name in names else name.partition(".")[0]


def _has_paragraphs(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_paragraph(item) is not None for item in value)


def _paragraph(item: Any) -> str | None:
    text = next((item[key] for key in PARAGRAPH_KEYS if key in item), None) if isinstance(item, dict) else None
    return text if isinstance(text, str) else None


_MISSING = object()


def _value(record: dict, name: str) -> Any:
    """Value of a field, also inside objects: `meta.lang`; `_MISSING` where there is none."""
    value = record.get(name, _MISSING)
    if value is not _MISSING:
        return value
    value = record
    for part in name.split("."):
        if isinstance(value, str) and value.startswith("{"):  # an object as text, as tables have it
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                return _MISSING
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _text(record: dict, name: str, null_is_empty: bool = False) -> str:
    value = _value(record, name)
    if isinstance(value, str):
        return value
    if value is None and null_is_empty:
        return ""
    if _has_paragraphs(value):
        return "\n".join(filter(None, map(_paragraph, value)))
    raise _unusable_field(record, name, value)


def _unusable_field(record: dict, name: str, value: Any) -> RecordError:
    if value is _MISSING:
        return RecordError("missing_field", f'"{name}" is missing: the record has {_shown(record)}')
    reason = "null_field" if value is None else "wrong_type"
    return RecordError(reason, f'"{name}" is {kind_of(value)}, a string is needed: the record has {_shown(record)}')


def _no_text(record: dict) -> RecordError:
    """Error of a record of which no column is known as a text."""
    if form := conversation_form(record):
        return RecordError(CONVERSATION, f"these look like conversations ({form}): {OTHER_KIND[CONVERSATION]}")
    if present := named(record, ("target", *TEXT_NAMES)):
        return _unusable_field(record, present[0], record[present[0]])
    known = ", ".join(TEXT_NAMES[:4])
    return RecordError(
        "missing_field",
        f'"target" is missing, and so is a text ({known} …): the record has {_shown(record)}; --text_field or '
        "--target_field names the column",
    )


def refuse_document(record: dict) -> None:
    """Refuses a record that is no conversation and looks like a document.

    Raises:
        RecordError: it does.
    """
    if not conversation_form(record) and (form := document_form(record)):
        raise RecordError(DOCUMENT, f"these look like documents ({form}): {OTHER_KIND[DOCUMENT]}")


def _shown(record: dict) -> str:
    names = ", ".join(f'"{printable(name)}"' for name in record) or "nothing"
    return names if len(names) <= _SHOWN_NAMES_CHARACTERS else f"{names[:_SHOWN_NAMES_CHARACTERS]}…"


def printable(name: str) -> str:
    """A name on one line: a sign that cannot be printed is written as a question mark."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)


# -------------------------------------------------------------------------------------- categories


def _category_column(names: Iterable[str], fields: CategoryFields) -> str | None:
    """Column of the category in a record of these names; None where there is none."""
    if fields.category_from not in (None, "field"):
        return None
    return fields.category_field or next(iter(named(names, ("category",))), None)


def category_of(record: dict, file: InputFile, fields: CategoryFields) -> str | None:
    """Category of a record of either kind; None where it has none and may have none.

    A whole number is a category, as tables have them.

    Raises:
        RecordError: it is missing or null and must not be, is empty, or neither text nor number.
    """
    return _category(record, _category_column(record, fields), file, fields)


def _category(record: dict, column: str | None, file: InputFile, fields: CategoryFields) -> str | None:
    origin = fields.category_from
    if origin is not None and origin != "field":
        return file_category(file, origin)
    name = column or "category"
    value = _value(record, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    if value in (_MISSING, None) and fields.category_field is None and origin is None:
        return None
    if value == "":
        raise RecordError(EMPTY_CATEGORY, f'"{name}" is empty: name the sub-dataset, or give --category_from')
    error = _unusable_field(record, name, value)
    raise RecordError(error.reason, f"{error}; --category_from directory (file, NAME) reads none")


def with_category(record: dict, file: InputFile, fields: CategoryFields) -> dict:
    """Returns a conversation with its category under that name, where an option decides it.

    Raises:
        RecordError: see `category_of`.
    """
    if fields.category_field is None and fields.category_from is None and isinstance(record.get("category", ""), str):
        return record
    category = category_of(record, file, fields)
    others = {name: value for name, value in record.items() if name not in ("category", fields.category_field)}
    return others if category is None else {**others, "category": category}


def directory_name(file: InputFile) -> str:
    """Name of a file's directory, as a category."""
    return printable(PurePosixPath(file.name).parent.name) or _FALLBACK_CATEGORY


def file_category(file: InputFile, origin: str) -> str:
    """Category of all records of a file: of `--category_from` directory, file, or a name."""
    if origin == "directory":
        return directory_name(file)
    if origin == "file":
        return file.category or printable(_unit_of(file.name)[-1])
    return origin


def with_file_categories(files: Sequence[InputFile], fields: CategoryFields) -> list[InputFile]:
    """Gives each file the category of --category_from file: its name without the ending.

    Numbered files of one set have one category. Equal names get more of the path:

    c/a/train.jsonl, c/b/train.csv.gz, c/c/x-00000-of-00002.parquet  →  a/train, b/train, x
    """
    if fields.category_from != "file":
        return list(files)
    units = [_unit_of(file.name) for file in files]
    others = Counter(unit for unit, file in zip(units, files, strict=True) if not _is_numbered(file.name))
    names = _shortest_names(sorted(set(units)))
    return [
        # x.jsonl next to x.csv
        replace(file, category=printable(names[unit] if others[unit] < 2 else file.name))
        for file, unit in zip(files, units, strict=True)
    ]


def _unit_of(name: str) -> tuple[str, ...]:
    """Parts of the name of a file or of its set of numbered files, without the ending.

    The files of a saved data set are named after its directory.
    """
    *directories, last = PurePosixPath(name).parts
    stem = last.removesuffix(ending_of(last))
    if _is_numbered(name):
        stem = _NUMBER.sub("", stem)
        if directories and stem in ("data", ""):
            return tuple(directories)
    return (*directories, stem or last)


def _is_numbered(name: str) -> bool:
    return _NUMBER.search(name.removesuffix(ending_of(name))) is not None


def _shortest_names(units: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The last part of each, with as many of the parts before as make it unique."""
    depths = dict.fromkeys(units, 1)
    while True:
        names = {unit: "/".join(unit[-depth:]) for unit, depth in depths.items()}
        counts = Counter(names.values())
        deeper = {unit: depth + (counts[names[unit]] > 1 and depth < len(unit)) for unit, depth in depths.items()}
        if deeper == depths:
            return names
        depths = deeper
