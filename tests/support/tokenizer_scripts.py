"""Runs the tokenizer's scripts as a user does."""

import json
import subprocess
import sys


def run_script(root, name, *arguments):
    command = [sys.executable, f"colossal_llama/tokenizer/{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
