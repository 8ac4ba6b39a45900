"""Library and commands that give a LLaMA model a new language or domain."""

import sys

__version__ = "0.1.0"

# Other modules are written for 3.11, and would end in a traceback on an older Python.
if sys.version_info < (3, 11):  # noqa: UP036 (it runs on any)
    sys.stderr.write(
        "error: Python {}.{} is too old: run setup_environment.sh (3.11 or 3.12)\n".format(*sys.version_info)
    )
    raise SystemExit(2)
