"""Scripts of the project, run as a user does."""

import subprocess
import sys
from pathlib import Path
from typing import Any


def run_script(project_root: Path, script: str, *arguments: object, **settings: Any) -> subprocess.CompletedProcess:
    """Runs a script by its path, from another directory than the project's unless `cwd` names one.

    Args:
        project_root: the checkout.
        script: path below it.
        arguments: the command line, of which each becomes a string.
        settings: of subprocess.run; output is captured as text, and a failure is no error.
    """
    command = [sys.executable, str(project_root / script), *map(str, arguments)]
    return subprocess.run(command, **{"cwd": "/", "capture_output": True, "text": True, "check": False, **settings})
