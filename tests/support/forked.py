"""A script in a process forked from one that has imported PyTorch: 4 s of a core less than anew."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.ranks import CONTEXT, start_server


def run_forked(
    project_root: Path,
    script: str,
    *arguments: object,
    stdin: str = "",
    timeout_s: float = 200,
    cwd: Path = Path("/"),
) -> subprocess.CompletedProcess:
    """Runs a script below the project's root as `run_script` does, without a GPU.

    What a script reads from the environment while it is imported is that of the server: a test of
    that needs `run_script`. One that is killed at the time limit has the return code -9.
    """
    start_server(project_root)
    words = [str(project_root / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8")
        process = CONTEXT.Process(target=_run, args=(words, [str(path) for path in streams], cwd))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        output, errors = (path.read_text("utf-8", "replace") if path.exists() else "" for path in streams[1:])
        return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def _run(words: list[str], streams: list[str], cwd: Path) -> None:
    for number, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (multiprocessing had closed it)
    os.chdir(cwd)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
