"""Compares a finished part with the checksums that were recorded when it was written."""

from collections.abc import Iterator
from pathlib import Path

from colossal_llama.dataset.prepare.cache import remove_own
from colossal_llama.dataset.prepare.part_writer import (
    DATA_FILE,
    METADATA_FILES,
    PART_FILES,
    part_name,
    read_part_json,
)
from colossal_llama.utils.checked_json import DamagedJsonError, has_checksum
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_file


def part_problems(output_dir: Path, index: int, recorded: dict | None = None) -> Iterator[str]:
    """Yields what of a part is missing or has changed since it was written.

    Args:
        output_dir: of the preparation.
        index: of the part.
        recorded: its entry in the manifest; None where there is no manifest yet.
    """
    name = part_name(index)
    arrow, jsonl = output_dir / "arrow" / name, output_dir / "jsonl" / f"{name}.jsonl"
    if not arrow.is_dir():
        yield f"arrow/{name} is missing"
    if not jsonl.is_file():
        yield f"jsonl/{name}.jsonl is missing"
    if not arrow.is_dir():
        return
    facts: dict = {}
    try:
        facts = read_part_json(arrow)
    except FileNotFoundError:
        yield "part.json is missing"
    except DamagedJsonError as error:
        yield f"part.json {error.reason}"
    if facts.get("name", name) != name:
        yield f"part.json is that of {facts['name']}"
    elif facts and recorded is not None and any(facts.get(key) != recorded[key] for key in recorded if key != "name"):
        yield "part.json differs from the manifest"
    yield from _file_problems(arrow, jsonl, recorded or facts, facts["metadata_sha256"] if has_checksum(facts) else {})


def _file_problems(arrow: Path, jsonl: Path, sums: dict, metadata_sums: dict) -> Iterator[str]:
    expected = {arrow / DATA_FILE: sums.get("arrow_sha256"), jsonl: sums.get("jsonl_sha256")}
    expected |= {arrow / file: metadata_sums.get(file) for file in METADATA_FILES}
    for path, sha256 in expected.items():
        if not path.is_file():
            if path != jsonl:
                yield f"arrow/{arrow.name}/{path.name} is missing"
        elif sha256 is not None and fingerprint_file(path) != sha256:
            yield f"{path.name} has changed since it was written"


def foreign_in_part(directory: Path) -> list[str]:
    """Names in a part's directory that are not those of files of a part.

    A directory that is empty does not count.
    """
    if directory.is_symlink() or not directory.is_dir():
        return [directory.name] if directory.is_symlink() or directory.exists() else []
    return [
        f"{directory.name}/{path.name}"
        for path in sorted(directory.iterdir())
        if path.name not in PART_FILES or (path.is_dir() and (path.is_symlink() or any(path.iterdir())))
    ]


def remove_part(output_dir: Path, index: int) -> None:
    """Removes the files of a part, so that it is made anew.

    Raises:
        UserError: its directory holds what is no file of a part; then nothing is removed.
    """
    name = part_name(index)
    arrow = output_dir / "arrow" / name
    if foreign := foreign_in_part(arrow):
        raise UserError(
            f"{output_dir / 'arrow' / foreign[0]} was not written by these scripts, and {name} must be made anew: move "
            "it away and run the same command again"
        )
    remove_own(output_dir / "jsonl" / f"{name}.jsonl")
    if arrow.is_dir():
        for path in list(arrow.iterdir()):
            remove_own(path)
        arrow.rmdir()
