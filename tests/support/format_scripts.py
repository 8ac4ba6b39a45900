"""Runs the scripts that read texts in this process, with the command lines of users."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from colossal_llama.utils.errors import UserError

COMMON = ("--num_workers", "1")
_DRAWING = "colossal_llama.tokenizer.learning.vocabulary_size_curve.draw_curve"


class Refused(Exception):
    """The script ended with code 2; the text is what it printed."""


@dataclass(frozen=True)
class Script:
    """A script that reads texts.

    Attributes:
        name: as users call it.
        kind: of the records that it reads here, `documents` or `conversations`.
        run: reads the data at paths, given as words of the command line; returns what came of it.
    """

    name: str
    kind: str
    run: Callable[[Sequence[str], Path, Path], Any]


def command_of(main: Callable[[], Any], name: str, *words: object) -> str:
    """Runs a script's main function with a command line and returns what it printed.

    Raises:
        Refused: it ended as it does with code 2.
    """
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *map(str, words)]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            main()
        except UserError as error:
            raise Refused(str(error)) from error
        except SystemExit as error:
            if error.code != 2:
                raise
            raise Refused(printed.getvalue()) from error
    return printed.getvalue()


def _prepare(kind: str, words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> dict:
    from colossal_llama.dataset.prepare.cli import run

    output = work / "prepared"
    own = ["--tokenizer_dir", tokenizer, "--data_output_dirs", output, "--num_spliced_dataset_bins", 2]
    if kind == "sft":
        own += ["--llama_version", 2]
    command = ["--data_input_dirs", *words, *own, "--max_length", 256, *COMMON, *options]
    command_of(lambda: run(kind), f"prepare_{kind}", *command)
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    rows = {path.name: path.read_text("utf-8") for path in sorted((output / "jsonl").iterdir())}
    return {"rows": rows, "totals": manifest["totals"], "categories": manifest["categories"]}


def prepare_pretrain(words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> dict:
    """Rows and counts of prepare_pretrain_dataset.py."""
    return _prepare("pretrain", words, tokenizer, work, *options)


def prepare_sft(words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> dict:
    """Rows and counts of prepare_sft_dataset.py."""
    return _prepare("sft", words, tokenizer, work, *options)


def learn_pieces(words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> dict:
    """Pieces and figures of learn_pieces.py."""
    from colossal_llama.tokenizer.learn_pieces import main

    output = work / "pieces"
    command = ["--source_tokenizer_dir", tokenizer, "--data_input_dirs", *words, "--output_dir", output]
    command += ["--scripts", "Han", "--max_pieces", 8, "--num_pieces", 4, "--min_frequency", 2, *options]
    with mock.patch(_DRAWING):  # of the curve, which takes longer than all else
        command_of(main, "learn_pieces.py", *command)
    report = json.loads((output / "learning_report.json").read_text("utf-8"))
    pieces = (output / "pieces.jsonl").read_text("utf-8")
    return {"pieces": pieces, "curve": report["curve"]}


def report(words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> dict:
    """Figures of report.py."""
    from colossal_llama.tokenizer.report import main

    output = work / "report.json"
    command = ["--tokenizers", f"it={tokenizer}", "--data_input_dirs", *words, "--output_file", output, *options]
    command_of(main, "report.py", *command)
    figures = json.loads(output.read_text("utf-8"))["tokenizers"]["it"]
    return {name: figures[name] for name in ("total", "categories")}


def evaluation_texts(words: Sequence[str], tokenizer: Path, work: Path, *options: object) -> list[str]:
    """Texts that init_model.py --eval_file computes losses on, without the model."""
    from colossal_llama.model import init_model

    texts: list[str] = []
    command = ["--source_model_and_tokenizer_path", tokenizer, "--target_tokenizer_path", tokenizer]
    command += ["--target_model_path", work / "model", "--eval_file", *words, *options]
    command_of(
        lambda: texts.extend(init_model._evaluation_documents(init_model.parse_arguments())), "init_model.py", *command
    )
    return texts


SCRIPTS = (
    Script("prepare_pretrain", "documents", prepare_pretrain),
    Script("prepare_sft", "conversations", prepare_sft),
    Script("learn_pieces", "documents", learn_pieces),
    Script("report", "documents", report),
    Script("init_model --eval_file", "documents", evaluation_texts),
)
