"""Evaluate models: benchmarks from their authors' files, bits per byte of texts, answers.

The options: `python evaluate.py --help`.
"""

import sys

try:
    from colossal_llama.utils.errors import run_main
except KeyboardInterrupt:  # as run_main ends from then on
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if __name__ == "__main__":
    run_main("colossal_llama.evaluation.cli:main")
