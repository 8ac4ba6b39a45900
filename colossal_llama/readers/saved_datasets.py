"""Directories that programs have saved as a whole: data sets of `datasets`, and our own results."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

STATE, INFO, SPLITS, MANIFEST = "state.json", "dataset_info.json", "dataset_dict.json", "manifest.json"
OWN_FILES = frozenset({STATE, INFO, SPLITS})
"""Names of files that describe a data set of `datasets.save_to_disk`."""
DESCRIPTIONS = frozenset({INFO, "dataset_infos.json"})
"""Names of files that describe data of a hub, and are never data."""
_FOLDERS_OF_RESULTS = ("arrow", "jsonl")


@dataclass(frozen=True)
class SavedDirectory:
    """A directory whose files are not read as any others.

    Attributes:
        data_files: names of the files to be read, in order; None where subdirectories are read.
        own_files: names of the files that describe it.
        problem: why it is not read; None if it is.
    """

    data_files: tuple[str, ...] | None = ()
    own_files: tuple[str, ...] = ()
    problem: str | None = None


def saved_directory(directory: str, names: Collection[str]) -> SavedDirectory | None:
    """Recognises a saved directory by the names in it; None for any other directory.

    Args:
        directory: its path.
        names: of the files and directories in it.
    """
    try:
        if MANIFEST in names and any(folder in names for folder in _FOLDERS_OF_RESULTS) and _is_result(directory):
            return SavedDirectory(problem=_prepared(directory))
        if SPLITS in names:
            return _splits(directory)
        if STATE in names and INFO in names:
            return _dataset(directory, names)
    except UserError as error:
        return SavedDirectory(problem=str(error))
    return None


def problem_of_root(directory: Path) -> str | None:
    """Explains that a directory is inside the result of a preparation; None if it is not."""
    path = directory.absolute()
    is_inside = path.name in _FOLDERS_OF_RESULTS and (path.parent / MANIFEST).is_file()
    return _prepared(str(directory)) if is_inside and _is_result(str(path.parent)) else None


def _is_result(directory: str) -> bool:
    try:
        return {"identity", "parts"} <= read_json_object(Path(directory, MANIFEST)).keys()
    except UserError:  # a manifest of something else
        return False


def _prepared(directory: str) -> str:
    return f"{directory} is prepared already, and no raw data: give it to train.py as --dataset"


def _splits(directory: str) -> SavedDirectory:
    splits = read_json_object(Path(directory, SPLITS)).get("splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    if len(names) > 1:
        paths = ",".join(f"{directory}/{name}" for name in names)
        return SavedDirectory(
            problem=f"{directory} holds the splits {', '.join(names)} of a data set: give those that are to be read, "
            f"of {paths}"
        )
    return SavedDirectory(data_files=None, own_files=(SPLITS,))


def _dataset(directory: str, names: Collection[str]) -> SavedDirectory:
    state, info = (read_json_object(Path(directory, name)) for name in (STATE, INFO))
    features = info.get("features")
    if isinstance(features, dict) and "input_ids" in features:
        return SavedDirectory(problem=_prepared(directory))
    if state.get("_indices_files") or state.get("_indices_data_files"):
        return SavedDirectory(
            problem=f"{directory} is a selection of the rows in its files, as old versions of datasets saved it: load "
            "it with that version, call flatten_indices() and save it again"
        )
    listed = state.get("_data_files")
    files = tuple(str(file.get("filename")) for file in listed) if isinstance(listed, list) else ()
    if missing := [name for name in files if name not in names]:
        return SavedDirectory(
            problem=f"{directory}: {missing[0]}, which {STATE} names, is missing: copy the directory again"
        )
    return SavedDirectory(files, (STATE, INFO))
