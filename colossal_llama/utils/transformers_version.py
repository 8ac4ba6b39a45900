"""Installed version of transformers, and which versions the suite runs with.

The engine's shard policies (`--plugin 3d` with tensor, pipeline or sequence parallelism) rewrite
the LLaMA of transformers 4.51. All else also runs with transformers 5. Imports no transformers.
"""

import functools
import re
from importlib import metadata

PINNED = "4.51.3"
"""Version in requirements.txt."""
TESTED_5 = "5.24.0"
"""Version in requirements-transformers5.txt."""


@functools.cache
def transformers_version() -> str:
    """Version of the installed transformers; empty where there is none."""
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return ""


def is_transformers_5() -> bool:
    """True when the installed transformers is 5.0 or later."""
    return _release(transformers_version()) >= (5, 0)


def unsupported_version() -> str | None:
    """Explains why training refuses the installed version; None where it does not.

    Between 4.51 and 5 the LLaMA of transformers changed from release to release what its layers
    take and return, and nothing of the suite was tried with them.
    """
    found = transformers_version()
    if _release(found)[0] >= 5 or _release(found) == _release(PINNED):
        return None
    return (
        f"transformers {found or 'is not installed'}: training needs {PINNED} (requirements.txt), or 5, tested with "
        f"{TESTED_5} (requirements-transformers5.txt); bash setup_environment.sh makes an environment"
    )


def untested_version() -> str | None:
    """Says that the installed version of transformers 5 is another than the tested one."""
    found = transformers_version()
    if not is_transformers_5() or _release(found) == _release(TESTED_5):
        return None
    return f"transformers {found} is not tested with this suite: of transformers 5, {TESTED_5} is"


def shard_policies_problem() -> str | None:
    """Explains why models cannot be divided over ranks; None where they can."""
    if _release(transformers_version()) == _release(PINNED):
        return None
    return (
        f"--tp, --pp and --sp need transformers {PINNED}, whose LLaMA ColossalAI's shard policies rewrite, and "
        f"{transformers_version()} is installed: leave them at 1, use --plugin zero2, zero2_cpu or gemini, or make the "
        "environment of requirements.txt"
    )


def _release(version: str) -> tuple[int, int]:
    """Major and minor number of a version."""
    numbers = re.findall(r"\d+", version)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


DTYPE_ATTRIBUTE = "dtype" if is_transformers_5() else "torch_dtype"
"""Attribute of transformers' configurations with the dtype of the weights."""
