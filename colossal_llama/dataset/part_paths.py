"""Finds the parts that a path of `--dataset` means, and compares them with their manifest.

    data                  an output directory: the parts under data/arrow
    data/arrow            a directory of parts: all of them, by name
    data/arrow/part-00003 a part
    tokenized             a data set that another program saved with `save_to_disk`

Imports no torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.dataset.part_facts import FACTS_FILE, read_part_facts
from colossal_llama.dataset.prepare.manifest import read_manifest
from colossal_llama.readers.input_paths import no_directory_problem
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

MANIFEST = "manifest.json"
_ARROW = "arrow"
_STATE, _INFO = "state.json", "dataset_info.json"
_SPLITS = "dataset_dict.json"
_UNFINISHED = Path("cache", "run.json")
_PART_NAME = re.compile(r"part-(\d{5})")
_SHOWN = 10
_ONE_BY_ONE = "or give the parts that you want, for instance {}/part-*"


@dataclass(frozen=True)
class FoundParts:
    """Parts of an option, in order.

    Attributes:
        paths: their directories.
        notes: what the user should know of the directories they were found in.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def is_part(path: Path) -> bool:
    """True for a part that the prepare scripts wrote."""
    return (path / FACTS_FILE).is_file()


def is_saved_data_set(path: Path) -> bool:
    """True for a directory that `datasets.Dataset.save_to_disk` wrote, a part included."""
    return (path / _STATE).is_file() and (path / _INFO).is_file()


def missing_data_problem(path: Path) -> str | None:
    """Explains why a path is no directory; None where it is one."""
    problem, around = no_directory_problem(path), path.parent
    if problem and (is_part(around) or is_saved_data_set(around)) and path.is_file():
        return f"{problem}: give its directory, {around}"
    return problem


def find_parts(given: Sequence[str | Path], option: str, may_repeat: bool = False) -> FoundParts:
    """Finds the parts that the paths of an option mean, in the order given; a directory's by name.

    Args:
        given: parts, directories of parts, output directories, saved data sets.
        option: that names the paths on the command line, for messages.
        may_repeat: True where a part may be given twice.

    Raises:
        UserError: a path is none of these, a preparation is damaged or not finished, or a part is
            given twice; all problems are named.
    """
    found: list[Path] = []
    problems: list[str] = []
    notes: list[str] = []
    for path in map(Path, given):
        try:
            parts = _parts_of(path)
        except UserError as error:
            problems += [f"{option}: {problem}" for problem in error.problems]
        else:
            found += parts.paths
            notes += [f"{option}: {note}" for note in parts.notes]
    if not may_repeat:
        problems += [f"{option}: {problem}" for problem in _given_twice(found)]
    if problems:
        raise UserError(problems)
    return FoundParts(tuple(found), tuple(dict.fromkeys(notes)))


def left_out_notes(parts_by_option: Mapping[str, Sequence[Path]]) -> list[str]:
    """Says which parts of a preparation are not given, and what is wrong with its manifest.

    Args:
        parts_by_option: directories of parts, by the option that they belong to.
    """
    given: dict[Path, dict[str, str]] = {}
    for option, parts in parts_by_option.items():
        for path in (path for path in parts if is_part(path)):
            for part in (path.absolute(), path.resolve()):  # either may be a link
                if root := _preparation_of(part.parent):
                    given.setdefault(root, {})[part.name] = option
                    break
    return [note for root, options in given.items() for note in _compare_with_manifest(root, options)]


def _preparation_of(directory: Path) -> Path | None:
    """Output directory that has the records of a directory of parts; None where there is none."""
    for path in (directory.absolute(), directory.resolve()):
        records = (path.parent / MANIFEST, path.parent / _UNFINISHED)
        if path.name == _ARROW and any(record.exists() for record in records):
            return path.parent
    return None


def _parts_of(path: Path) -> FoundParts:
    if problem := missing_data_problem(path):
        raise UserError(problem)
    if is_part(path) or is_saved_data_set(path):
        return FoundParts((path,))
    if (path / _SPLITS).is_file():
        raise UserError(_splits_problem(path))
    if (path / MANIFEST).exists() or (path / _ARROW).is_dir():
        if not (path / _ARROW).is_dir():
            raise UserError(f"{path} holds {MANIFEST}, and no directory {_ARROW} with the parts: copy it too")
        return _parts_below(path / _ARROW)
    return _parts_below(path)


def _parts_below(directory: Path) -> FoundParts:
    """Parts or saved data sets that a directory holds."""
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    parts = [path for path in entries if is_part(path)]
    others = [path for path in entries if path not in parts and is_saved_data_set(path)]
    broken = [path for path in entries if _PART_NAME.fullmatch(path.name) and path not in parts]
    if parts:
        broken += [path for path in others if path not in broken]
        others = []
    if parts and broken:
        raise UserError(
            f"{directory} holds parts, and {_listed(path.name for path in broken)} without {FACTS_FILE}: copy the "
            f"directory again, {_ONE_BY_ONE.format(directory)}"
        )
    if not parts and not others:
        raise UserError(_no_parts_problem(directory))
    unread = [path.name for path in entries if path not in (*parts, *others)]
    notes = [f"not read in {directory}, as they are no parts: {_listed(unread)}"] if unread else []
    if parts:
        notes += _refuse_incomplete(directory, [path.name for path in parts])
    return FoundParts((*parts, *others), tuple(notes))


def _refuse_incomplete(directory: Path, names: list[str]) -> list[str]:
    """Compares the parts of a whole directory with the preparation's records.

    Returns:
        Notes, where there are no records to compare with.
    """
    root = _preparation_of(directory)
    remedy = f"copy the directory again, {_ONE_BY_ONE.format(directory)}"
    if root is not None and (root / MANIFEST).exists():
        try:
            prepared = [part["name"] for part in read_manifest(root)["parts"]]
        except UserError as error:
            raise UserError([f"{problem}, {_ONE_BY_ONE.format(directory)}" for problem in error.problems]) from error
        missing, unknown = _difference(prepared, names), _difference(names, prepared)
        problems = []
        if missing:
            problems.append(
                f"{directory}: {len(prepared):,} parts prepared, {len(prepared) - len(missing):,} found: "
                f"{_listed_as(missing)} missing; {remedy}"
            )
        if unknown:
            problems.append(
                f"{directory}: {_listed_as(unknown)} not in {root / MANIFEST}: of another preparation; {remedy}"
            )
        if problems:
            raise UserError(problems)
        return []
    if root is not None:
        raise UserError(
            f"{directory}: the preparation is not finished (no {root / MANIFEST}), {len(names):,} parts are there: run "
            f"the same command again, {_ONE_BY_ONE.format(directory)}"
        )
    numbers = [int(match[1]) for name in names if (match := _PART_NAME.fullmatch(name))]
    missing = [f"part-{number:05d}" for number in range(max(numbers, default=-1) + 1) if number not in set(numbers)]
    if missing:
        raise UserError(f"{directory} has no {MANIFEST} next to it, and {_listed_as(missing)} missing: {remedy}")
    return [f"{directory} has no {MANIFEST} next to it: whether these {len(names):,} parts are all is not recorded"]


def _compare_with_manifest(root: Path, options: Mapping[str, str]) -> list[str]:
    """Notes on the given parts of one preparation: those that are left out, or that differ."""
    if not (root / MANIFEST).exists():
        if (root / _UNFINISHED).is_file():
            return [f"warning: the preparation in {root} is not finished: {len(options):,} of its parts are given"]
        return []
    try:
        entries = read_manifest(root)["parts"]
    except UserError as error:
        return [f"warning: whether all prepared parts are given is not known: {error}"]
    notes = [
        f"warning: {root / _ARROW / entry['name']} is not the part that {root / MANIFEST} records: it was replaced"
        for entry in entries
        if entry["name"] in options and _is_another(root / _ARROW / entry["name"], entry["fingerprint"])
    ]
    left = [entry["name"] for entry in entries if entry["name"] not in options]
    if not left:
        return notes
    counts = Counter(options.values())
    by_option = ", ".join(f"{count:,} as {option}" for option, count in counts.items())
    given = f"{len(options):,} given" + (f" ({by_option})" if len(counts) > 1 else "")
    return [*notes, f"{root}: {len(entries):,} parts prepared, {given}: {_listed_as(left)} left out"]


def _is_another(part: Path, fingerprint: str) -> bool:
    try:
        return read_part_facts(part).fingerprint != fingerprint
    except UserError:  # damaged: reported when it is opened
        return False


def _given_twice(paths: Sequence[Path]) -> list[str]:
    first: dict[Path, Path] = {}
    problems = []
    for path in paths:
        known = first.setdefault(path.resolve(), path)
        if known is not path:
            also = f", as {known} too" if known != path else ""
            problems.append(f"{path} is given twice{also}: leave one out (--num_epochs repeats all data)")
    return list(dict.fromkeys(problems))


def _splits_problem(path: Path) -> str:
    listed = read_json_object(path / _SPLITS).get("splits")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    example = path / (names[0] if names else "train")
    return f"{path} holds the splits {_listed(names) or '(none)'}: give one of them, for instance {example}"


def _no_parts_problem(directory: Path) -> str:
    """Explains why a directory is no data, by what it holds."""
    suffixes = {path.suffix for path in directory.iterdir() if path.is_file()}
    problem = f"{directory} holds no prepared part (no {FACTS_FILE}) and is no data set saved by save_to_disk"
    of_parts = directory.parent / _ARROW
    if suffixes & {".jsonl"} and of_parts.is_dir():
        return f"{problem}: its jsonl files are the rows for other programs; give {of_parts}"
    if suffixes & {".parquet", ".arrow"}:
        return (
            f"{problem} (no {_STATE}): texts are prepared with prepare_pretrain_dataset.py or prepare_sft_dataset.py; "
            "rows of token ids are opened with datasets.load_dataset and saved with save_to_disk"
        )
    return (
        f"{problem}: give what prepare_pretrain_dataset.py or prepare_sft_dataset.py wrote, its directory {_ARROW}, or "
        f"parts of it ({_ARROW}/part-00000 …)"
    )


def _difference(names: Iterable[str], others: Iterable[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    shown = ", ".join(every[:_SHOWN])
    return f"{shown} and {len(every) - _SHOWN:,} more" if len(every) > _SHOWN else shown


def _listed_as(names: Sequence[str]) -> str:
    return f"{_listed(names)} {'is' if len(names) == 1 else 'are'}"
