"""Declares the options of clean_corpus.

Imports neither torch nor transformers, so that `--help` is instant.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from colossal_llama.cleaning.blocklists import Blocklists
from colossal_llama.cleaning.language import parse_wanted
from colossal_llama.cleaning.normalization import normalization_of, normalize
from colossal_llama.cleaning.quality_loss import QualityModel
from colossal_llama.cleaning.rule_settings import ALL, PRESETS, Preset, RuleSettings, read_rules
from colossal_llama.dataset.prepare.arguments import (
    InputArguments,
    ReadingArguments,
    RoleArguments,
    ShardArguments,
    output_directory,
)
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.readers.input_paths import GatherPaths, local_paths, missing_path_problem
from colossal_llama.readers.line_reader import MAX_LINE_MB
from colossal_llama.utils.arguments import group, option, option_values, switch
from colossal_llama.utils.cli import existing_directory, existing_file, number_in_range
from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_directory, fingerprint_file
from colossal_llama.utils.hub.names import NAME_FORMS, ModelName, directory_or_name

DEFAULT_MEMORY_MB = 1024


def _names(text: str) -> list[str]:
    """Names that commas separate."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return names


def _one(text: str) -> list[str]:
    """A list of the one value, which may hold commas."""
    return [text]


def _existing_paths(text: str) -> list[Path]:
    """Files and directories of this host."""
    paths = local_paths(text)
    if problems := [problem for path in paths if (problem := missing_path_problem(path))]:
        raise argparse.ArgumentTypeError("; ".join(problems))
    return paths


@dataclass(frozen=True, kw_only=True)
class PathArguments(InputArguments):
    """Options for input and output paths."""

    output_dir: Path = option(
        needed="name the directory that receives the corpus",
        type=output_directory,
        metavar="DIR",
        help="one directory, which receives documents/, dropped/, cleaning.json and cleaning.png (needed)",
    )


@dataclass(frozen=True, kw_only=True)
class RuleArguments:
    """Options for the rules in effect."""

    preset: Preset = option("web", choices=PRESETS, help="switches and thresholds for a kind of text")
    rules: Path | None = option(
        type=existing_file, metavar="FILE", help="YAML file of rules over those of the preset, in part or whole"
    )
    on: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=_names,
        metavar="RULE",
        help=f"switch rules on; {ALL!r} stands for all of them",
    )
    off: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=_names,
        metavar="RULE",
        help=f"switch rules off; {ALL!r} stands for all of them",
    )
    set: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=_one,
        metavar="RULE.KEY=VALUE",
        help="change thresholds of rules, as in length.min_words=20",
    )
    languages: tuple[str, ...] | None = option(
        type=parse_wanted,
        metavar="CODES",
        help="switch the rule 'language' on: drop documents without enough text in these languages, such as zh,en",
    )
    show_rules: bool = switch(help="print the rules in effect as YAML, in the form that --rules reads, and end")

    @cached_property
    def settings(self) -> RuleSettings:
        """The rules in effect.

        Raises:
            UserError: see `read_rules`.
        """
        if self.languages is None:
            return read_rules(self.preset, self.rules, self.on, self.off, self.set)
        allowed = f"language.allowed=[{', '.join(self.languages)}]"
        return read_rules(self.preset, self.rules, (*self.on, "language"), self.off, (*self.set, allowed))


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Options for lists of the user that decide about documents."""

    blocklist: tuple[str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=_one,
        metavar="CATEGORY[:ACTION]=FILE",
        help="drop, tag or route documents that hold a word of a list, one word or phrase a line: "
        "politics=words.txt drops, politics:tag=words.txt notes the category in the record, politics:route=words.txt "
        "makes it the record's category",
    )
    decontaminate: tuple[Path, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=_existing_paths,
        metavar="PATH",
        help="benchmarks whose questions documents must not hold: a directory as evaluate reads it (--data_dir), or "
        "jsonl files of own questions; paraphrases and translations are not found",
    )


@dataclass(frozen=True, kw_only=True)
class QualityArguments:
    """Options for quality by loss."""

    quality_model: Path | ModelName | None = option(
        type=directory_or_name,
        metavar="MODEL",
        help="measure every document that all else keeps by this model, in nats per byte; the rule quality_loss says "
        f"which band is kept (default: nothing is measured): {NAME_FORMS}",
    )


@dataclass(frozen=True, kw_only=True)
class RunArguments(ReadingArguments):
    """Options of the run, which leave the output as it is."""

    memory_mb: int = option(
        DEFAULT_MEMORY_MB,
        type=number_in_range(int, minimum=64),
        metavar="MB",
        help="memory for the merge of signatures, in megabytes; what does not fit is merged piece by piece on disk",
    )
    keep_work: bool = switch(help="keep the intermediates in work/ after success")
    overwrite: bool = switch(help="remove what an earlier cleaning wrote into the output directory and start afresh")


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """Options for checking a finished output directory."""

    verify: Path | None = option(
        nargs="?",
        type=existing_directory,
        metavar="DIR",
        help="only re-read a finished output directory (DIR, or --output_dir) and check it against its cleaning.json",
    )


@dataclass(frozen=True, kw_only=True)
class CleanArguments:
    """Arguments of a cleaning."""

    paths: PathArguments = group("input and output")
    fields: FieldOptions = group("columns of the records")
    conversations: RoleArguments = group("conversations")
    rules: RuleArguments = group("rules")
    lists: ListArguments = group("lists")
    quality: QualityArguments = group("quality by loss")
    run: RunArguments = group("run")
    shards: ShardArguments = group(
        "several jobs in one directory",
        "K jobs (on several machines with a shared disk), each with its own index, read and judge their shares of the "
        "input. The same command without these two arguments then merges what they found, and writes the corpus.",
    )
    check: CheckArguments = group("checking the result")

    @cached_property
    def blocklists(self) -> Blocklists:
        """The lists of `--blocklist`, whose words are normalised as the texts are.

        Raises:
            UserError: see `Blocklists.open`.
        """
        settings = normalization_of(self.rules.settings)
        return Blocklists.open(self.lists.blocklist, lambda word: normalize(word, settings)[0])

    @cached_property
    def quality_model(self) -> QualityModel | None:
        """The model of `--quality_model`; None without it.

        Raises:
            UserError: see `QualityModel.find`.
        """
        directory = self.quality.quality_model
        return None if directory is None else QualityModel.find(directory)

    @property
    def is_conversations(self) -> bool:
        """True where records are conversations."""
        return self.rules.preset == "conversations"

    def deciding_options(self) -> dict:
        """Options that decide the bytes of the output: a resumed run must have the same.

        Paths, workers, shards and memory do not decide them.
        """
        return {
            "preset": self.rules.preset,
            "rules": self.rules.settings.content(),
            **({"blocklists": self.blocklists.content()} if self.lists.blocklist else {}),
            **({"decontaminate": _fingerprint(self.lists.decontaminate)} if self.lists.decontaminate else {}),
            **({"roles": dict(sorted(self.conversations.roles))} if self.conversations.roles else {}),
            **({"quality_model": self.quality_model.fingerprint} if self.quality_model else {}),
            "limit": self.run.limit,
            **({} if self.run.max_line_mb == MAX_LINE_MB else {"max_line_mb": self.run.max_line_mb}),
            **{name: value for name, value in option_values(self.fields).items() if value is not None},
        }


def _fingerprint(paths: Sequence[Path]) -> str:
    """Fingerprint of the benchmarks' files, whatever their directories are called."""
    return fingerprint_bytes(
        *(
            (fingerprint_directory(path) if path.is_dir() else f"{path.name} {fingerprint_file(path)}").encode()
            for path in paths
        )
    )
