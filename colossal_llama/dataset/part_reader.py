"""Opens parts and data sets of other programs, memory-mapped, and reads their metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import datasets
import pyarrow

from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_content import CATEGORY_COLUMN, ROW_COLUMNS, check_structure, data_files
from colossal_llama.dataset.part_facts import FACTS_FILE, read_part_facts
from colossal_llama.dataset.part_paths import is_part, is_saved_data_set
from colossal_llama.dataset.tokenized.part import kind_of_each, open_tokenized
from colossal_llama.dataset.tokenized.scan import Scan
from colossal_llama.utils.cli import directory_problem
from colossal_llama.utils.errors import UserError


def open_parts(
    paths: Sequence[str | Path],
    max_length: int,
    option: str = "--dataset",
    scans: Mapping[Path, Scan] = MappingProxyType({}),
) -> list[Part]:
    """Opens parts and data sets of other programs, memory-mapped, and checks them.

    Args:
        paths: the directories.
        max_length: maximum length of a row in tokens.
        option: that names the paths on the command line, for messages.
        scans: of data sets of other programs that another process has read.

    Raises:
        UserError: parts are missing, damaged, no data set on disk, of longer rows or of several
            kinds; every one of them is named.
    """
    parts: list[Part] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            parts.append(_open(path, max_length, option, scans.get(path)))
        except UserError as error:
            problems += error.problems
    if not problems and not sum(len(part.rows) for part in parts):
        problems.append(f"{option}: the parts hold no rows")
    if not problems and len({part.kind for part in parts}) > 1:
        mixed = f"{option} mixes pre-training and conversation parts: use one kind, then the other"
        problems.append(mixed + kind_of_each(parts))
    if problems:
        raise UserError(problems)
    return parts


def _open(path: Path, max_length: int, option: str, known: Scan | None) -> Part:
    if reason := directory_problem(path):
        raise UserError(f"{option}: {path} {reason}")
    if is_part(path):
        return _open_part(path, max_length, option)
    if not is_saved_data_set(path):
        raise UserError(
            f"{option}: {path} is not a part written by prepare_pretrain_dataset.py or prepare_sft_dataset.py (no "
            f"{FACTS_FILE}), and no data set on disk"
        )
    try:
        return open_tokenized(path, max_length, known)
    except UserError as error:
        raise UserError([f"{option}: {problem}" for problem in error.problems]) from error


def _open_part(path: Path, max_length: int, option: str) -> Part:
    try:
        facts, files = read_part_facts(path), data_files(path)
        schemas = [check_structure(file) for file in files]
    except UserError as error:
        raise UserError([f"{option}: {problem}" for problem in error.problems]) from error
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, datasets and json each raise their own on a damaged file
        raise UserError(f"{option}: {path} cannot be read: {error}") from error
    if facts.max_length > max_length:
        raise UserError(
            f"{option}: {path} was prepared for rows of up to {facts.max_length} tokens, more than --max_length "
            f"{max_length}: raise --max_length, or prepare the data again with the shorter one"
        )
    part = Part(path=path, rows=rows, files=tuple(files), facts=facts, categories=category_names(rows.features))
    if problem := _contradiction(part, schemas):
        raise UserError(f"{option}: {path}: {problem}; copy the part again, or prepare the data again")
    return part


def category_names(features: datasets.Features) -> tuple[str, ...]:
    """Names of the numbers of categories; none if the columns do not have them."""
    feature = getattr(features.get(CATEGORY_COLUMN), "feature", None)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def _contradiction(part: Part, schemas: Sequence[pyarrow.Schema]) -> str | None:
    """Names the first fact on which the files of a part disagree; None where they agree."""
    facts, table = part.facts, part.rows.data
    for name in (*ROW_COLUMNS, CATEGORY_COLUMN):
        if name in table.schema.names and any(table.schema.field(name).type != s.field(name).type for s in schemas):
            return f"dataset_info.json gives the column {name} another type than the Arrow file"
    if facts.rows not in (None, len(part.rows)):
        return f"the Arrow file holds {len(part.rows):,} rows, and {FACTS_FILE} says {facts.rows:,}"
    if facts.arrow_sha256 is not None and len(part.files) > 1:
        return f"state.json names {len(part.files)} Arrow files, and a preparation writes one"
    tokens = int(part.row_lengths_tokens().sum())
    if facts.tokens != tokens:
        return f"the Arrow file holds {tokens:,} tokens, and {FACTS_FILE} says {facts.tokens:,}"
    if facts.categories not in (None, part.categories):
        return f"dataset_info.json names other categories than {FACTS_FILE}"
    return None
