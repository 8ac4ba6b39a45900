r"""Measures data preparation against a lower bound: reading, parsing, tokenizing, packing, writing.

    python benchmarks/prepare_throughput.py --pretrain_dir DIR --tokenizer_dir DIR
    python benchmarks/prepare_throughput.py --pretrain_dir DIR --tokenizer_dir DIR \
        --sft_dir DIR --sft_tokenizer_dir DIR

The lower bound ("floor") consists of the same steps in their simplest form. Each process reads and
parses whole files, and passes all texts of a file to `encode_batch_fast` at once. Then the lengths
are packed, and Arrow files of ids and labels are written. The script's time also includes starting
Python, loading the tokenizer, checking records, the jsonl files, checksums and flushing to disk.
Script and floor run in turn, and the fastest of each counts: other work on the machine only adds
time. The ratio of every round is printed too. On a busy machine the ratio of CPU times is more
reliable.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism, here as in the script
os.environ["USE_TORCH"] = "0"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"

import numpy as np
import orjson
import psutil
import pyarrow as pa

from benchmarks.measured_process import measured
from colossal_llama.dataset.splicing import splice_best_fit
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import table

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 4096
NUM_PARTS = 10


def main() -> None:
    """Measures all kinds of data that are given, and prints the tables."""
    arguments = _arguments()
    results: dict = {"processes": arguments.num_workers, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(dir=arguments.scratch_dir) as scratch:
        results["pretrain"] = _measure("pretrain", arguments.pretrain_dir, arguments.tokenizer_dir, arguments, scratch)
        results["fixed_cost_per_part_s"] = _fixed_cost_per_part(arguments, Path(scratch))
        if arguments.sft_dir:
            tokenizer_dir = arguments.sft_tokenizer_dir or arguments.tokenizer_dir
            results["sft"] = _measure("sft", arguments.sft_dir, tokenizer_dir, arguments, scratch)
    _print(results)
    if arguments.output:
        write_json(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain_dir", type=Path, required=True, help="pre-training records")
    parser.add_argument(
        "--tokenizer_dir",
        type=Path,
        required=True,
        help="tokenizer; LLaMA-2's if --sft_dir is given without --sft_tokenizer_dir",
    )
    parser.add_argument("--sft_dir", type=Path, help="conversations; not measured without")
    parser.add_argument(
        "--sft_tokenizer_dir", type=Path, help="tokenizer for the conversations (default: --tokenizer_dir)"
    )
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--rounds", type=int, default=2, help="number of runs of each")
    parser.add_argument(
        "--scratch_dir", type=Path, help="directory for the output, which is removed (default: the system's)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args()


def _measure(kind: str, data_dir: Path, tokenizer_dir: Path, arguments: argparse.Namespace, scratch: str) -> dict:
    runs, floors = [], []
    for number in range(arguments.rounds):
        output = Path(scratch) / f"{kind}-{number}"
        runs.append(run_script(kind, data_dir, tokenizer_dir, output, arguments.num_workers))
        floors.append(_floor(kind, data_dir, tokenizer_dir, Path(scratch), arguments.num_workers))
    script, floor = min(runs, key=lambda run: run["wall_s"]), min(floors, key=lambda floor: floor["total_s"])
    by_round = [
        {"wall": run["wall_s"] / floor["total_s"], "cpu": run["cpu_s"] / floor["cpu_s"]}
        for run, floor in zip(runs, floors, strict=True)
    ]
    ratios = {"wall": script["wall_s"] / floor["total_s"], "cpu": script["cpu_s"] / floor["cpu_s"], "rounds": by_round}
    return {"script": script, "floor": floor, "ratios": ratios}


# --- Script ---


def run_script(kind: str, data_dir: Path, tokenizer_dir: Path, output: Path, num_workers: int, *more: str) -> dict:
    """Runs a prepare script; returns its times, tokens, and the memory of its process tree."""
    command = [sys.executable, ROOT / f"prepare_{kind}_dataset.py", "--data_input_dirs", data_dir, "--tokenizer_dir",
               tokenizer_dir, "--data_output_dirs", output, "--num_workers", str(num_workers), *more]  # fmt: skip
    if kind == "sft":
        vocabulary = load_tokenizer(tokenizer_dir).get_vocab()
        command += ["--llama_version", "3" if "<|eot_id|>" in vocabulary else "2"]
    run = measured(command)
    manifest = json.loads((output / "manifest.json").read_bytes())
    arrow_bytes = sum(path.stat().st_size for path in (output / "arrow").rglob("*.arrow"))
    tokens = manifest["totals"]["tokens_out"]
    return {
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "tokens": tokens,
        "tokens_per_s": manifest["totals"]["tokens_in"] / run.wall_s,
        "fill": manifest["totals"]["fill"],
        "peak_mib": run.peak_rss_bytes / 2**20,
        "arrow_bytes_per_token": arrow_bytes / tokens,
        "stages": json.loads((output / "last_run.json").read_bytes()),
    }


def _fixed_cost_per_part(arguments: argparse.Namespace, scratch: Path) -> float:
    """Measures the seconds that each further part costs, on 120 documents."""
    data_dir = scratch / "few"
    data_dir.mkdir()
    lines = [json.dumps({"source": "", "target": f"A short text, number {n}.", "category": "few"}) for n in range(120)]
    (data_dir / "few.jsonl").write_text("\n".join(lines))
    walls = {}
    for parts in (10, 110):
        more = ("--num_spliced_dataset_bins", str(parts))
        runs = [
            run_script("pretrain", data_dir, arguments.tokenizer_dir, scratch / f"few-{parts}-{n}", 1, *more)["wall_s"]
            for n in range(arguments.rounds)
        ]
        walls[parts] = min(runs)
    return (walls[110] - walls[10]) / 100


# --- Floor ---


def _floor(kind: str, data_dir: Path, tokenizer_dir: Path, scratch: Path, num_workers: int) -> dict:
    backend = load_tokenizer(tokenizer_dir).backend_tokenizer
    definition = scratch / "floor-tokenizer.json"
    backend.save(str(definition))
    files = sorted(data_dir.rglob("*.jsonl"), key=lambda path: -path.stat().st_size)
    with multiprocessing.get_context("spawn").Pool(num_workers, _open_floor_tokenizer, (definition,)) as pool:
        pool.map(_nothing, range(4 * num_workers))  # all processes have started
        cpu_before, started = _family_cpu_s(), time.perf_counter()
        lengths = np.concatenate(
            pool.map(_encode_texts if kind == "pretrain" else _encode_messages, files, chunksize=1)
        )
        encoded = time.perf_counter()
        clipped = np.concatenate([_split_lengths(length) for length in lengths.tolist()])
        rows = splice_best_fit(clipped, MAX_LENGTH) if kind == "pretrain" else clipped
        packed = time.perf_counter()
        share = int(clipped.sum()) // NUM_PARTS
        pool.map(
            _write_arrow,
            [(scratch / f"floor-{part}.arrow", share, max(len(rows) // NUM_PARTS, 1)) for part in range(NUM_PARTS)],
        )
        written, cpu_after = time.perf_counter(), _family_cpu_s()
    return {
        "cpu_s": cpu_after - cpu_before,
        "read_parse_encode_s": encoded - started,
        "pack_s": packed - encoded,
        "write_s": written - packed,
        "total_s": written - started,
    }


def _family_cpu_s() -> float:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(member.cpu_times().user + member.cpu_times().system for member in family)


def _open_floor_tokenizer(definition: Path) -> None:
    global _tokenizer
    from tokenizers import Tokenizer

    _tokenizer = Tokenizer.from_file(str(definition))


def _nothing(_: int) -> None:
    time.sleep(0.05)


def _encode_texts(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        texts = [orjson.loads(line)["target"] for line in file]
    return np.array([len(encoding.ids) for encoding in _tokenizer.encode_batch_fast(texts)], np.int64)


def _encode_messages(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        conversations = [[message["content"] for message in orjson.loads(line)["messages"]] for line in file]
    texts = [content for contents in conversations for content in contents]
    counts = np.cumsum([0, *(len(encoding.ids) for encoding in _tokenizer.encode_batch_fast(texts))])
    ends = np.cumsum([0, *map(len, conversations)])
    return np.diff(counts[ends])


def _split_lengths(length: int) -> np.ndarray:
    whole, rest = divmod(length, MAX_LENGTH)
    return np.array([MAX_LENGTH] * whole + [rest] * (rest > 0), np.int64)


def _write_arrow(task: tuple[Path, int, int]) -> None:
    path, tokens, rows = task
    starts = pa.array(np.linspace(0, tokens, rows + 1).astype(np.int32))
    values = pa.array(np.arange(tokens, dtype=np.int32))
    batch = pa.record_batch([pa.ListArray.from_arrays(starts, values)] * 2, names=["input_ids", "labels"])
    with path.open("wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    path.unlink()


# --- Report ---


def _print(results: dict) -> None:
    for kind in ("pretrain", "sft"):
        if kind not in results:
            continue
        script, floor, ratios = (results[kind][name] for name in ("script", "floor", "ratios"))
        rows = [
            ["floor: read, parse, encode_batch_fast", floor["read_parse_encode_s"]],
            ["floor: pack", floor["pack_s"]],
            ["floor: write Arrow", floor["write_s"]],
            ["floor", floor["total_s"]],
            ["script: tokenize", script["stages"]["tokenize_s"]],
            ["script: write parts", script["stages"]["write_s"]],
            ["script: whole", script["wall_s"]],
        ]
        print(table([f"{kind}, {results['processes']} processes", "seconds"], rows))
        print(
            f"script / floor {ratios['wall']:.2f} by the clock ({script['wall_s']:.2f} s, {floor['total_s']:.2f} s), "
            f"{ratios['cpu']:.2f} by processor time ({script['cpu_s']:.1f} s, {floor['cpu_s']:.1f} s)\n"
            f"by rounds: {_rounds(ratios, 'wall')} by the clock, {_rounds(ratios, 'cpu')} by processor time\n"
            f"{script['tokens_per_s']:,.0f} tokens/s; "
            f"fill {script['fill']:.4f}; peak {script['peak_mib']:,.0f} MiB over the process tree; "
            f"{script['arrow_bytes_per_token']:.2f} bytes a token\n"
        )
    print(f"fixed cost per part {results['fixed_cost_per_part_s']:.3f} s")


def _rounds(ratios: dict, name: str) -> str:
    return " ".join(f"{ratio[name]:.2f}" for ratio in ratios["rounds"])


if __name__ == "__main__":
    main()
