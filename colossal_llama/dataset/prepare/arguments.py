"""The command lines of the two prepare scripts. Imports neither torch, transformers nor datasets."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.dataset.prepare.config import Kind, Settings
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    existing_directories,
    existing_directory,
    existing_file,
    number_in_range,
)

SHORTEST_ROW = 8
LONGEST_ROW = 2**20  # splicing keeps a list of open rows for every number of free tokens
MOST_BINS = 99_999
NEEDED = {
    "data_input_dirs": "name the directories of the records, separated by commas",
    "tokenizer_dir": "name the directory of the tokenizer",
    "data_output_dirs": "name the directory that receives the result",
}

_ABOUT = {
    "pretrain": (
        'Tokenizes documents {"source": str, "target": str, "category": str}, splices them into rows and writes them in N '
        "buckets, each with the whole mixture of categories."
    ),
    "sft": (
        'Tokenizes conversations {"messages": [{"from": "human", "content": str}, {"from": "assistant", "content": str}, …], '
        '"category": str (optional)} and writes them in N buckets, each with the whole mixture of categories.'
    ),
}


@dataclass(frozen=True)
class Request:
    """What a command line asks for: a preparation and how many of its rows to show, or the check of a finished one."""

    settings: Settings | None
    inspected_rows: int
    verified_dir: Path | None


def parse(kind: Kind, arguments: Sequence[str] | None = None) -> Request:
    """The request of a command line; prints every problem at once and exits with code 2 if there is any."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(kind)
    namespace, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        parser.problem(f"{argument} is no argument of this script")
    values = vars(namespace)
    names = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    if "--verify" in names:
        if len(names) > 1:
            parser.problem(
                f"--verify checks a finished directory and goes with no other argument, not with {_others(names)}"
            )
        parser.finish()
        return Request(None, 0, values["verify"])
    for name, advice in NEEDED.items():
        if f"--{name}" not in names:
            parser.problem(f"--{name} is missing: {advice}")
    _check(parser, values, names)
    parser.finish()
    del values["verify"]
    inspected_rows = values.pop("inspect")
    values["data_input_dirs"] = tuple(values["data_input_dirs"])
    values["output_dir"] = values.pop("data_output_dirs")
    values["num_bins"] = values.pop("num_spliced_dataset_bins")
    return Request(Settings(kind=kind, **values), inspected_rows, None)


def _others(names: set[str]) -> str:
    return ", ".join(sorted(names - {"--verify"}))


def _parser(kind: Kind) -> CollectingArgumentParser:
    parser = CollectingArgumentParser(description=_ABOUT[kind])
    _add_paths(parser)
    _add_rows(parser, kind)
    _add_running(parser)
    _add_shards(parser)
    _add_looking(parser)
    return parser


def _add_paths(parser: CollectingArgumentParser) -> None:
    paths = parser.add_argument_group("what goes in and where it goes")
    paths.add_argument(
        "--data_input_dirs",
        type=existing_directories,
        metavar="DIR[,DIR…]",
        help="directories of .jsonl files (also .jsonl.gz, .jsonl.zst, .parquet), searched with their subdirectories "
        "(needed)",
    )
    paths.add_argument("--tokenizer_dir", type=existing_directory, metavar="DIR", help="the tokenizer (needed)")
    paths.add_argument(
        "--data_output_dirs",
        type=_output_directory,
        metavar="DIR",
        help="one directory, which receives arrow/, jsonl/, cache/ and manifest.json (needed)",
    )


def _add_rows(parser: CollectingArgumentParser, kind: Kind) -> None:
    rows = parser.add_argument_group("rows and buckets")
    rows.add_argument(
        "--max_length",
        type=number_in_range(int, minimum=SHORTEST_ROW, maximum=LONGEST_ROW),
        default=4096,
        metavar="TOKENS",
        help="longest row, in tokens",
    )
    rows.add_argument(
        "--num_spliced_dataset_bins",
        type=number_in_range(int, minimum=1, maximum=MOST_BINS),
        default=10,
        metavar="N",
        help="number of parts; bin i of every category goes into part i",
    )
    rows.add_argument(
        "--seed",
        type=number_in_range(int, minimum=0),
        default=42,
        metavar="SEED",
        help="decides the order of the rows inside a part",
    )
    if kind == "pretrain":
        rows.add_argument(
            "--splicing",
            choices=("best_fit", "greedy"),
            default="best_fit",
            help="how documents are put into rows: best_fit fills them, greedy keeps the order (category, then length)",
        )
        rows.add_argument(
            "--long_documents",
            choices=("split", "truncate"),
            default="split",
            help="what becomes of a document that is longer than a row: further rows, or the rest is cut off (and "
            "counted)",
        )
    else:
        rows.add_argument(
            "--llama_version",
            type=number_in_range(int),
            choices=(2, 3),
            default=3,
            help="turns end with </s> on LLaMA 2 and with <|eot_id|> on LLaMA 3",
        )
        rows.add_argument(
            "--chat_template",
            type=_chat_template,
            metavar="FILE",
            help="a Jinja chat template to use instead, with {%% generation %%} around what the assistant says; "
            "'tokenizer' takes the tokenizer's own",
        )
        rows.add_argument(
            "--long_conversations",
            choices=("truncate", "window"),
            default="truncate",
            help="what becomes of a conversation that is longer than a row: its last turns are left out (and "
            "counted), or it "
            "becomes overlapping windows in which every answer is trained once",
        )


def _add_running(parser: CollectingArgumentParser) -> None:
    running = parser.add_argument_group("how it runs")
    running.add_argument(
        "--on_bad_record",
        choices=("stop", "skip"),
        default="stop",
        help="stop before any part is written and show the bad records, or pass them over, count them by reason and "
        "list "
        "them in rejected.jsonl",
    )
    running.add_argument(
        "--limit",
        type=number_in_range(int, minimum=1),
        metavar="RECORDS",
        help="for a first try: read at most so many records, as evenly from all files as it goes",
    )
    running.add_argument(
        "--num_workers",
        type=number_in_range(int, minimum=1),
        default=len(os.sched_getaffinity(0)),
        metavar="PROCESSES",
        help="worker processes; the result does not depend on it (default: the processors there are: %(default)s)",
    )
    running.add_argument("--keep_cache", action="store_true", help="keep the intermediates in cache/ after success")
    running.add_argument(
        "--overwrite",
        action="store_true",
        help="remove what these scripts wrote into the output directory and start afresh",
    )


def _add_shards(parser: CollectingArgumentParser) -> None:
    shards = parser.add_argument_group(
        "several jobs in one directory",
        "K jobs (on several machines with a shared disk), each with its own index, first tokenize their shares, and "
        "called "
        "again write their shares of the parts. The same command without these two arguments does whatever is left.",
    )
    shards.add_argument(
        "--num_shards", type=number_in_range(int, minimum=1), default=1, metavar="K", help="number of jobs"
    )
    shards.add_argument(
        "--shard_index", type=number_in_range(int, minimum=0), metavar="k", help="this job's index, from 0 to K - 1"
    )


def _add_looking(parser: CollectingArgumentParser) -> None:
    looking = parser.add_argument_group("looking at the result")
    looking.add_argument(
        "--inspect",
        type=number_in_range(int, minimum=1),
        default=0,
        metavar="ROWS",
        help="show so many rows of the finished directory, with targets and borders of documents marked (default: "
        "none)",
    )
    looking.add_argument(
        "--verify",
        type=existing_directory,
        metavar="DIR",
        help="only re-read a finished output directory and check it against its manifest",
    )


def _check(parser: CollectingArgumentParser, values: dict, names: set[str]) -> None:
    """Adds what is wrong with arguments together."""
    index, shards = values["shard_index"], values["num_shards"]
    if index is None and shards > 1:
        parser.problem("--num_shards needs --shard_index: which of the jobs is this?")
    if index is not None and index >= shards:
        parser.problem(f"--shard_index {index} is beyond --num_shards {shards}: the indices go from 0 to {shards - 1}")
    if values.get("chat_template") is not None and "--llama_version" in names:
        parser.problem("--llama_version has no effect with --chat_template, which decides the format: leave one out")
    if index is not None and values["overwrite"]:
        parser.problem("--overwrite would remove the other shards' work: remove the directory before the jobs start")


def _chat_template(text: str) -> str:
    return text if text == "tokenizer" else str(existing_file(text))


def _output_directory(text: str) -> Path:
    if "," in text and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} holds a comma: give one directory")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a directory")
    return path
