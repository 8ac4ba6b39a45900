r"""Measures how fast the same documents are prepared from many files, and from every format.

    python benchmarks/prepare_inputs.py --pretrain_dir DIR --tokenizer_dir DIR --files 50000
    python benchmarks/prepare_inputs.py --pretrain_dir DIR --tokenizer_dir DIR --formats

`--files N` writes documents into one .jsonl file and into N files, and prepares both in turn: the
fastest run of each counts, since other work on the machine only adds time. `--formats` writes the
documents in each format and compression, prepares each once a round, and prints a Markdown table.
"""

import argparse
import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import orjson
import pyarrow as pa
from pyarrow import parquet

from benchmarks.prepare_throughput import run_script
from colossal_llama.utils.atomic_io import write_json

_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 6),
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=1),
}
_FILE_BYTES = 4_000_000  # of a file in the comparison of formats


def main() -> None:
    """Measures what is asked for, and prints it as tables."""
    arguments = _arguments()
    results: dict = {"processes": arguments.num_workers, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(dir=arguments.scratch_dir) as scratch:
        if arguments.files:
            results["files"] = _many_files(arguments, Path(scratch))
        if arguments.formats:
            results["formats"] = _formats(arguments, Path(scratch))
    if arguments.output:
        write_json(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain_dir", type=Path, required=True, help="pre-training records, .jsonl")
    parser.add_argument("--tokenizer_dir", type=Path, required=True, help="tokenizer")
    parser.add_argument("--files", type=int, default=0, help="compares so many files with one")
    parser.add_argument("--file_bytes", type=int, default=2000, help="size of each of them (default: %(default)s)")
    parser.add_argument("--formats", action="store_true", help="compares formats and compressions")
    parser.add_argument("--num_workers", type=int, default=2, help="processes")
    parser.add_argument("--rounds", type=int, default=2, help="number of runs of each")
    parser.add_argument("--scratch_dir", type=Path, help="directory for all files, which are removed")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args()


def _records(arguments: argparse.Namespace) -> list[dict]:
    paths = sorted(arguments.pretrain_dir.rglob("*.jsonl"))
    return [orjson.loads(line) for path in paths for line in path.open("rb")]


def _many_files(arguments: argparse.Namespace, scratch: Path) -> dict:
    short = [line for record in _records(arguments) if len(line := _line(record)) <= arguments.file_bytes]
    lines = itertools.cycle(short)
    (scratch / "one").mkdir()
    with (scratch / "one" / "all.jsonl").open("wb") as one:
        for number in range(arguments.files):
            content = b"".join(_of_size(lines, arguments.file_bytes))
            path = scratch / "many" / f"{number // 1000:04d}" / f"{number:06d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            one.write(content)
    runs = _runs(arguments, scratch, ["one", "many"])
    best = {name: min(walls) for name, walls in runs.items()}
    print(f"{arguments.files:,} files of about {arguments.file_bytes:,} bytes: {best['many']:.1f} s")
    print(f"the same bytes in one file: {best['one']:.1f} s; ratio {best['many'] / best['one']:.2f}")
    return runs


def _of_size(lines: Iterator[bytes], size_bytes: int) -> Iterator[bytes]:
    written = 0
    while written < size_bytes:
        line = next(lines)
        written += len(line)
        yield line


def _formats(arguments: argparse.Namespace, scratch: Path) -> dict:
    parts: list[list[dict]] = [[]]
    size_bytes = 0
    for record in _records(arguments):
        parts[-1].append(record)
        size_bytes += len(_line(record))
        if size_bytes > _FILE_BYTES * len(parts):
            parts.append([])
    names = []
    for kind, encode in _ENCODERS.items():
        for compression, compress in _COMPRESSIONS.items():
            name = kind + compression
            (scratch / name).mkdir()
            for number, part in enumerate(part for part in parts if part):
                (scratch / name / f"{number:03d}{name}").write_bytes(compress(encode(part)))
            names.append(name)
    runs = _runs(arguments, scratch, names)
    print("| MB/s of the .jsonl | " + " | ".join(compression or "plain" for compression in _COMPRESSIONS) + " |")
    print("|---|" + "---|" * len(_COMPRESSIONS))
    for kind in _ENCODERS:
        cells = [f"{size_bytes / 1e6 / min(runs[kind + compression]):.1f}" for compression in _COMPRESSIONS]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    return runs


def _runs(arguments: argparse.Namespace, scratch: Path, names: list[str]) -> dict[str, list[float]]:
    """Seconds of each round's runs, all inputs in turn."""
    walls: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            output = scratch / f"output-{name}-{number}"
            run = run_script("pretrain", scratch / name, arguments.tokenizer_dir, output, arguments.num_workers)
            walls[name].append(run["wall_s"])
            print(f"{name}: {run['wall_s']:.1f} s, {run['cpu_s']:.1f} s of processors", file=sys.stderr)
    return walls


def _line(record: dict) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _csv(records: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ("source", "target", "category"), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _table(records: list[dict]) -> pa.Table:
    return pa.table({name: [record[name] for record in records] for name in ("source", "target", "category")})


def _parquet(records: list[dict]) -> bytes:
    target = io.BytesIO()
    parquet.write_table(_table(records), target)
    return target.getvalue()


def _arrow(records: list[dict]) -> bytes:
    target, table = io.BytesIO(), _table(records)
    with pa.ipc.new_stream(target, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return target.getvalue()


_ENCODERS: dict[str, Callable[[list[dict]], bytes]] = {
    ".jsonl": lambda records: b"".join(map(_line, records)),
    ".json": lambda records: json.dumps(records, ensure_ascii=False, indent=1).encode(),
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


if __name__ == "__main__":
    main()
