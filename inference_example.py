"""Run a model: complete a text, answer a question, chat, or answer a file of prompts.

The options: `python inference_example.py --help`.
"""

import sys

try:
    from colossal_llama.utils.errors import run_main
except KeyboardInterrupt:  # as run_main ends from then on
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if __name__ == "__main__":
    run_main("colossal_llama.inference.cli:main")
