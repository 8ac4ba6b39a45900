"""Survey of one host as JSON: Python, packages, code, directories, disk, GPUs.

It runs on the host that is surveyed, and imports no torch:

    python colossal_llama/cluster/survey.py --save_dir checkpoints --directories model
"""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.atomic_io import existing_ancestor
from colossal_llama.utils.cli import CollectingArgumentParser
from colossal_llama.utils.environment import code_fingerprint, installed_packages, query_gpus
from colossal_llama.utils.errors import UserError, run_main
from colossal_llama.utils.fingerprint import fingerprint_directory


def main() -> None:
    """Prints the survey of this host."""
    parser = CollectingArgumentParser(
        prog="survey.py",
        description="Print the Python version, packages, directories, disk space and GPUs of this host as JSON "
        "(colossal_llama/cluster/preflight.py runs it on each host).",
    )
    parser.add_argument("--save_dir", type=Path, required=True, metavar="DIR", help="where checkpoints will be written")
    parser.add_argument(
        "--mark", type=Path, metavar="FILE", help="a file that the master wrote next to the checkpoints"
    )
    parser.add_argument("--directories", type=Path, nargs="*", default=[], metavar="DIR", help="to be fingerprinted")
    options = parser.parse_args()
    parser.finish()
    print(json.dumps(survey(options.save_dir, options.mark, options.directories)))


def survey(save_dir: Path, mark: Path | None, directories: list[Path]) -> dict[str, Any]:
    """Surveys this host.

    Args:
        save_dir: its file system's free space is reported.
        mark: a file that the master has written; it is visible on a shared file system only.
        directories: to be fingerprinted.

    Returns:
        A dictionary for JSON. A directory that is missing or empty has no fingerprint (None).
    """
    gpus, gpu_error = query_gpus()
    return {
        "name": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": installed_packages(),
        "code": code_fingerprint(),
        "directories": {str(path): _fingerprint(path) for path in directories},
        "free_bytes": shutil.disk_usage(existing_ancestor(save_dir)).free,
        "sees_mark": mark is None or mark.exists(),
        "gpus": gpus,
        "gpu_error": gpu_error,
    }


def _fingerprint(directory: Path) -> str | None:
    try:
        return fingerprint_directory(directory) if has_content(directory) else None
    except OSError as error:  # a file vanished meanwhile, or is one of the system's own
        raise UserError(
            f"{error.filename or directory}: {error.strerror}; {directory} must be readable, and nothing may change "
            "it meanwhile"
        ) from error


def has_content(path: Path) -> bool:
    """True when the directory is not empty, as a mount point without its file system is."""
    return path.is_dir() and any(path.iterdir())


if __name__ == "__main__":
    run_main(main)
