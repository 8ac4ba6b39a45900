"""Fields of a record as a document of pre-training: source, target and category."""

from dataclasses import dataclass, field

from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError, string_of
from colossal_llama.readers.unread_keys import unread


@dataclass(frozen=True)
class FieldOptions:
    """Options that say which fields of a record are read; None as `document_of` says."""

    text_field: str | None = None
    source_field: str | None = None
    target_field: str | None = None
    category_field: str | None = None
    category_from: str | None = None


@dataclass(frozen=True)
class Document:
    """A pre-training record."""

    source: str
    target: str
    category: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Names of what is counted about it, besides what is counted of every record."""


def document_of(record: dict, file: InputFile, fields: FieldOptions) -> Document:
    """Checks a pre-training record.

    Args:
        record: to check.
        file: that the record stands in.
        fields: which fields are read.

    Raises:
        RecordError: a field is missing, null, not a string; the target or the category is empty.
    """
    source, target, category = (string_of(record, name) for name in ("source", "target", "category"))
    if not target:
        raise RecordError("empty_target", '"target" is empty: there is nothing to learn')
    if not category:
        raise RecordError("empty_category", '"category" is empty: name the sub-dataset')
    notes = () if len(record) == 3 else tuple(unread(name) for name in record if name not in _DOCUMENT_KEYS)
    return Document(source, target, category, notes)


_DOCUMENT_KEYS = frozenset({"source", "target", "category"})
