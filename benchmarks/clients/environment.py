"""Environments of other programs, in which what the suite writes is opened by somebody else's code.

An environment is a virtual one on top of this interpreter's: what both need (PyTorch, numpy) is
found in the packages below, what is asked for is installed above and found first. So an environment
with transformers 5 takes seconds and 120 MB in place of minutes and 2.8 GB.

    this interpreter                   torch 2.13, transformers 4.51.3, …
              ↑ a .pth file
    .clients/transformers5-1f0c8a…     transformers 5.24.0, huggingface_hub, tokenizers
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.utils.file_lock import file_lock

DIRECTORY_VARIABLE = "COLOSSAL_LLAMA_CLIENTS"
_COMPLETE = ".complete"
_ADD_PACKAGES_BELOW = """
import sys, sysconfig
site = sysconfig.get_path("purelib")
with open(f"{site}/packages_below.pth", "w") as file:
    file.write("\\n".join(path for path in sys.argv[1:] if path != site) + "\\n")
"""


def clients_directory() -> Path:
    """Directory of all environments: $COLOSSAL_LLAMA_CLIENTS, or `.clients` in the checkout."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or Path(__file__).resolve().parents[2] / ".clients")


def client_environment(name: str, requirements: Sequence[str], unresolved: Sequence[str] = ()) -> Path:
    """Makes an environment unless it exists, and returns the path of its interpreter.

    Several processes may ask at once: one installs, the others wait.

    Args:
        name: of the environment; its directory has it, with a hash of the requirements.
        requirements: as pip takes them, pinned.
        unresolved: installed after them with `--no-deps`.

    Raises:
        subprocess.CalledProcessError: pip cannot install them (there is no package index, say).
    """
    wanted = repr((sys.version_info[:2], sys.prefix, list(requirements), list(unresolved)))
    directory = clients_directory() / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:10]}"
    python = directory / "bin" / "python"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(directory.with_name(f"{directory.name}.lock"), wait=True):
        if (directory / _COMPLETE).is_file():
            return python
        shutil.rmtree(directory, ignore_errors=True)  # an interrupted installation
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        subprocess.run([python, "-c", _ADD_PACKAGES_BELOW, *below], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if requirements:
            subprocess.run([*pip, *requirements], check=True)
        if unresolved:
            subprocess.run([*pip, "--no-deps", *unresolved], check=True)
        (directory / _COMPLETE).write_text(wanted)
    return python
