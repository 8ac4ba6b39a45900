"""Files of the project: what git tracks or would add, never an environment made inside the
checkout.
"""

import subprocess
from pathlib import Path


def project_files(root: Path, suffix: str = ".py") -> list[Path]:
    """Lists the files below a directory of the project whose names end in `suffix`, sorted.

    Git decides in a checkout: a virtual environment in `.venv` is ignored there. In an unpacked
    archive hidden directories are left out.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", f"*{suffix}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [root / name for name in listed.stdout.split("\0") if name]
        return sorted(file for file in files if file.is_file())
    found = (path for path in root.rglob(f"*{suffix}") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
