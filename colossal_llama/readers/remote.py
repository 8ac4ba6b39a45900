"""Files of remote file systems, through fsspec: `s3://`, `hf://`, `gs://`, `https://`, `memory://`.

A user's name, a password and what follows `?` in a URL may be secrets: they are used to open files,
and stand in no message, manifest or report.
"""

import io
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from colossal_llama.readers.formats import format_of
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_CONNECTIONS = 16  # at once, for what a web server tells of its files
BLOCK_BYTES = 4 << 20  # of one request
RETRY_DELAYS_S = (0.5, 2.0, 8.0)
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "oci": "ocifs",
    "oss": "ossfs",
}
"""Packages of pip that open a protocol; fsspec itself has the others."""
_STREAMED = ("http", "https")  # servers may ignore the range that a request asks for
_ABSENT = (404, 410)  # answers of a web server; fsspec takes any error of one for them
_SECRETS = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?:[^\s/@'\"]*@)?(?P<rest>[^\s?#'\"]*)(?P<more>[?#][^\s'\"]*)?")
_CONTENT_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "Digest", "blob_id", "sha256", "checksum")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or directory of a remote file system, with what of `pathlib.Path` is needed of it.

    Attributes:
        shown: its URL without secrets.
        root: the URL that was given, with its secrets.
        path: its path in the file system.
        size_bytes: of a file; None if the file system does not tell.
    """

    shown: str
    root: str = field(repr=False, compare=False)
    path: str = field(repr=False, compare=False)
    size_bytes: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.shown

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.shown.replace("://", ":/", 1))

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self._pure.name

    @property
    def suffix(self) -> str:
        """Ending of its name."""
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """Its protocol, and the parts of its path."""
        return self._pure.parts

    @property
    def parent(self) -> PurePosixPath:
        """The directory that it lies in, to be compared."""
        return self._pure.parent

    def resolve(self) -> "RemotePath":
        """The path: there are no links."""
        return self

    def relative_to(self, directory: "Path | RemotePath") -> PurePosixPath:
        """The path below a directory."""
        return PurePosixPath(*self.parts[len(directory.parts) :])

    @property
    def has_ranges(self) -> bool:
        """True where parts of the file can be read without what lies before them."""
        return self.size_bytes is not None and protocol_of(self.root) not in _STREAMED

    def open(self, mode: str = "rb", buffering: int = 1 << 20) -> io.BufferedReader:
        """Opens the file for reading; a connection that breaks is opened anew."""
        assert mode == "rb", "remote files are only read"
        return io.BufferedReader(_RetriedFile(self), max(buffering, io.DEFAULT_BUFFER_SIZE))


AnyPath = Path | RemotePath


def protocol_of(url: str) -> str:
    """Protocol of a URL, in lower case."""
    return url.partition("://")[0].lower()


def without_secrets(text: str) -> str:
    """Replaces what may be secret in all URLs of a text.

    >>> without_secrets("https://me:word@host/a.jsonl?token=x cannot be read")
    'https://host/a.jsonl?… cannot be read'
    """
    return _SECRETS.sub(lambda url: url["scheme"] + url["rest"] + ("?…" if url["more"] else ""), text)


def local_path_of(url: str) -> Path | None:
    """The path that a `file://` URL names; None for any other URL."""
    if protocol_of(url) not in ("file", "local"):
        return None
    rest = url.partition("://")[2]
    path = Path(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest)
    if path.exists() or "%" not in rest:
        return path
    from urllib.parse import unquote

    return Path(unquote(str(path)))


def url_problem(url: str) -> str | None:
    """Explains why a URL's files cannot be read here; None where its protocol can be opened."""
    from fsspec import get_filesystem_class

    protocol, shown = protocol_of(url), without_secrets(url)
    if "::" in url:
        return f"{shown}: one protocol is read at a time, without '::'"
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        packages = _PACKAGES.get(protocol)
        remedy = f"pip install {packages}" if packages else str(error)
        return f"{shown}: the package for {protocol}:// is not installed: {remedy}"
    except ValueError:
        return f"{shown}: {protocol}:// is no known protocol: {', '.join(sorted(_PACKAGES))} and others of fsspec are"
    return None


def is_of_this_process(path: AnyPath) -> bool:
    """True for a file that other processes do not see."""
    return isinstance(path, RemotePath) and protocol_of(path.root) == "memory"


def version_of(info: Mapping[str, Any]) -> str | None:
    """Facts of a file that change with its content; None if its file system tells none."""
    lfs = info.get("lfs") or {}
    told = {**info, **({"sha256": lfs["sha256"]} if isinstance(lfs, Mapping) and lfs.get("sha256") else {})}
    for keys in (_CONTENT_KEYS, _TIME_KEYS):
        found = [f"{key} {told[key]}" for key in keys if told.get(key)]
        if found:
            return ", ".join(found)
    return None


def list_remote(url: str) -> tuple[RemotePath, dict[RemotePath, str | None]]:
    """Lists the file of a URL, those that match its pattern, or all below its directory.

    Returns:
        The directory, and each file with its version (`version_of`).

    Raises:
        UserError: the file system cannot be reached, or has nothing of that name.
    """
    with _foreign_errors_named(url):
        system, root = _file_system(url)
        system.invalidate_cache()
        if "*" in root and protocol_of(url) not in _STREAMED:
            found = system.glob(root, detail=True)
            root = root[: root.index("*")].rpartition("/")[0]
        elif _is_file(system, root):
            found, root = {root: system.info(root)}, root.rpartition("/")[0]
        else:
            found = system.find(root, detail=True)
        if not found and not system.exists(root):
            system.ls(root)  # raises what `find` and `exists` pass over
            raise FileNotFoundError(root)
        infos = {path: info for path, info in sorted(found.items()) if info.get("type", "file") == "file"}
        if protocol_of(url) in _STREAMED:  # a page of links tells neither sizes nor versions
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                infos = dict(zip(infos, pool.map(system.info, infos), strict=True))
        files = {
            RemotePath(_shown(url, system, path), url, path, info.get("size")): version_of(info)
            for path, info in infos.items()
        }
    return RemotePath(_shown(url, system, root.rstrip("/")), url, root), files


def _is_file(system: "AbstractFileSystem", path: str) -> bool:
    """True for a file; a web server has a page for a directory, too, so that its name decides."""
    if protocol_of(path) in _STREAMED:
        return format_of(without_secrets(path).removesuffix("?…")) is not None
    return system.isfile(path)


def _file_system(url: str) -> tuple["AbstractFileSystem", str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, path


def _shown(url: str, system: "AbstractFileSystem", path: str) -> str:
    if "://" in path:
        return without_secrets(path).removesuffix("?…")
    host = getattr(system, "host", None)
    host = f"{host}/" if isinstance(host, str) and host and not path.startswith(host) else ""
    return f"{protocol_of(url)}://{host}{path.lstrip('/')}"


@contextmanager
def _foreign_errors_named(url: str) -> Iterator[None]:
    """Turns what a file system raises into a message: each has the errors of its own library."""
    shown = without_secrets(url)
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and getattr(cause, "status", None) not in _ABSENT:
            raise UserError(f"{shown} cannot be read ({_described(cause)})") from None
        raise UserError(f"{shown} does not exist, or may not be seen with the credentials of this host") from None
    except Exception as error:
        raise UserError(f"{shown} cannot be read ({_described(error)})") from None


def _described(error: BaseException) -> str:
    text = without_secrets(str(error)).strip()
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


class _RetriedFile(io.RawIOBase):
    """A remote file that is opened again, at the same position, when reading it fails."""

    def __init__(self, path: RemotePath):
        self._path, self._position = path, 0
        self._file: Any = None

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return self._path.has_ranges

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        if not self.seekable():
            raise io.UnsupportedOperation("this file is read from its beginning to its end")
        size_bytes = self._path.size_bytes
        assert size_bytes is not None, "a seekable file has a size"
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size_bytes}[whence]
        if self._file is not None:
            self._file.seek(self._position)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`.

        Raises:
            UserError: reading fails again and again.
        """
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                if self._file is None:
                    self._file = self._opened()
                block = self._file.read(len(buffer))
                if not block and self._path.size_bytes is not None and self._position < self._path.size_bytes:
                    raise EOFError(f"it ends after {self._position:,} of {self._path.size_bytes:,} bytes")
                break
            except Exception as error:  # each file system raises the errors of its own library
                self._drop()
                if delay_s is None or isinstance(error, FileNotFoundError | PermissionError):
                    raise UserError(
                        f"{self._path} cannot be read ({_described(error)}): run the same command again when it can "
                        "be; finished work is kept"
                    ) from None
                log_rank_zero(f"{self._path}: {_described(error)}: read again after {delay_s:g} s")
                time.sleep(delay_s)
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def _opened(self) -> Any:
        """The file, opened anew at the position."""
        system, _ = _file_system(self._path.root)
        if protocol_of(self._path.root) in _STREAMED:
            file = system.open(self._path.path, "rb", block_size=0)
            left = self._position
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                left -= len(block)
            return file
        file = system.open(self._path.path, "rb", block_size=BLOCK_BYTES)
        if self._position:
            file.seek(self._position)
        return file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # of a connection that is broken
                file.close()

    def close(self) -> None:
        """See `io.IOBase`."""
        self._drop()
        super().close()
