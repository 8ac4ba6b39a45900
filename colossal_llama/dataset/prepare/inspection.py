"""Prints rows as text, with targets and document boundaries marked."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from colossal_llama.dataset.prepare.manifest import read_manifest
from colossal_llama.dataset.prepare.part_writer import DATA_FILE
from colossal_llama.utils.labels import IGNORED_LABEL

TARGET_STYLE, CONTEXT_STYLE, BOUNDARY_STYLE = "bold green", "dim", "yellow"


def show_rows(directory: Path, tokenizer: PreTrainedTokenizerFast, count: int, console: Console | None = None) -> None:
    """Prints the first rows of the parts in turn: targets green, the rest dim.

    Without colours targets are enclosed in ⟦ ⟧.

    Args:
        directory: of a finished preparation.
        tokenizer: of the preparation.
        count: number of rows.
        console: to print on; None for standard output.
    """
    console = console or Console(soft_wrap=True, highlight=False)
    manifest = read_manifest(directory)
    categories = sorted(manifest["categories"])
    shown = number = 0
    while shown < count and any(number < part["rows"] for part in manifest["parts"]):
        for part in manifest["parts"]:
            if number < part["rows"] and shown < count:
                row = _row(directory / "arrow" / part["name"] / DATA_FILE, number)
                console.rule(f"{part['name']}, row {number}: {len(row['input_ids'])} tokens")
                console.print(row_as_text(row, tokenizer, categories, with_brackets=not console.is_terminal))
                shown += 1
        number += 1


def _row(path: Path, number: int) -> dict:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            if number < batch.num_rows:
                return batch.slice(number, 1).to_pylist()[0]
            number -= batch.num_rows
    raise IndexError(f"{path} has no such row")


def row_as_text(row: dict, tokenizer: PreTrainedTokenizerFast, categories: list[str], with_brackets: bool) -> Text:
    """Decodes a row, with its targets and document boundaries marked."""
    text, start = Text(), 0
    documents = list(zip(row["document_lengths"], row["document_categories"], strict=True))
    for number, (length, category) in enumerate(documents, 1):
        boundary = f"── document {number} of {len(documents)}: {categories[category]}, {length} tokens ──\n"
        text.append(boundary, style=BOUNDARY_STYLE)
        ids, labels = (np.array(row[name][start : start + length]) for name in ("input_ids", "labels"))
        targets = labels != IGNORED_LABEL
        boundaries = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), length]
        for first, last in pairwise(boundaries):
            decoded = tokenizer.decode(ids[first:last].tolist(), clean_up_tokenization_spaces=False)
            if targets[first]:
                text.append(f"⟦{decoded}⟧" if with_brackets else decoded, style=TARGET_STYLE)
            else:
                text.append(decoded, style=CONTEXT_STYLE)
        text.append("\n")
        start += length
    return text
