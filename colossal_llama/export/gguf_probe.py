"""Answers a prompt with llama.cpp (package xllamacpp), in a process of its own.

`main` takes a JSON file: `model` (a GGUF file), `prompt_ids`, `max_new_tokens`, and the file to
write: `answer` (JSON). Imports nothing of the package.
"""

import importlib.metadata
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any


def main() -> None:
    """Loads the file, and writes the ids that continue the prompt greedily."""
    request = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = request["model"]
    settings.n_ctx = len(request["prompt_ids"]) + request["max_new_tokens"] + 8
    settings.n_parallel, settings.warmup, settings.verbosity = 1, False, -1
    server = xllamacpp.Server(settings)
    body: dict[str, Any] = {"prompt": request["prompt_ids"], "n_predict": request["max_new_tokens"]}
    body |= {"temperature": 0.0, "samplers": ["temperature"], "return_tokens": True}
    address = f"{server.listening_address}/completion"
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as reply:
        found = json.load(reply)
    answer = {
        "ids": found["tokens"],
        "text": found["content"],
        "xllamacpp": importlib.metadata.version("xllamacpp"),
    }
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
