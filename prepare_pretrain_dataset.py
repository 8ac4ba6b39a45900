"""Prepare pre-training data: documents become packed rows in a fixed number of parts.

The options: `python prepare_pretrain_dataset.py --help`.
"""

from colossal_llama.utils.errors import run_main

if __name__ == "__main__":
    run_main("colossal_llama.dataset.prepare.cli:prepare_pretrain")
