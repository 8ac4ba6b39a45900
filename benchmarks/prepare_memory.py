"""Measures the peak memory of preparing a large corpus, over the process tree.

    python benchmarks/prepare_memory.py --corpus_dir DIR --tokenizer_dir DIR --work_dir DIR

The corpus repeats the documents of a small one, each time with its lines in another order and with
random new words. Memory is the sum of the processes' proportional set sizes, which counts shared
pages once. The sum of their resident sizes, which counts them once a process, is printed too. Needs
disk space of about seven times the corpus; everything is removed in the end.
"""

import json
import os
import random
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import orjson

from benchmarks.generated_corpus import write_files
from benchmarks.measured_process import measured
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory, number_in_range
from colossal_llama.utils.errors import run_main

_SCRIPT = Path(__file__).resolve().parents[1] / "prepare_pretrain_dataset.py"
_FILE_BYTES = 500_000_000
_NEW_WORD_EVERY = 2_000  # characters
_POLL_INTERVAL_S = 0.5


def main() -> None:
    """Makes the corpus, prepares and verifies it, and prints the figures."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="prepare-memory-") as work_dir:
        corpus, output = Path(work_dir) / "corpus", Path(work_dir) / "output"
        corpus_bytes = make_corpus(corpus, arguments.corpus_dir, int(arguments.gigabytes * 1e9))
        inputs = ["--data_input_dirs", corpus, "--tokenizer_dir", arguments.tokenizer_dir, "--data_output_dirs", output]
        result = {"corpus_bytes": corpus_bytes, "num_workers": arguments.num_workers}
        result |= figures([*inputs, "--num_workers", arguments.num_workers])
        result |= facts_of(output)
        print(json.dumps(result, indent=2), flush=True)
        result["verify"] = figures(["--verify", output])
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(arguments.output, result)


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus_dir", type=existing_directory, required=True, help="pre-training records, .jsonl")
    parser.add_argument("--tokenizer_dir", type=existing_directory, required=True)
    parser.add_argument(
        "--work_dir", type=existing_directory, help="directory for all files, which are removed in the end"
    )
    parser.add_argument("--gigabytes", type=number_in_range(float, above=0), default=5.0, help="size of the corpus")
    parser.add_argument("--num_workers", type=number_in_range(int, minimum=1), default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    arguments = parser.parse_args()
    parser.finish()
    return arguments


def make_corpus(directory: Path, source: Path, size_bytes: int) -> int:
    """Writes .jsonl files of about `size_bytes` together; returns their size."""
    records = [orjson.loads(line) for path in sorted(source.rglob("*.jsonl")) for line in path.open("rb")]
    return write_files(directory, differing_records(records), size_bytes, _FILE_BYTES)


def differing_records(records: list[dict]) -> Iterator[dict]:
    """Yields the records again and again, in another order each time, with unique documents."""
    generator = random.Random(0)
    while True:
        generator.shuffle(records)
        for record in records:
            lines = record["target"].splitlines()
            generator.shuffle(lines)
            for _ in range(0, len(record["target"]), _NEW_WORD_EVERY):
                word = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=9))
                lines.insert(generator.randrange(len(lines) + 1), word)
            yield {**record, "target": "\n".join(lines)}


def figures(options: list) -> dict:
    """Runs the script; returns its seconds and the peak memory of its process tree.

    Raises:
        UserError: the script failed.
    """
    run = measured([sys.executable, _SCRIPT, *options], interval_s=_POLL_INTERVAL_S)
    return {
        "seconds": round(run.wall_s, 1),
        "peak_pss_mb": round(run.peak_pss_bytes / 1e6),
        "peak_rss_mb": round(run.peak_rss_bytes / 1e6),
        "peak_pss_of_one_process_mb": round(run.peak_pss_of_one_bytes / 1e6),
    }


def facts_of(output: Path) -> dict:
    """Reads the manifest's totals, the times of the stages, and the size of the output."""
    totals = json.loads((output / "manifest.json").read_bytes())["totals"]
    size = {name: sum(path.stat().st_size for path in (output / name).rglob("*")) for name in ("arrow", "jsonl")}
    tokens = totals["tokens_out"]
    return {
        "documents": totals["documents"],
        "tokens": tokens,
        "fill": totals["fill"],
        "arrow_bytes_per_token": size["arrow"] / tokens,
        "jsonl_bytes_per_token": size["jsonl"] / tokens,
        "stages": {
            key: value
            for key, value in json.loads((output / "last_run.json").read_bytes()).items()
            if key != "modified_ns"
        },
    }


if __name__ == "__main__":
    run_main(main)
