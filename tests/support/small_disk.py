"""A program that fills a small disk, and is repeated when the disk has grown."""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def run_before_and_after_it_grows(
    directory: Path, size: str, call: Callable[[Path], Sequence[object]], cwd: Path
) -> Path:
    """Runs a command twice, in a mount namespace of its own: the first time the disk is full.

    Args:
        directory: for all files; `disk` in it is the disk.
        size: of the disk at first, as tmpfs reads it.
        call: gives the command line for an output directory on the disk.
        cwd: directory in which it runs.

    Returns:
        A copy of the output directory.
    """
    disk = directory / "disk"
    disk.mkdir()
    words = shlex.join(map(str, call(disk / "out")))
    script = f"""
        cd {cwd}; mount -t tmpfs -o size={size} tmpfs {disk} || exit 77
        {words} > {directory}/first.txt 2>&1; echo $? > {directory}/first.rc
        mount -o remount,size=50m {disk}
        {words} > {directory}/second.txt 2>&1; echo $? > {directory}/second.rc
        cp -r {disk}/out {directory}/out
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    done = subprocess.run([unshare, "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, check=False)
    if not (directory / "first.rc").exists():
        pytest.skip(f"needs a mount namespace: {done.stderr.decode()}")
    first = (directory / "first.txt").read_text()
    assert (directory / "first.rc").read_text().strip() == "2", first
    assert "is full" in first
    assert "Traceback" not in first
    assert (directory / "second.rc").read_text().strip() == "0", (directory / "second.txt").read_text()
    return directory / "out"
