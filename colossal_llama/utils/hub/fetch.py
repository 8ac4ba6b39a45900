"""Directories of models that are given by name: from the cache, or downloaded into it."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

from colossal_llama.utils.cli import PROGRAM
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.disk_space import check_free_space
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub import huggingface, modelscope
from colossal_llama.utils.hub.files import (
    Listing,
    Needed,
    missing_files,
    no_weights_problem,
    read_listing,
    settings_files,
    weight_files,
)
from colossal_llama.utils.hub.names import ModelName
from colossal_llama.utils.hub.problem import HubProblem

_HUBS: dict[str, ModuleType] = {"huggingface": huggingface, "modelscope": modelscope}
_RETRY_AFTER_S = (1.0, 2.0, 4.0)
"""Pauses after a connection has broken off; a download goes on where it stopped."""


def option_directory(option: str, source: Path | ModelName, needed: Needed) -> Path:
    """`local_directory` for the value of an option, which errors name.

    Raises:
        UserError: see `fetch`.
    """
    try:
        return local_directory(source, needed)
    except UserError as error:
        raise UserError([f"{option}: {problem}" for problem in error.problems]) from error


def local_directory(source: Path | ModelName, needed: Needed) -> Path:
    """Returns a path as it is, and for a name the directory of the repository's files.

    Logs the commit and the cache of what is given by name.

    Raises:
        UserError: see `fetch`.
    """
    if isinstance(source, Path):
        return source
    directory = fetch(source, needed)
    origin = origin_of(directory) or source
    log_rank_zero(f"{source.at(None)} at revision {origin.revision}, from {directory}")
    return directory


def cached_copy(name: ModelName, needed: Needed) -> Path | None:
    """The directory in the cache with all files that are needed; None where one is missing."""
    cached = _HUBS[name.hub].cached_directory(name)
    return None if cached is None or missing_files(cached, needed) else cached


def fetch(name: ModelName, needed: Needed, asked: ModelName | None = None) -> Path:
    """Returns the directory in the cache with the files of a repository that are needed.

    What the cache lacks is downloaded. A whole copy in the cache serves where the hub cannot be
    asked; a part of one does not.

    Args:
        name: of the repository.
        needed: decides which files.
        asked: the name whose commit is that of `name`, if the caller has looked it up.

    Raises:
        UserError: there is no such repository or revision, no access, no network, no weights as
            safetensors, no room on the disk, or code of its own.
    """
    hub = _HUBS[name.hub]
    if name.commit and (cached := cached_copy(name, needed)):
        hub.remember(name, (asked or name).revision)
        return cached
    try:
        listing = hub.look_up(name)
    except HubProblem as problem:
        return _cached_instead(name, needed, problem)
    listing = replace(listing, asked=(asked or name).revision)
    directory = hub.directory_of(listing)
    if not directory.is_dir() or missing_files(directory, needed, listing):
        download_files(listing, needed, directory)
        if problems := missing_files(directory, needed):
            raise UserError(f"{directory}: {'; '.join(problems[:3])}: remove that directory and run the command again")
    hub.remember(listing.name, listing.asked)  # now, so that an interrupted download hides no whole copy
    return directory


def look_up(name: ModelName) -> Listing:
    """Asks the hub for the files of a repository.

    Raises:
        UserError: the hub cannot be asked, or has no such repository or revision.
    """
    return _HUBS[name.hub].look_up(name)


def exact_revision(name: ModelName) -> ModelName:
    """The name with the commit that its revision has now, by the hub or else by the cache.

    Ranks on several hosts that are given the result use the same files, whatever is pushed to the
    hub meanwhile.

    Raises:
        UserError: neither the hub nor the cache knows the revision.
    """
    hub = _HUBS[name.hub]
    if name.commit or name.hub == "modelscope":  # which names no commits: the ranks compare the files
        return name
    try:
        return hub.look_up(name).name
    except HubProblem as problem:
        cached = hub.cached_directory(name)
        if cached is None or problem.is_final:
            raise _not_available(name, problem, []) from problem
        return name.at(cached.name)


def download_files(listing: Listing, needed: Needed, directory: Path, local_dir: Path | None = None) -> list[str]:
    """Downloads the files that are needed, the small ones first, and refuses custom code early.

    Args:
        listing: of the repository.
        needed: decides which files.
        directory: where the files are then: `local_dir`, or the commit's directory in the cache.
        local_dir: receives the files in place of the cache.

    Returns:
        The names of the files.

    Raises:
        UserError: there are no safetensors, a file cannot be downloaded, or the disk is too small;
            the configuration names code, and the files are for the cache.
    """
    hub, source = _HUBS[listing.name.hub], str(listing.name)
    if needed is Needed.MODEL and (problem := no_weights_problem(listing.files, source)):
        raise UserError(problem)
    listing.write(directory)
    names = settings_files(listing.files, needed)
    for name in names:
        _download(listing, name, local_dir)
    if local_dir is None:
        _refuse_custom_code(directory, listing.name)
    if needed is Needed.MODEL:
        weights = weight_files(listing.files, directory, source)
        absent = [name for name in weights if listing.files[name].problem_in(directory / name)]
        if local_dir is None:
            absent = [name for name in absent if not hub.is_cached_blob(listing, name)]
        size_bytes = sum(listing.files[name].size_bytes or 0 for name in absent)
        remedy = "set HF_HOME to a directory on a larger disk"
        check_free_space(size_bytes, directory, f"the download of {source}", remedy)
        if absent:
            files = "1 weight file" if len(absent) == 1 else f"{len(absent)} weight files"
            log_rank_zero(f"downloading {files} of {source}: {size_bytes / 1e6:,.1f} MB …")
        for name in weights:
            _download(listing, name, local_dir)
        names += weights
    return names


def _refuse_custom_code(directory: Path, name: ModelName) -> None:
    """Refuses code before the weights are downloaded, with a way to edit what names it."""
    try:
        refuse_custom_code(directory)
    except UserError as error:
        advice = f"to edit it, download a copy: {PROGRAM} get_model {name} --output_dir DIR"
        raise UserError([*error.problems, advice]) from error


def _download(listing: Listing, file: str, local_dir: Path | None) -> None:
    """Downloads a file; a connection that breaks off is opened again a few times."""
    for pause_s in (*_RETRY_AFTER_S, None):
        try:
            _HUBS[listing.name.hub].download(listing, file, local_dir)
            return
        except HubProblem as problem:
            if not problem.is_network:
                raise
            if pause_s is None:
                raise UserError(f"{problem}: run the command again, which goes on where it stopped") from problem
            log_rank_zero(f"{problem}: trying again …")
            time.sleep(pause_s)


def origin_of(directory: Path) -> ModelName | None:
    """The repository and exact revision of a directory's files; None where none is known."""
    listing = read_listing(directory)
    return listing.name if listing else _origin_by_layout(directory)


def snapshot_name(directory: Path) -> ModelName | None:
    """The repository and commit of a directory in the cache of the Hugging Face hub; else None."""
    origin = _origin_by_layout(directory)
    return origin if origin is not None and directory.is_relative_to(huggingface.cache_root()) else None


def origin_record(directory: Path, key: str = "source_repository") -> dict[str, dict[str, str | None]]:
    """The entry of a record about a directory's origin; none for a directory of unknown origin."""
    origin = origin_of(directory)
    return {key: asdict(origin)} if origin else {}


def _origin_by_layout(directory: Path) -> ModelName | None:
    """The origin that the path of a snapshot tells, which another program has downloaded."""
    commit, snapshots, repository = directory.name, directory.parent, directory.parent.parent.name
    organisation, separator, name = repository.removeprefix("models--").partition("--")
    found = ModelName(f"{organisation}/{name}", commit)
    if snapshots.name != "snapshots" or not repository.startswith("models--") or not separator or not found.commit:
        return None
    return found


def _cached_instead(name: ModelName, needed: Needed, problem: HubProblem) -> Path:
    """The whole copy in the cache, where the hub gives none.

    Raises:
        UserError: there is none.
    """
    cached = None if problem.is_final else _HUBS[name.hub].cached_directory(name)
    missing = missing_files(cached, needed) if cached is not None else []
    if cached is None or missing:
        raise _not_available(name, problem, missing) from problem
    log_rank_zero(f"{'note' if problem.is_network else 'warning'}: {problem}; the copy in the cache is used")
    return cached


def _not_available(name: ModelName, problem: HubProblem, missing: list[str]) -> UserError:
    if not problem.is_network:
        return UserError(f"{name} is neither a directory nor a model that can be had: {problem}")
    root = _HUBS[name.hub].cache_root()
    found = f"no copy of it is in the cache {root}"
    if missing:
        found = f"the copy in the cache {root} is not whole ({'; '.join(missing[:3])})"
    return UserError(
        f"{name} is neither a directory nor a model that can be had: {problem}, and {found}. On a host with a network: "
        f"{PROGRAM} get_model {name} --output_dir DIR; copy DIR to this host and give it in place of the name"
    )
