"""Entry point of `python -m colossal_llama NAME …`."""

import sys

try:
    from colossal_llama.commands import main
except KeyboardInterrupt:  # as run_main ends from then on
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if __name__ == "__main__":
    main()
