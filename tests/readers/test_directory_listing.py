"""Input files are found through links, once each, and what cannot be read is named."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from colossal_llama.readers.directory_listing import displayed, list_files, unread_message, unread_record


def make(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def test_files_are_sorted_found_through_links_and_hidden_ones_counted(tmp_path):
    directory, other = tmp_path / "in", tmp_path / "other"
    make(tmp_path, "in/b.jsonl", "in/a/c.jsonl", "in/a/d.txt", "in/.hidden.jsonl", "in/.git/e.jsonl", "other/f.jsonl")
    (directory / "link").symlink_to(other)
    (other / "cycle").symlink_to(directory)
    listing = list_files(directory, (".jsonl",))
    assert [str(file.path.relative_to(directory)) for file in listing.files] == ["a/c.jsonl", "b.jsonl", "link/f.jsonl"]
    assert [file.real_path for file in listing.files] == [str(file.path.resolve()) for file in listing.files]
    assert (listing.problems, listing.hidden, listing.unread) == ([], 2, [directory / "a" / "d.txt"])


def test_nothing_of_an_excluded_directory_is_listed_however_it_is_reached(tmp_path):
    make(tmp_path, "in/a.jsonl", "in/out/b.jsonl", "in/out/jsonl/c.jsonl", "in/out/d.txt")
    (tmp_path / "in" / "file.jsonl").symlink_to(tmp_path / "in" / "out" / "b.jsonl")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "in" / "out" / "jsonl")
    listing = list_files(tmp_path / "in", (".jsonl",), excluded=tmp_path / "in" / "out")
    assert [file.path.name for file in listing.files] == ["a.jsonl"]
    assert (listing.has_excluded, listing.unread, listing.problems) == (True, [], [])


def test_files_that_are_not_read_are_counted_by_ending_and_the_first_are_named(tmp_path):
    directory = tmp_path / "corpus"
    make(directory, "one.jsonl", "two.JSON", "three.json", "LICENSE", *(f"deep/{n:03d}.txt" for n in range(30)))
    (directory / "four.jsonl").mkdir()
    listing = list_files(directory, (".jsonl",))
    record = unread_record([(directory, listing)])
    assert record["count"] == 33
    assert record["by_ending"] == {".JSON": 1, ".json": 1, ".txt": 30, "LICENSE": 1}
    assert record["first"][0] == "corpus/LICENSE"
    assert record["directories_named_as_files"] == ["corpus/four.jsonl"]
    message = unread_message(record)
    assert "files that are not read: 33 (.JSON 1, .json 1, .txt 30, LICENSE 1): corpus/LICENSE, " in message
    assert "and 13 more\ndirectories that are named as files" in message
    assert unread_message(unread_record([(directory / "deep", list_files(directory / "deep", (".txt",)))])) == ""


def test_what_is_named_as_a_file_and_is_none_is_a_problem(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "absent.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jsonl"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null.jsonl", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    problems = "\n".join(list_files(tmp_path, (".jsonl",)).problems)
    assert f"{tmp_path}/pipe.jsonl is a named pipe: write what it gives into a file" in problems
    assert f"{tmp_path}/socket.jsonl is a socket" in problems
    assert f"{tmp_path}/absent.jsonl is a link to {tmp_path}/nowhere, which does not exist" in problems
    assert f"{tmp_path}/loop.jsonl is a link to {tmp_path}/loop.jsonl, which cannot be read: Too many" in problems
    assert os.geteuid() != 0 or f"{tmp_path}/null.jsonl is a device" in problems


def test_what_may_not_be_read_is_a_problem(tmp_path):
    make(tmp_path, "a.jsonl", "secret/b.jsonl")
    (tmp_path / "a.jsonl").chmod(0)
    (tmp_path / "secret").chmod(0)
    code = f"""if True:
        import os
        from pathlib import Path
        from colossal_llama.readers.directory_listing import list_files
        if os.geteuid() == 0:
            os.setuid(65534)
        print(*list_files(Path({str(tmp_path)!r}), (".jsonl",)).problems, sep=chr(10))
    """
    for parent in tmp_path.parents:  # that user may enter them
        if parent.owner() == "root" and os.geteuid() == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (tmp_path / "secret").chmod(0o700)
    if done.returncode:
        pytest.skip(done.stderr)
    assert f"{tmp_path}/a.jsonl may not be read: change its permissions" in done.stdout
    assert f"{tmp_path}/secret cannot be read: Permission denied" in done.stdout


def test_names_that_are_not_utf8_can_be_shown(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xe9.jsonl"
    os.close(os.open(path, os.O_CREAT))
    (found,) = list_files(tmp_path, (".jsonl",)).files
    assert displayed(found.path.name) == "\\xe9.jsonl"
