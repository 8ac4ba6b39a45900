"""Streams that a shell has closed, filled, or given an encoding of few letters."""

import re
import subprocess
import sys

import pytest

SAYS = r"print('\u4f60\u597d'); print('said', file=sys.stderr)"
REFUSES = r"raise UserError('no: \u4f60\u597d')"


def run(project_root, body: str, redirection: str, **env) -> subprocess.CompletedProcess:
    code = (
        "import os, sys\nfrom colossal_llama.utils.errors import UserError, run_main\n"
        f"def main():\n    {body}\nrun_main(main)"
    )
    command = f'"{sys.executable}" -c "$CODE" {redirection}'
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, cwd=project_root, check=False, env={"CODE": code, **env}
    )


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_stream_that_is_closed_or_full_changes_nothing_else(project_root, redirection):
    assert run(project_root, SAYS, redirection).returncode == 0
    done = run(project_root, REFUSES, redirection)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    if "2>" not in redirection:
        assert done.stderr == "error: no: 你好\n".encode()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_no_file_takes_the_place_of_a_closed_stream(project_root, tmp_path, redirection):
    body = f"file = open({str(tmp_path / 'file')!r}, 'w'); print('out'); os.write(2, b'err'); assert file.fileno() > 2"
    assert run(project_root, body, redirection).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_full_stdout_is_said_and_nothing_else(project_root):
    done = run(project_root, SAYS, ">/dev/full")
    assert done.returncode == 2
    assert done.stderr.decode().endswith("said\nerror: standard output cannot be written: No space left on device\n")
    done = run(project_root, f"print('lost'); {REFUSES}", ">/dev/full")
    assert (done.returncode, done.stderr.decode()) == (2, "error: no: 你好\n")


@pytest.mark.parametrize("words", ["train.py --help", "-m colossal_llama --help", "-m colossal_llama --version"])
def test_help_for_a_full_disk_or_a_reader_that_goes(project_root, words):
    command = [f"'{sys.executable}' {words} {to}" for to in (">/dev/full", "| :; exit ${PIPESTATUS[0]}")]
    full, closed = (
        subprocess.run(["bash", "-c", line], capture_output=True, cwd=project_root, check=False, env={})
        for line in command
    )
    assert re.fullmatch(rb"error: standard output.*: No space left on device\n", full.stderr)
    assert (full.returncode, closed.returncode, closed.stderr) == (2, 1, b"")


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_letters_that_the_terminal_lacks_are_escaped(project_root, env):
    done = run(project_root, SAYS, "", LC_ALL="C", **env)
    assert (done.returncode, done.stdout.decode("ascii")) == (0, "\\u4f60\\u597d\n")
    done = run(project_root, REFUSES, "", LC_ALL="C", **env)
    assert done.stderr.decode("ascii") == "error: no: \\u4f60\\u597d\n"


def test_bytes_that_are_no_text_are_read_as_such(project_root):
    body = "from colossal_llama.utils.cli import is_decodable; print(is_decodable(next(sys.stdin)))"
    done = run(project_root, body, "< <(printf '\\xff\\n')", LC_ALL="C.UTF-8")
    assert done.stdout == b"False\n"


def test_a_closed_pipe_is_taken_for_stdout_only_where_stdout_is_closed(project_root):
    done = run(project_root, "os.write(os.pipe()[1], b'x'); raise BrokenPipeError", "")
    assert done.returncode == 1
    assert b"BrokenPipeError" in done.stderr
    for body in ("[print('x' * 99, flush=True) for _ in range(9999)]", "print('x' * 999_999)"):
        done = run(project_root, body, "| head -c 3; exit ${PIPESTATUS[0]}")
        assert (done.returncode, done.stdout, done.stderr) == (1, b"xxx", b"")


def test_causes_in_the_host_are_sentences(project_root):
    for body, said in {
        "import no_such_package": "the package no_such_package is not installed in",
        "raise MemoryError": "the memory of this host does not suffice",
        "raise OSError('AF_UNIX path too long')": "TMPDIR",
        "raise OSError(24, 'Too many open files')": "ulimit -n",
        "raise OSError(36, 'File name too long', 'name')": "name: File name too long",
        "import tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d); os.getcwd()": "working directory",
    }.items():
        done = run(project_root, body, "")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"error: ")
        assert said in done.stderr.decode()
    done = run(project_root, "import colossal_llama.no_such_module", "")
    assert b"ModuleNotFoundError" in done.stderr
