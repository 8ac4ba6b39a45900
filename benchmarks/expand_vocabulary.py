r"""Times init_tokenizer.py as a user runs it, including imports and the writing of files.

    python benchmarks/expand_vocabulary.py --source_tokenizer_dirs LLAMA2,LLAMA3 \
        --expand_tokens_files pieces.jsonl

Each combination runs `--repeats` times in a process of its own. The fastest counts: other work on
the machine only adds time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import UserError, run_main

SCRIPT = Path(__file__).resolve().parents[1] / "colossal_llama" / "tokenizer" / "init_tokenizer.py"


def main() -> None:
    """Times every source with every file of pieces and prints a table."""
    arguments = parse_arguments()
    results = [
        best_of(arguments.repeats, source, pieces)
        for source in arguments.source_tokenizer_dirs
        for pieces in arguments.expand_tokens_files
    ]
    columns = ["source", "asked", "new", "bridges", "unreachable", "wall_s", "cpu_s", "peak_memory_mb"]
    print(table(columns, [[result[column] for column in columns] for result in results]))
    if arguments.output_file is not None:
        write_json(arguments.output_file, results)


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description="Time the expansion of vocabularies.")
    named = {"type": existing_paths, "required": True}
    parser.add_argument("--source_tokenizer_dirs", **named, metavar="DIR[,DIR…]", help="tokenizers to expand")
    parser.add_argument("--expand_tokens_files", **named, metavar="FILE[,FILE…]", help="pieces to add to each")
    parser.add_argument(
        "--repeats", type=number_in_range(int, minimum=1), default=3, help="runs of which the fastest counts"
    )
    parser.add_argument("--output_file", type=Path, metavar="JSON", help="also write the figures there")
    arguments = parser.parse_args()
    parser.finish()
    return arguments


def existing_paths(text: str) -> list[Path]:
    """Parses a comma-separated list of paths (argparse `type=`)."""
    paths = [Path(part) for part in text.split(",") if part]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise argparse.ArgumentTypeError(f"{', '.join(absent)} does not exist")
    return paths


def best_of(repeats: int, source: Path, pieces: Path) -> dict:
    """Runs several times and returns the fastest."""
    return min((run_once(source, pieces) for _ in range(repeats)), key=lambda result: result["wall_s"])


def run_once(source: Path, pieces: Path) -> dict:
    """Expands once in a process of its own.

    Returns:
        the figures of its report, wall-clock and CPU seconds, and the process's peak memory in MB.

    Raises:
        UserError: the script failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "expanded"
        command = [sys.executable, str(SCRIPT), "--source_tokenizer_dir", str(source)]
        command += ["--target_tokenizer_dir", str(target), "--expand_tokens_file", str(pieces)]
        start = time.perf_counter()
        nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=nowhere)
        _, status, usage = os.wait4(process, 0)
        wall_s = time.perf_counter() - start
        if status != 0:
            raise UserError(f"{' '.join(command)} failed")
        report = json.loads((target / "expansion_report.json").read_text("utf-8"))
    return {
        "source": str(source),
        "pieces": str(pieces),
        **{name: report[name] for name in ("asked", "new", "bridges", "unreachable", "vocab_size")},
        "wall_s": round(wall_s, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory_mb": usage.ru_maxrss // 1024,
    }


if __name__ == "__main__":
    run_main(main)
