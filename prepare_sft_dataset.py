"""Prepare fine-tuning data: conversations become rows in a fixed number of parts.

The options: `python prepare_sft_dataset.py --help`.
"""

from colossal_llama.utils.errors import run_main

if __name__ == "__main__":
    run_main("colossal_llama.dataset.prepare.cli:prepare_sft")
