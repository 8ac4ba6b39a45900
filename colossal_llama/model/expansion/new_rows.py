"""Record of an expansion's embedding rows: where they begin, if trained. Imports no torch.

`init_tokenizer.py` and `init_model.py` record it in their reports. Models that are made of theirs
(by training, merging, export) carry it on in `new_rows.json`, which names no path of this host, and
which says whether a run has trained these rows.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.model.expansion.distillation.arguments import DISTILLED
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

NEW_ROWS_FILE, INIT_REPORT_FILE = "new_rows.json", "init_report.json"
_FIRST, _TRAINED = "first_new_row", "trained"


def first_new_row(directory: Path) -> int | None:
    """The first embedding row that the last expansion added to a model or tokenizer.

    Rows before it are those of the source; rows of padding may follow the new ones.

    Args:
        directory: of a model, an adapter or a tokenizer.

    Returns:
        None where no expansion is recorded, or where the last one added nothing.

    Raises:
        UserError: the record is damaged.
    """
    for name, read in _RECORDS.items():
        path = directory / name
        first, new = read(read_json_object(path, "remove it")) if path.is_file() else (None, None)
        if first is None:
            continue  # no such file, or one of another program
        if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (first, new)):
            raise UserError(
                f"{path} is damaged: new embedding rows that begin at {first!r}, {new!r} of them; remove it, and give "
                "--first_new_row N where it is needed"
            )
        return first if new else None
    return None


def new_rows_trained(directory: Path) -> bool | None:
    """True when the new rows of a model were trained or distilled, False when they are means.

    Args:
        directory: of a model or an adapter.

    Returns:
        None where nothing is recorded about it: the model was not expanded, or by another program.

    Raises:
        UserError: the record is damaged.
    """
    path = directory / NEW_ROWS_FILE
    if not path.is_file():
        report = directory / INIT_REPORT_FILE
        if not report.is_file() or first_new_row(directory) is None:
            return None
        return read_json_object(report, "remove it").get("init_method") == DISTILLED
    trained = read_json_object(path, "remove it").get(_TRAINED)
    if trained is not None and not isinstance(trained, bool):
        raise UserError(f"{path} is damaged: {_TRAINED} is {trained!r}, not true or false; remove it")
    return trained


def record_of_new_rows(first: int | None, trained: bool | None = None) -> dict[str, bytes]:
    """The file by which a model carries on where its new rows begin, by name; none without any.

    Args:
        first: row.
        trained: as `new_rows_trained` returns it.
    """
    if first is None:
        return {}
    record = {_FIRST: first} | ({} if trained is None else {_TRAINED: trained})
    return {NEW_ROWS_FILE: (json.dumps(record, indent=2) + "\n").encode()}


def _of_init_model(report: Mapping[str, Any]) -> tuple[Any, Any]:
    rows = report.get("rows")
    return (rows.get("kept"), rows.get("new")) if isinstance(rows, dict) else (None, None)


def _of_init_tokenizer(report: Mapping[str, Any]) -> tuple[Any, Any]:
    first, end = report.get("source_vocab_size"), report.get("vocab_size")
    return first, end - first if isinstance(first, int) and isinstance(end, int) else end


_RECORDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    NEW_ROWS_FILE: lambda record: (record.get(_FIRST), 1),
    INIT_REPORT_FILE: _of_init_model,
    "expansion_report.json": _of_init_tokenizer,
}
"""Readers of the first new row and of the number of new rows, by the names of their files."""
