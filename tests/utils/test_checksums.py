"""Checksums of a directory: any change of any file is named, and additional files are found."""

import json
import os
from pathlib import Path

import pytest

from colossal_llama.utils.checksums import (
    CHECKSUMS,
    ChecksumBuilder,
    checksum_of,
    differences,
    has_checksums,
    read_checksums,
    unlisted_files,
    write_checksums,
)
from colossal_llama.utils.errors import UserError

CONTENTS = {"a.bin": b"0123456789" * 1000, "empty": b"", "inner/b.bin": b"b", "model/c.bin": b"c"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files, with a list of their checksums; model/ has a list of its own."""
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_checksums(tmp_path / "model", {})
    write_checksums(tmp_path, {})
    return tmp_path


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how != "content":
        path.unlink()
    if how == "content":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif how == "length":
        path.write_bytes(content + b"\n")
    elif how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to("nowhere")
    elif how == "pipe":
        os.mkfifo(path)


def test_nothing_differs_in_an_undamaged_directory(directory):
    files = read_checksums(directory)
    assert set(files) == {*CONTENTS, f"model/{CHECKSUMS}"}
    assert differences(directory, files) == unlisted_files(directory, files) == []
    (directory / "a.bin").rename(directory / ".a.bin")
    (directory / "a.bin").symlink_to(".a.bin")
    assert differences(directory, files) == []


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin", "model/c.bin", f"model/{CHECKSUMS}"])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("content", "the content of {} is not what was written"),
        ("length", "{} has "),
        ("removal", "{} is missing"),
        ("directory", "{} is not a file"),
        ("link", "{} is missing"),
        ("pipe", "{} is not a file"),
    ],
)
def test_every_change_is_named(directory, name, how, reason):
    files = read_checksums(directory)
    damage(directory / name, how)
    (difference,) = differences(directory, files)
    assert difference.startswith(reason.format(name))


def test_additional_files_are_found(directory):
    for name in ("more", "model/more", ".hidden", ".git/config"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    assert unlisted_files(directory, read_checksums(directory)) == ["model/more", "more"]


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 1', '{"files": {}}'])
def test_a_damaged_list_is_named(directory, text):
    for path in (directory / "model" / CHECKSUMS, directory / CHECKSUMS):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path} cannot be read: it is incomplete or damaged"):
            read_checksums(directory)
    (directory / CHECKSUMS).write_text(json.dumps({"format": "colossal_llama.checksums.1", "files": {"a": {"b": 1}}}))
    with pytest.raises(UserError, match="incomplete or damaged"):
        read_checksums(directory)
    (directory / CHECKSUMS).write_text(json.dumps({"format": "colossal_llama.checksums.9", "files": {}}))
    with pytest.raises(UserError, match=r"the format is colossal_llama\.checksums\.9"):
        read_checksums(directory)


def test_checksums_known_from_writing_are_not_computed_again(directory):
    builder = ChecksumBuilder()
    for first in range(0, 10_000, 999):
        builder.update(CONTENTS["a.bin"][first : first + 999])
    assert builder.result() == checksum_of(directory / "a.bin")
    damage(directory / "a.bin", "content")
    write_checksums(directory, {"a.bin": builder.result(), "gone": builder.result()})
    files = read_checksums(directory)
    assert "gone" not in files
    assert len(differences(directory, files)) == 1
    assert has_checksums(directory)
    assert not has_checksums(directory / "inner")
