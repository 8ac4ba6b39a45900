"""The Hugging Face hub: listings, files and the cache, by the package huggingface_hub.

Its variables hold: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN.
"""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from colossal_llama.utils.atomic_io import write_text
from colossal_llama.utils.distributed_env import is_rank_zero
from colossal_llama.utils.hub.files import Listing, RemoteFile
from colossal_llama.utils.hub.names import ModelName
from colossal_llama.utils.hub.problem import HubProblem

DEFAULT_REVISION = "main"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_UNRESOLVED = ("Failed to resolve", "name resolution", "Name or service not known", "No address associated")
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def look_up(name: ModelName) -> Listing:
    """Asks the hub for the commit of a revision and its files.

    Raises:
        HubProblem: the hub cannot be reached, or does not give them.
    """
    from huggingface_hub import HfApi, constants

    with hub_errors(name):
        found = HfApi().model_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    files = {}
    for sibling in found.siblings or ():
        if "/" not in sibling.rfilename:
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            files[sibling.rfilename] = RemoteFile(sibling.size, sha256, None if sibling.lfs else sibling.blob_id)
    if found.sha is None:
        raise HubProblem(f"{name}: {constants.ENDPOINT} names no commit of it, so it is no hub", is_network=True)
    return Listing(name.at(found.sha), name.revision, files)


def download(listing: Listing, file: str, local_dir: Path | None) -> None:
    """Downloads a file, or the rest of it after an interruption, unless it is there.

    Args:
        listing: of the repository.
        file: a name in it.
        local_dir: receives the file; None: the cache.

    Raises:
        HubProblem: the hub cannot be reached, or does not give the file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not (is_rank_zero() and sys.stderr.isatty()):
        disable_progress_bars()
    name = listing.name
    with hub_errors(name, file):
        hf_hub_download(name.repository, file, revision=name.revision, local_dir=local_dir)


def cache_root() -> Path:
    """The directory of all cached repositories."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_directory(name: ModelName) -> Path | None:
    """The directory of a revision in the cache, whole or not; None where there is none."""
    commit = name.commit
    if commit is None:
        with suppress(OSError, UnicodeDecodeError):
            commit = _reference(name).read_text(encoding="utf-8").strip()
    return _repository(name) / "snapshots" / commit if commit else None


def directory_of(listing: Listing) -> Path:
    """The directory in the cache of a commit's files, which need not exist."""
    return _repository(listing.name) / "snapshots" / str(listing.name.revision)


def remember(name: ModelName, branch: str | None) -> None:
    """Records in the cache, if it can be written, which commit a branch or tag has now.

    Args:
        name: with the commit.
        branch: what had been asked for; None for the default branch.
    """
    asked = name.at(branch or DEFAULT_REVISION)
    if asked.commit is None and cached_directory(asked) != cached_directory(name):
        with suppress(OSError):
            _reference(asked).parent.mkdir(parents=True, exist_ok=True)
            write_text(_reference(asked), str(name.revision))


def is_cached_blob(listing: Listing, file: str) -> bool:
    """True when the cache has the content of a large file from another revision."""
    sha256 = listing.files[file].sha256
    return sha256 is not None and (_repository(listing.name) / "blobs" / sha256).is_file()


def _repository(name: ModelName) -> Path:
    return cache_root() / f"models--{name.repository.replace('/', '--')}"


def _reference(name: ModelName) -> Path:
    return _repository(name) / "refs" / (name.revision or DEFAULT_REVISION)


@contextmanager
def hub_errors(name: ModelName, file: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a message that says what to do.

    Args:
        name: of the repository.
        file: the one that is downloaded; None while the repository is looked up.

    Raises:
        HubProblem: with that message.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The transport's own errors: of requests before huggingface_hub 1.0, of httpx since.
    transport_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (OSError, ValueError, RuntimeError, transport_error) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK_ERRNOS):
            raise  # of the file system: run_main has a sentence for it
        raise _problem_of(error, name, file) from error


def _problem_of(error: Exception, name: ModelName, file: str | None) -> HubProblem:
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return HubProblem(f"{OFFLINE_VARIABLE}=1 is set, which forbids to ask {endpoint}", is_network=True)
    if isinstance(error, errors.GatedRepoError):
        return HubProblem(
            f"{name} is gated: accept its terms on {endpoint}/{name.repository} with your account, and "
            f"{_token_advice()}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubProblem(
            f"{name.repository} has no revision {name.revision} on {endpoint}: give a branch, a tag or a whole commit "
            f"hash from {endpoint}/{name.repository}/commits/main",
            is_final=True,
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.DisabledRepoError):
        return HubProblem(f"{name} is disabled on {endpoint}: its owner or the hub has closed it")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubProblem(f"{endpoint} has no model {name.repository}, or it is private: if so, {_token_advice()}")
    if status in (401, 403):
        return HubProblem(f"{endpoint} refuses {name} (HTTP {status}): {_token_advice()}")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return HubProblem(f"{name} has no file {file} on {endpoint} any more: run the command again")
    if isinstance(error, ValueError) and status is None and not isinstance(error, OSError):
        return HubProblem(f"{name}: {endpoint} (HF_ENDPOINT) answers as no hub does: {_first_line(error)}")
    if status is not None:
        return HubProblem(f"{endpoint} fails with HTTP {status}: try again later", is_network=True)
    if file is not None and not isinstance(error, errors.LocalEntryNotFoundError):
        return HubProblem(
            f"the download of {file} of {name.repository} was interrupted ({_reason(error)})", is_network=True
        )
    return HubProblem(f"there is no network connection to {endpoint} ({_reason(error)})", is_network=True)


def _token_advice() -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return "give an access token of an account that may read it: export HF_TOKEN=hf_…"
    return "give an access token of an account that may read it (yours, in HF_TOKEN or of the last login, may not)"


def _reason(error: BaseException) -> str:
    """The cause of a failed connection in a few words."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(map(str, chain))
    if any(isinstance(link, socket.gaierror) for link in chain) or any(mark in text for mark in _UNRESOLVED):
        return "its name cannot be resolved"
    if any(isinstance(link, ConnectionRefusedError) for link in chain) or "refused" in text:
        return "connection refused"
    if any("Timeout" in type(link).__name__ for link in chain) or "timed out" in text:
        return "no answer in time"
    return _first_line(chain[-1])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
