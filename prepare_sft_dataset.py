"""Prepare fine-tuning data: conversations become rows in a fixed number of parts.

The options: `python prepare_sft_dataset.py --help`.
"""

import sys

try:
    from colossal_llama.utils.errors import run_main
except KeyboardInterrupt:  # as run_main ends from then on
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if __name__ == "__main__":
    run_main("colossal_llama.dataset.prepare.cli:prepare_sft")
