"""Declares the options of the two prepare scripts.

Imports neither torch, transformers nor datasets, so that `--help` is instant.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from colossal_llama.dataset.mixture.amounts import repeats_argument, total_tokens_argument
from colossal_llama.dataset.mixture.mixture_file import Mixture, mixture_argument
from colossal_llama.dataset.role_names import MEANINGS, Meaning, role_meanings
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM, given_system, system_text
from colossal_llama.dataset.template_presets import PRESETS, chat_template_argument
from colossal_llama.readers.fields import ExchangeFields, FieldOptions
from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.readers.line_reader import BYTES_PER_MB, MAX_LINE_MB
from colossal_llama.utils.arguments import group, option, option_values, switch
from colossal_llama.utils.cli import existing_directory, existing_file, number_in_range
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

Kind = Literal["pretrain", "sft"]

SHORTEST_ROW = 8
LONGEST_ROW = 2**20  # splicing keeps a list of open rows for every number of free tokens
MOST_BINS = 99_999


def output_directory(text: str) -> Path:
    """Returns the path of one directory, which need not exist (argparse `type=`).

    Raises:
        argparse.ArgumentTypeError: it is none, or cannot be one.
    """
    path = Path(text)
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise argparse.ArgumentTypeError(f"{text} is a link to {path.readlink()}, which does not exist") from None
        if "," in text:
            raise argparse.ArgumentTypeError(f"{text!r} holds a comma: give one directory") from None
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a file in between
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(f"{text} cannot be a directory: {reason}") from None
    else:
        if not path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a file, not a directory")
    return path


@dataclass(frozen=True, kw_only=True)
class InputArguments:
    """Options for input paths."""

    data_input_dirs: tuple[Path | str, ...] = option(
        needed="name the directories or files of the records, separated by commas or blanks",
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        metavar="PATH",
        help="files of records and directories that are searched for them, also several by commas (needed); "
        f"{DESCRIPTION}",
    )


@dataclass(frozen=True, kw_only=True)
class PathArguments(InputArguments):
    """Options for input and output paths."""

    tokenizer_dir: Path | ModelName = option(
        needed="name the directory of the tokenizer",
        type=directory_or_name,
        metavar="DIR",
        help=f"the tokenizer (needed): {NAME_FORMS}",
    )
    data_output_dirs: Path = option(
        needed="name the directory that receives the result",
        type=output_directory,
        metavar="DIR",
        help="one directory, which receives arrow/, jsonl/, cache/ and manifest.json (needed)",
    )


@dataclass(frozen=True, kw_only=True)
class RowArguments:
    """Options for rows and buckets that both scripts have."""

    max_length: int = option(
        4096,
        type=number_in_range(int, minimum=SHORTEST_ROW, maximum=LONGEST_ROW),
        metavar="TOKENS",
        help="longest row, in tokens",
    )
    num_spliced_dataset_bins: int = option(
        10,
        type=number_in_range(int, minimum=1, maximum=MOST_BINS),
        metavar="N",
        help="number of parts; bin i of every category goes into part i",
    )
    seed: int = option(
        42, type=number_in_range(int, minimum=0), metavar="SEED", help="decides the order of the rows inside a part"
    )


@dataclass(frozen=True, kw_only=True)
class DocumentRowArguments(RowArguments):
    """Options for rows of documents."""

    roles: ClassVar = ()
    splicing: Literal["best_fit", "greedy"] = option(
        "best_fit",
        choices=("best_fit", "greedy"),
        help="how documents are packed into rows: best_fit fills them, greedy keeps the order (category, then length)",
    )
    long_documents: Literal["split", "truncate"] = option(
        "split",
        choices=("split", "truncate"),
        help="what becomes of a document that is longer than a row: further rows, or the rest is cut off (and counted)",
    )


@dataclass(frozen=True, kw_only=True)
class RoleArguments:
    """The option for roles of messages."""

    roles: tuple[tuple[str, Meaning], ...] = option(
        (),
        action=GatherPaths,
        nargs="+",
        type=role_meanings,
        metavar=f"NAME={'|'.join(MEANINGS)}",
        help="what a role of messages is, besides those known by name; messages of one that is dropped are left out, "
        "and counted; system=drop also leaves out system prompts of records",
    )


@dataclass(frozen=True, kw_only=True)
class ConversationRowArguments(RoleArguments, RowArguments):
    """Options for rows of conversations, each of which is a row of its own."""

    splicing: ClassVar = "none"
    llama_version: int = option(
        3,
        type=number_in_range(int),
        choices=(2, 3),
        help="turns end with </s> on LLaMA 2 and with <|eot_id|> on LLaMA 3",
    )
    chat_template: str | None = option(
        type=chat_template_argument,
        metavar="NAME|FILE",
        help=f"another format: {', '.join(PRESETS)}, or a Jinja file with {{%% generation %%}} around the assistant's "
        "answers; 'tokenizer' takes the tokenizer's own",
    )
    system: str | None = option(
        type=system_text,
        metavar="TEXT",
        help="the sentence before the chat of records without a system prompt, in place of the format's own; the model "
        "is saved with it. '' for none (a chat template keeps what it writes by itself)",
    )
    system_file: Path | None = option(
        type=existing_file, metavar="FILE", help="the text of --system, in a file; line ends at its end do not count"
    )
    long_conversations: Literal["truncate", "window"] = option(
        "truncate",
        choices=("truncate", "window"),
        help="what becomes of a conversation that is longer than a row: its last turns are left out (and counted), or "
        "it becomes overlapping windows in which every answer is trained once",
    )

    @cached_property
    def system_prompt(self) -> str | None:
        """Text of `--system` or `--system_file`; None for the format's own system prompt.

        Raises:
            UserError: see `given_system`.
        """
        return given_system(self.system, self.system_file)

    def deciding_options(self) -> dict:
        """Those that differ from their defaults, of which earlier versions have no record."""
        unchanged = (None, DEFAULT_SYSTEM if self.chat_template is None else "")
        system = {} if self.system_prompt in unchanged else {"system": self.system_prompt}
        return {**system, **({"roles": dict(sorted(self.roles))} if self.roles else {})}


@dataclass(frozen=True, kw_only=True)
class ReadingArguments:
    """Options for the reading of records, and for how many processes do the work."""

    max_line_mb: int = option(
        MAX_LINE_MB,
        type=number_in_range(int, minimum=1),
        metavar="MB",
        help="longest line that is read, in megabytes; a longer one is a bad record. A worker takes up to "
        "20 bytes of memory for each byte of it",
    )
    limit: int | None = option(
        type=number_in_range(int, minimum=1),
        metavar="RECORDS",
        help="for a first try: read at most this many records, as evenly as possible from all files",
    )
    num_workers: int = option(
        len(os.sched_getaffinity(0)),
        type=number_in_range(int, minimum=1),
        metavar="PROCESSES",
        help="worker processes; the result does not depend on it (default: the available processors: %(default)s)",
    )

    @property
    def max_line_bytes(self) -> int:
        """Longest line that is read, in bytes."""
        return self.max_line_mb * BYTES_PER_MB


@dataclass(frozen=True, kw_only=True)
class RunArguments(ReadingArguments):
    """Options of the run, which leave the rows of good records as they are."""

    on_bad_record: Literal["stop", "skip"] = option(
        "stop",
        choices=("stop", "skip"),
        help="stop before any part is written and show the bad records, or skip them, count them by reason and list "
        "them in rejected.jsonl",
    )
    keep_cache: bool = switch(help="keep the intermediates in cache/ after success")
    overwrite: bool = switch(help="remove what these scripts wrote into the output directory and start afresh")


@dataclass(frozen=True, kw_only=True)
class MixtureArguments:
    """Options for how much of each category goes into the parts."""

    mixture: Mixture | None = option(
        type=mixture_argument,
        metavar="FILE",
        help="YAML or JSON file with a share, tokens or epochs for each category (docs/mixture.md); without it every "
        "document is taken once",
    )
    total_tokens: int | None = option(
        type=total_tokens_argument,
        metavar="TOKENS",
        help="tokens of all parts together with --mixture: 8.5B, 300M (default: as the file and the data decide)",
    )
    max_repeats: Fraction = option(
        Fraction(4),
        type=repeats_argument,
        metavar="EPOCHS",
        help="refuse a mixture that takes a category more often than this; up to 4 epochs are about as good as new "
        "data (Muennighoff et al. 2023, arXiv 2305.16264)",
    )
    plan_only: bool = switch(
        help="tokenize, then print and draw tokens, epochs and shares by category, group and bucket "
        "(mixture_plan.png, mixture_plan.json) and write no parts; the same command without it goes on from there"
    )

    def content(self) -> dict:
        """Values that decide the rows, for the manifest; empty without a mixture."""
        if self.mixture is None:
            return {}
        return {"mixture": self.mixture.content(), "total_tokens": self.total_tokens}


@dataclass(frozen=True, kw_only=True)
class ShardArguments:
    """Options for several jobs in one output directory."""

    num_shards: int = option(1, type=number_in_range(int, minimum=1), metavar="K", help="number of jobs")
    shard_index: int | None = option(
        type=number_in_range(int, minimum=0), metavar="k", help="this job's index, from 0 to K - 1"
    )

    def includes(self, index: int) -> bool:
        """True when a chunk or part is in this job's shard."""
        return self.shard_index is None or index % self.num_shards == self.shard_index


def shard_problems(index: int | None, shards: int) -> Iterator[str]:
    """Problems of the number of jobs and the index of this one, together."""
    if index is None and shards > 1:
        yield "--num_shards needs --shard_index: which of the jobs is this?"
    if index is not None and index >= shards:
        yield f"--shard_index {index} is beyond --num_shards {shards}: the indices go from 0 to {shards - 1}"


def _rows_or_directory(text: str) -> int | Path:
    """A number of rows, or an existing directory; one whose name is a number is written ./5."""
    try:
        int(text)
    except ValueError:
        return existing_directory(text)
    return number_in_range(int, minimum=1)(text)


SHOWN_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class InspectionArguments:
    """Options for inspecting a finished output directory."""

    inspect: tuple[int | Path, ...] | None = option(
        nargs="*",
        type=_rows_or_directory,
        metavar="ROWS|DIR",
        help=f"print rows ({SHOWN_ROWS}, or the number given) of the finished directory, with targets and document "
        "boundaries marked. With DIR, or without --data_input_dirs, nothing is prepared: DIR (or --data_output_dirs) "
        "is what these scripts wrote, its arrow/, a part, or a data set of token ids; --tokenizer_dir is needed only "
        "where the recorded tokenizer has gone, or none is recorded",
    )
    verify: Path | None = option(
        nargs="?",
        type=existing_directory,
        metavar="DIR",
        help="only re-read a finished output directory (DIR, or --data_output_dirs) and check it against its manifest",
    )

    plot: bool = switch(
        help="draw the finished parts into plot_data.png and plot_data.json in the output directory: tokens by "
        "category and bucket, lengths of documents, fill of rows (colossal-llama plot_data draws any parts)"
    )

    @property
    def shown_rows(self) -> int:
        """Number of rows to print after the preparation."""
        if self.inspect is None:
            return 0
        return next((value for value in self.inspect if isinstance(value, int)), SHOWN_ROWS)


@dataclass(frozen=True)
class Inspection:
    """Command to print rows of what is there already.

    Attributes:
        directory: an output directory, a directory of parts, or a part.
        rows: how many.
        tokenizer: to decode with; None: the recorded one.
    """

    directory: Path
    rows: int
    tokenizer: Path | ModelName | None


@dataclass(frozen=True)
class Verification:
    """Command to check a finished output directory against its manifest."""

    directory: Path


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Arguments of a preparation: those that both scripts have."""

    kind: ClassVar[Kind]
    description: ClassVar[str]

    paths: PathArguments = group("input and output")
    fields: FieldOptions | ExchangeFields
    rows: DocumentRowArguments | ConversationRowArguments
    mixture: MixtureArguments = group("mixture of the categories")
    run: RunArguments = group("run")
    shards: ShardArguments = group(
        "several jobs in one directory",
        "K jobs (on several machines with a shared disk), each with its own index, first tokenize their shares, and "
        "called again write their shares of the parts. The same command without these two arguments does whatever is "
        "left.",
    )
    inspection: InspectionArguments = group("inspecting the result")

    @property
    def output_dir(self) -> Path:
        """The one directory of `--data_output_dirs`."""
        return self.paths.data_output_dirs

    @property
    def field_options(self) -> FieldOptions:
        """Options of columns; None for those that the script has not."""
        return FieldOptions(**option_values(self.fields))

    def deciding_options(self) -> dict:
        """Options that decide the rows, for the manifest: a resumed run must have the same.

        Paths, workers and shards do not decide them; the chat format is recorded separately.
        """
        return {
            "kind": self.kind,
            "max_length": self.rows.max_length,
            "num_spliced_dataset_bins": self.rows.num_spliced_dataset_bins,
            "seed": self.rows.seed,
            "on_bad_record": self.run.on_bad_record,
            "limit": self.run.limit,
            **self.mixture.content(),
            # Preparations of earlier versions have no record of it.
            **({} if self.run.max_line_mb == MAX_LINE_MB else {"max_line_mb": self.run.max_line_mb}),
            **{name: value for name, value in option_values(self.fields).items() if value is not None},
        }


@dataclass(frozen=True, kw_only=True)
class PretrainArguments(PrepareArguments):
    """Arguments of prepare_pretrain_dataset.py."""

    kind = "pretrain"
    description = (
        'Tokenizes documents {"source": str, "target": str, "category": str}, or {"text": str} and the like, splices '
        "them into rows and writes them in N buckets, each with the whole mixture of categories."
    )
    fields: FieldOptions = group("columns of the records")
    rows: DocumentRowArguments = group("rows and buckets")

    def deciding_options(self) -> dict:
        """See `PrepareArguments`."""
        own = {"splicing": self.rows.splicing, "long_documents": self.rows.long_documents}
        return {**super().deciding_options(), **own}


@dataclass(frozen=True, kw_only=True)
class SftArguments(PrepareArguments):
    """Arguments of prepare_sft_dataset.py."""

    kind = "sft"
    description = (
        'Tokenizes conversations {"messages": [{"from": "human", "content": str}, {"from": "assistant", "content": '
        'str}, …], "category": str (optional)}, or in another form of public data (ShareGPT, OpenAI, Alpaca, question '
        "and answer …), and writes them in N buckets, each with the whole mixture of categories."
    )
    fields: ExchangeFields = group("columns of the records")
    rows: ConversationRowArguments = group("rows and buckets")

    def deciding_options(self) -> dict:
        """See `PrepareArguments`."""
        own = {"long_conversations": self.rows.long_conversations, **self.rows.deciding_options()}
        return {**super().deciding_options(), **own}


ARGUMENTS: dict[Kind, type[PrepareArguments]] = {"pretrain": PretrainArguments, "sft": SftArguments}
