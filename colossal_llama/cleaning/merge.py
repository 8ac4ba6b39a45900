"""Merge of all signatures: duplicates, repeated paragraphs, recurring lines.

    work/signatures/exact        documents with the same text: the first stays
    work/signatures/near         documents with nearly the same text: the longest stays
    work/signatures/paragraphs   paragraphs that an earlier document has: cut
    work/signatures/boilerplate  lines that recur in their group: cut

Each directory has the runs of all chunks, and the decisions next to them. merged.json is written
last: a merge that was killed begins anew.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from colossal_llama.cleaning import boilerplate
from colossal_llama.cleaning.boilerplate import Boilerplate
from colossal_llama.cleaning.duplicates import exact, near, paragraphs
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.signatures import BOILERPLATE, EXACT, NEAR, PARAGRAPHS, near_settings, signature_dir
from colossal_llama.utils.atomic_io import write_json

_MERGED = "merged.json"


def merge(
    work_dir: Path,
    rules: RuleSettings,
    block_sizes: Sequence[int],
    texts_of: Callable[[int], Sequence[str]],
    memory_bytes: int,
) -> None:
    """Decides about duplicates, repeated paragraphs and recurring lines, unless that is done.

    Args:
        work_dir: directory of the intermediates.
        rules: in effect.
        block_sizes: number of documents of each block.
        texts_of: returns the texts of a block.
        memory_bytes: what signatures in memory may take.
    """
    directory = signature_dir(work_dir)
    if (directory / _MERGED).exists():
        return
    directory.mkdir(parents=True, exist_ok=True)  # without a rule across documents nobody has made it
    for decisions in _DECISIONS:
        shutil.rmtree(directory / decisions, ignore_errors=True)
    index = DocumentIndex.of_chunks(block_sizes)
    is_dropped = np.zeros(len(index), dtype=bool)
    if rules["exact_duplicates"].on:
        is_dropped |= exact.merge(directory / EXACT, index, memory_bytes)
    if (settings := near_settings(rules)) is not None:
        is_dropped |= near.merge(directory / NEAR, index, is_dropped, texts_of, settings.min_similarity, memory_bytes)
    if rules["duplicate_paragraphs"].on:
        paragraphs.merge(directory / PARAGRAPHS, index, is_dropped, memory_bytes)
    if (recurring := Boilerplate.of_rules(rules)) is not None:
        boilerplate.write_cuts(directory / BOILERPLATE, index, is_dropped, recurring, memory_bytes)
    write_json(directory / _MERGED, {"documents": len(index), "dropped": int(is_dropped.sum())})


_DECISIONS = (
    f"{EXACT}/{exact.DROPPED}",
    f"{NEAR}/{near.DROPPED}",
    f"{PARAGRAPHS}/{paragraphs.CUT}",
    f"{BOILERPLATE}/{boilerplate.CUTS}",
)
