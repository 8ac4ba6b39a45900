"""What one host has, as JSON: Python, packages, code, directories, disk, GPUs. Runs on that host; imports no torch.

python colossal_llama/cluster/survey.py --save_dir checkpoints --directories model data/arrow/part-00000
"""

import json
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(PROJECT_ROOT)

from colossal_llama.utils.atomic_io import existing_ancestor  # noqa: E402
from colossal_llama.utils.cli import CollectingArgumentParser  # noqa: E402
from colossal_llama.utils.errors import run_main  # noqa: E402
from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_directory  # noqa: E402

_REQUIREMENTS = ("requirements.txt", "requirements-engine.txt")
_GPU_FIELDS = ("index", "name", "memory.total", "memory.used", "driver_version")


def main() -> None:
    """Prints the survey of this host."""
    parser = CollectingArgumentParser(
        prog="survey.py",
        description="Print what this host has, as JSON (colossal_llama/cluster/preflight.py asks for it).",
    )
    parser.add_argument("--save_dir", type=Path, required=True, metavar="DIR", help="where checkpoints will go")
    parser.add_argument("--mark", type=Path, metavar="FILE", help="a file that the master wrote beside the checkpoints")
    parser.add_argument("--directories", type=Path, nargs="*", default=[], metavar="DIR", help="to be fingerprinted")
    options = parser.parse_args()
    parser.finish()
    print(json.dumps(survey(options.save_dir, options.mark, options.directories)))


def survey(save_dir: Path, mark: Path | None, directories: list[Path]) -> dict[str, Any]:
    """What this host has; everything in it is JSON."""
    found_gpus, gpu_error = gpus()
    return {
        "name": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": installed_packages(),
        "code": code_fingerprint(),
        "directories": {
            str(path): fingerprint_directory(path) if holds_something(path) else None for path in directories
        },
        "free_bytes": shutil.disk_usage(existing_ancestor(save_dir)).free,
        "sees_mark": mark is None or mark.exists(),
        "gpus": found_gpus,
        "gpu_error": gpu_error,
    }


def holds_something(path: Path) -> bool:
    """Whether the directory is there; an empty one is where its file system should be mounted."""
    return path.is_dir() and any(path.iterdir())


def installed_packages() -> dict[str, str | None]:
    """The version of each package that the project requires; None where it is not installed."""
    names = set()
    for file in _REQUIREMENTS:
        for line in (PROJECT_ROOT / file).read_text(encoding="utf-8").splitlines():
            names |= set(re.findall(r"^[\w-]+", line))
    found = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def code_fingerprint() -> str:
    """Differs when a script or module of the project does."""
    package = PROJECT_ROOT / "colossal_llama"
    files = [*PROJECT_ROOT.glob("*.py"), *package.rglob("*.py"), *package.rglob("*.sh")]
    parts = [
        part
        for path in sorted(files)
        for part in (path.relative_to(PROJECT_ROOT).as_posix().encode(), path.read_bytes())
    ]
    return fingerprint_bytes(*parts)


def gpus() -> tuple[list[dict[str, str]], str | None]:
    """A dictionary for each GPU, as nvidia-smi shows them (memory in MiB), none without nvidia-smi; and what it said when it failed."""
    if shutil.which("nvidia-smi") is None:
        return [], None
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split()) or f"code {done.returncode}"
    lines = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(_GPU_FIELDS, cells, strict=True)) for cells in lines if len(cells) == len(_GPU_FIELDS)], None


if __name__ == "__main__":
    run_main(main)
