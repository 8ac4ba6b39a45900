"""JSON files that a user or another program may have damaged: read as an object, or refused."""

import json
from pathlib import Path
from typing import Any

from colossal_llama.utils.errors import UserError


def read_json_object(path: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: the file.
        remedy: what the user is to do about a damaged one.

    Raises:
        UserError: it cannot be read, is no JSON, or holds another value than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, cut off, nested without end
        raise UserError(f"{path} is not JSON: {error}; {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object, but {_kind_of(content)}; {remedy}")
    return content


def _kind_of(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
