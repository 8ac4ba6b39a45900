"""Ranks on CPU processes that are forked from one which has imported all: importing takes each of
four ranks 6 s of a core otherwise.

They find what torchrun would tell them in their environment, and meet as they do under torchrun.
Launchers have tests of their own.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from tests.support.hosts import free_port

CONTEXT = multiprocessing.get_context("forkserver")
_OTHERS_END_WITHIN_S = 30.0  # once a rank has failed
_own_servers: set[int | None] = {None}
"""Process ids of the servers that were started here; None stands for no server."""


def run_ranks(
    program: str, arguments: list[str], ranks: int, project_root: Path, timeout_s: float = 300
) -> subprocess.CompletedProcess:
    """Runs a program on `ranks` processes that communicate through gloo, from the project's root.

    Args:
        program: path of a script, or name of a module (without `.py`) as after `python -m`.
        arguments: its command line.
        ranks: number of processes.
        project_root: the import root of all modules.
        timeout_s: then all processes are killed, and the return code is 124.

    Returns:
        The first return code that is not 0, and the output of all ranks as standard output.
    """
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        processes = start_ranks(program, arguments, ranks, project_root, output.name)
        returncode = _wait(processes, timeout_s)
        return subprocess.CompletedProcess([program, *arguments], returncode, output.read(), "")


def start_ranks(
    program: str, arguments: list[str], ranks: int, project_root: Path, output: str
) -> list[multiprocessing.process.BaseProcess]:
    """Starts a program on `ranks` processes, which append what they print to a file."""
    start_server(project_root)
    words, port = [program, *arguments], free_port()
    processes = [
        CONTEXT.Process(target=_be_rank, args=(rank, ranks, port, words, project_root, output)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return list(processes)


def start_server(project_root: Path) -> None:
    """Starts the process that the ranks are forked from, once, with an environment in which nothing
    computes on more than a core.

    One that a preparation in this process has started, which imports other modules, is stopped.
    """
    server = forkserver._forkserver
    if server._forkserver_pid not in _own_servers:
        server._stop()
    CONTEXT.set_forkserver_preload(["tests.support.preloaded"])
    former = dict(os.environ)
    path = [str(project_root), *filter(None, [former.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(path), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    try:
        forkserver.ensure_running()
        _own_servers.add(server._forkserver_pid)
    finally:
        os.environ.clear()
        os.environ.update(former)


def _be_rank(rank: int, ranks: int, port: int, words: list[str], project_root: Path, output: str) -> None:
    assert "tests.support.preloaded" in sys.modules, "the server has not imported what it should"
    os.chdir(project_root)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    place |= {"MASTER_ADDR": "127.0.0.1", "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = words
    if words[0].endswith(".py"):
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _wait(processes: list[multiprocessing.process.BaseProcess], timeout_s: float) -> int:
    """The first exit code that is not 0; the others are ended some time after it."""
    deadline, code = time.monotonic() + timeout_s, 0
    while any(process.is_alive() for process in processes):
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], timeout=1.0)
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed and not code:
            code, deadline = failed[0], min(deadline, time.monotonic() + _OTHERS_END_WITHIN_S)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
            code = code or 124
    return code or next((process.exitcode for process in processes if process.exitcode), 0)
