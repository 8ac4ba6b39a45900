"""Measures time and peak memory of init_model.py for an expanded tokenizer at width 4,096.

Makes a random LLaMA of that width with few layers, since init_model.py copies the layers byte by
byte. Runs the script as a user does in a process of its own. Prints its wall time, its peak
resident memory and the limit: twice the largest weight file.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory, number_in_range
from colossal_llama.utils.errors import UserError, run_main

_SCRIPT = Path(__file__).resolve().parents[1] / "colossal_llama" / "model" / "init_model.py"


def main() -> None:
    """Makes a model, initialises it in a subprocess, and prints time and memory."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="initialise-model-") as work_dir:
        source, target = Path(work_dir) / "source", Path(work_dir) / "target"
        # In a process of its own: a child's peak resident memory starts at that of its parent.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(make_source, source, arguments).result()
        seconds, peak_bytes = run_init_model(source, arguments.target_tokenizer, target)
        report = json.loads((target / "init_report.json").read_text())
        files = {path.name: path.stat().st_size for path in sorted(source.glob("*.safetensors"))}
    largest = max(files.values())
    rows = report["rows"]
    print(f"source weight files: {', '.join(f'{name} {size / 1e6:,.0f} MB' for name, size in files.items())}")
    print(f"rows: {rows['kept']:,} → {rows['total']:,}, width {arguments.width:,}, {report['dtype']}")
    print(f"wall time: {seconds:.1f} s, the interpreter's start and imports included")
    print(f"peak memory: {peak_bytes / 1e6:,.0f} MB = {peak_bytes / largest:.2f} × the largest weight file (limit 2)")


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source_tokenizer", type=existing_directory, required=True, help="LLaMA-2's tokenizer")
    parser.add_argument("--target_tokenizer", type=existing_directory, required=True, help="from init_tokenizer.py")
    parser.add_argument(
        "--width", type=number_in_range(int, minimum=8), default=4096, help="hidden size, a multiple of 8"
    )
    parser.add_argument("--layers", type=number_in_range(int, minimum=1), default=1, help="layers of the random model")
    parser.add_argument("--shard_size", default="10GB", help="largest weight file, in the format of transformers")
    parser.add_argument(
        "--work_dir", type=existing_directory, help="directory for the models, which are removed in the end"
    )
    arguments = parser.parse_args()
    parser.finish()
    return arguments


def make_source(directory: Path, arguments: Namespace) -> None:
    """Saves a random bfloat16 LLaMA with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(arguments.source_tokenizer, trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size=arguments.shard_size)
    for path in arguments.source_tokenizer.iterdir():
        shutil.copy(path, directory)


def run_init_model(source: Path, target_tokenizer: Path, target: Path) -> tuple[float, int]:
    """Runs init_model.py; returns its seconds and peak resident bytes (ru_maxrss)."""
    command = [sys.executable, str(_SCRIPT), "--source_model_and_tokenizer_path", str(source)]
    command += ["--target_tokenizer_path", str(target_tokenizer), "--target_model_path", str(target)]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise UserError("init_model.py failed: its message is above")
    return time.monotonic() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run_main(main)
