r"""Exports a model as a complete directory for other programs: merged, in another dtype, as GGUF.

python colossal_llama/export/export_model.py --model_path runs/zh --output_dir export/zh \
        --dtype bfloat16 --gguf q8_0 --model_card --check "Hi"
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.export.arguments import parse_arguments
from colossal_llama.utils.errors import run_main


def main() -> None:
    """Parses the arguments and exports."""
    arguments = parse_arguments()
    from colossal_llama.export.directory import export

    export(arguments)


if __name__ == "__main__":
    run_main(main)
