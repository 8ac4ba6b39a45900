"""Fingerprints (SHA-256) of bytes, files and directories, to tell copies from each other."""

import hashlib
import os
from pathlib import Path


def fingerprint_bytes(*parts: bytes | memoryview) -> str:
    """Returns the SHA-256 of the parts, each preceded by its length (8 bytes), as hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def fingerprint_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_directory(directory: Path, whole_up_to_bytes: int = 1 << 20) -> str:
    """Returns a fingerprint of a directory without reading long files (weights, rows) as a whole.

    Args:
        directory: its files count by name, size and content, except hidden ones.
        whole_up_to_bytes: size up to which a file is read as a whole; of a longer one that many
            bytes are read, half of them at its beginning and half at its end.

    Returns:
        A SHA-256 as hexadecimal.
    """
    parts = []
    for path in sorted(directory.rglob("[!.]*")):
        if path.is_file():
            parts += [str(path.relative_to(directory)).encode(), _ends_of(path, whole_up_to_bytes)]
    return fingerprint_bytes(*parts)


def _ends_of(path: Path, limit_bytes: int) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= limit_bytes:
            return file.read()
        beginning = file.read(limit_bytes // 2)
        file.seek(-(limit_bytes // 2), os.SEEK_END)
        return size.to_bytes(8, "little") + beginning + file.read()
