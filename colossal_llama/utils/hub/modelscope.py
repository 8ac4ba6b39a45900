"""ModelScope: listings and files, by the package modelscope (an extra of this project).

ModelScope names no commit, so a revision is told from others by a digest of its files, and has a
directory of its own in the cache: `MODELSCOPE_CACHE/colossal_llama/ORG--NAME/DIGEST`. The package's
variables hold: MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN.
"""

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.files import RECORD, Listing, RemoteFile, read_listing
from colossal_llama.utils.hub.names import ModelName
from colossal_llama.utils.hub.problem import HubProblem

DEFAULT_REVISION = "master"
_RETRIES = {"MODELSCOPE_API_MAX_RETRIES": "1", "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2"}
"""With the package's own numbers of attempts a host without a network would wait for a minute."""
_NOT_OF_THE_MODEL = ("README.md", "LICENSE", ".gitattributes", ".gitignore")


def look_up(name: ModelName) -> Listing:
    """Asks ModelScope for the files of a revision.

    Raises:
        HubProblem: it cannot be reached, or does not give them.
        UserError: the package is not installed.
    """
    asked = name.revision or DEFAULT_REVISION
    with _hub_errors(name):
        found = _api().list_repo_files(name.repository, "model", revision=asked)
    files = {
        file.path: RemoteFile(file.size, file.sha256)
        for file in found
        if "/" not in file.path and not file.is_dir and file.path not in _NOT_OF_THE_MODEL
    }
    facts = json.dumps({path: asdict(file) for path, file in sorted(files.items())})
    return Listing(name.at(hashlib.sha256(facts.encode()).hexdigest()[:40]), name.revision, files)


def download(listing: Listing, file: str, local_dir: Path | None) -> None:
    """Downloads a file, or the rest of it after an interruption, unless it is there.

    Args:
        listing: of the repository.
        file: a name in it.
        local_dir: receives the file; None: the cache.

    Raises:
        HubProblem: ModelScope cannot be reached, or does not give the file.
    """
    name, remote = listing.name, listing.files[file]
    with _hub_errors(name, file):
        _api().download_file(
            name.repository,
            "model",
            file,
            revision=listing.asked or DEFAULT_REVISION,
            local_dir=local_dir or directory_of(listing),
            expected_sha256=remote.sha256,
            file_size=remote.size_bytes,
        )


def cache_root() -> Path:
    """The directory of all cached repositories."""
    given = os.environ.get("MODELSCOPE_CACHE")
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "modelscope") / "colossal_llama"


def cached_directory(name: ModelName) -> Path | None:
    """The directory of a revision in the cache, whole or not; None where there is none."""
    asked = name.revision or DEFAULT_REVISION
    found = []
    for record in _repository(name).glob(f"*/{RECORD}"):
        listing = read_listing(record.parent)
        if listing is not None and asked in (listing.asked or DEFAULT_REVISION, listing.name.revision):
            found.append((record.stat().st_mtime_ns, record.parent))
    return max(found)[1] if found else None


def directory_of(listing: Listing) -> Path:
    """The directory in the cache of a revision's files, which need not exist."""
    return _repository(listing.name) / str(listing.name.revision)


def remember(name: ModelName, branch: str | None) -> None:
    """Does nothing: the listing in each directory says which revision was asked for."""


def is_cached_blob(listing: Listing, file: str) -> bool:
    """False: each revision's files are its own."""
    return False


def _repository(name: ModelName) -> Path:
    return cache_root() / name.repository.replace("/", "--")


def _api() -> Any:
    for variable, value in _RETRIES.items():
        os.environ.setdefault(variable, value)
    if importlib.util.find_spec("modelscope_hub") is None:
        raise UserError(
            f"the package modelscope is not installed in {sys.executable}: install it there (pip install "
            "'modelscope>=1.40', or this project with [modelscope]), or use the Hugging Face hub"
        )
    from modelscope_hub import HubApi

    return HubApi()


@contextmanager
def _hub_errors(name: ModelName, file: str | None = None) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of requests, of urllib3 and of the package's own kinds
        from modelscope_hub import errors

        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise _problem_of(error, errors, name, file) from error


def _problem_of(error: Exception, errors: Any, name: ModelName, file: str | None) -> HubProblem:
    endpoint = _api()._config.endpoint if hasattr(_api(), "_config") else "ModelScope"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, errors.NotExistError):
        return HubProblem(
            f"{endpoint} has no model {name.repository}{f' at revision {name.revision}' if name.revision else ''}, or "
            "it is private: if so, give its access token in MODELSCOPE_API_TOKEN"
        )
    if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
        return HubProblem(f"{endpoint} refuses {name}: give an access token in MODELSCOPE_API_TOKEN ({reason})")
    if file is not None:
        return HubProblem(f"the download of {file} of {name.repository} was interrupted ({reason})", is_network=True)
    return HubProblem(f"there is no network connection to {endpoint} ({reason})", is_network=True)
