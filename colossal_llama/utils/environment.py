"""Facts of this host on which results depend: installed packages, the project's code, GPUs.

They are read alike in a checkout and where the package is installed. Imports no torch.
"""

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from colossal_llama.utils.fingerprint import fingerprint_bytes

IMPORT_ROOT = Path(__file__).resolve().parents[2]
"""The directory that contains the package: the root of a checkout, or site-packages."""
_DISTRIBUTION = "colossal-llama"
_REQUIREMENTS = ("requirements.txt", "requirements-engine.txt")
_ENGINE = "colossalai"  # not in the distribution's metadata: it is installed without its dependencies
_ESSENTIAL = (_ENGINE, "torch", "transformers")  # where no list of requirements is found
_GPU_FIELDS = ("index", "name", "memory.total", "memory.used", "driver_version")


def is_checkout() -> bool:
    """True when the package lies in a checkout (or a copy of one), False where it is installed."""
    return all((IMPORT_ROOT / name).is_file() for name in _REQUIREMENTS)


def required_packages() -> list[str]:
    """Lists the names of the packages that the project requires, sorted.

    They come from the requirements files of a checkout, else from the metadata of the installed
    distribution.
    """
    if is_checkout():
        lines = [line for name in _REQUIREMENTS for line in (IMPORT_ROOT / name).read_text("utf-8").splitlines()]
    else:
        try:
            required = metadata.requires(_DISTRIBUTION) or ()
            lines = [_ENGINE, *(line for line in required if "extra ==" not in line)]
        except metadata.PackageNotFoundError:
            lines = list(_ESSENTIAL)
    return sorted({name for line in lines for name in re.findall(r"^[\w-]+", line)})


def installed_packages() -> dict[str, str | None]:
    """Returns the version of each required package; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in required_packages():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def code_fingerprint() -> str:
    """Returns a SHA-256 of the project's modules and scripts: of their names and contents."""
    package = IMPORT_ROOT / "colossal_llama"
    scripts = IMPORT_ROOT.glob("*.py") if is_checkout() else ()
    files = sorted([*scripts, *package.rglob("*.py"), *package.rglob("*.sh")])
    return fingerprint_bytes(
        *(part for path in files for part in (path.relative_to(IMPORT_ROOT).as_posix().encode(), path.read_bytes()))
    )


def peak_memory_bytes() -> int:
    """Returns the peak resident memory of this process so far.

    Linux's ru_maxrss is not used: it starts at the memory of the parent process (getrusage(2),
    execve(2)).
    """
    (peak_kib,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak_kib) * 1024


def query_gpus() -> tuple[list[dict[str, str]], str | None]:
    """Asks nvidia-smi for the GPUs of this host.

    Returns:
        A dictionary for each GPU with the fields of `nvidia-smi --query-gpu` (memory in MiB), none
        where there is no nvidia-smi; and the error message of nvidia-smi if it failed.
    """
    if shutil.which("nvidia-smi") is None:
        return [], None
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split()) or f"code {done.returncode}"
    lines = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(_GPU_FIELDS, cells, strict=True)) for cells in lines if len(cells) == len(_GPU_FIELDS)], None
