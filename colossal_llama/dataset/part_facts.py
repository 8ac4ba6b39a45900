"""part.json: what a preparation recorded about a part. Imports neither torch nor pyarrow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.utils.checked_json import DamagedJsonError, read_checked
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_file

FACTS_FILE = "part.json"
KINDS = ("pretrain", "sft")
_REMEDY = "copy the part again, or prepare the data again"
_NEEDED: dict[str, type] = {"kind": str, "fingerprint": str, "tokens": int, "max_length": int}
_OPTIONAL: dict[str, type] = {
    "rows": int,
    "target_tokens": int,
    "tokenizer_fingerprint": str,
    "arrow_sha256": str,
    "jsonl_sha256": str,
    "categories": list,
    "chat_template_date": str,
    "conversation_format": dict,
    "metadata_sha256": dict,
}
"""Fields that parts of earlier versions and of other programs may lack."""


@dataclass(frozen=True)
class PartFacts:
    """Content of a part.json; None for what it does not record."""

    kind: str
    """`pretrain` or `sft`."""
    fingerprint: str
    tokens: int
    max_length: int
    """Maximum length of a row in tokens, as the part was prepared."""
    rows: int | None = None
    target_tokens: int | None = None
    tokenizer_fingerprint: str | None = None
    arrow_sha256: str | None = None
    """SHA-256 of the Arrow file."""
    jsonl_sha256: str | None = None
    categories: tuple[str, ...] | None = None
    chat_template_date: str | None = None
    conversation_format: dict[str, Any] | None = None
    """Describes the format of the conversations (`ConversationTemplate.describe`)."""
    metadata_sha256: dict[str, str] | None = None
    """SHA-256 of the two small files, by name."""


def part_fingerprint(kind: str, jsonl_sha256: str, categories: Sequence[str]) -> str:
    """Computes the fingerprint of a part, which stands in its part.json and in manifest.json."""
    return fingerprint_bytes(json.dumps([kind, jsonl_sha256, list(categories)]).encode())


def read_part_facts(part: Path) -> PartFacts:
    """Reads and checks the part.json of a part directory, and the small files that it knows.

    Raises:
        UserError: one is damaged, or the values cannot be those of one part.
    """
    path = part / FACTS_FILE
    try:
        content = read_checked(path, {})
    except (OSError, DamagedJsonError) as error:
        raise UserError(f"{path} cannot be read: {error}; {_REMEDY}") from error
    present = {name: content[name] for name in _OPTIONAL if content.get(name) is not None}
    wrong = [name for name, kind in _NEEDED.items() if not _is(content.get(name), kind)]
    wrong += [name for name, value in present.items() if not _is(value, _OPTIONAL[name])]
    if wrong:
        raise UserError(
            f"{path} lacks {', '.join(wrong)}, or has values of other types there: the file was changed or truncated; "
            f"{_REMEDY}"
        )
    if "categories" in present:
        present["categories"] = tuple(present["categories"])
    facts = PartFacts(**{name: content[name] for name in _NEEDED}, **present)
    if facts.kind not in KINDS:
        raise UserError(
            f"{path}: the kind {facts.kind!r} is none of {', '.join(KINDS)}: the file was changed; {_REMEDY}"
        )
    sha256, categories = facts.jsonl_sha256, facts.categories
    if sha256 and categories and facts.fingerprint != part_fingerprint(facts.kind, sha256, categories):
        raise UserError(
            f"{path} was changed: its fingerprint is not that of its kind, categories and checksum; {_REMEDY}"
        )
    for name, recorded in (facts.metadata_sha256 or {}).items():
        if (part / name).is_file() and fingerprint_file(part / name) != recorded:
            raise UserError(f"{part / name} has changed since it was written; {_REMEDY}")
    return facts


def _is(value: Any, kind: type) -> bool:
    """True for a value of the type; numbers are not negative, lists hold texts."""
    if kind is int:
        return type(value) is int and value >= 0
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)
