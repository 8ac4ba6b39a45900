"""Run a model: complete a text, answer a question, chat, or answer a file of prompts.

The options: `python inference_example.py --help`.
"""

from colossal_llama.utils.errors import run_main

if __name__ == "__main__":
    run_main("colossal_llama.inference.cli:main")
