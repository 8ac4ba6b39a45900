"""Merge of all signatures: duplicates, repeated paragraphs, recurring lines.

    work/signatures/exact_duplicates      documents with the same text: the first stays
    work/signatures/near_duplicates       documents with nearly the same text: the longest stays
    work/signatures/duplicate_paragraphs  paragraphs that an earlier document has: cut
    work/signatures/boilerplate           lines that recur in their group: cut

Each directory has the runs of all blocks, and the decisions next to them. merged.json is written
last: a merge that was killed begins anew.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from colossal_llama.cleaning import boilerplate
from colossal_llama.cleaning.boilerplate import Boilerplate
from colossal_llama.cleaning.duplicates import exact, near, paragraphs
from colossal_llama.cleaning.duplicates.decisions import merge_duplicates
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.duplicates.signatures import EXACT, NEAR, PARAGRAPHS, DuplicateSettings
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.signatures import BOILERPLATE, signature_dir
from colossal_llama.dataset.prepare.recheck import say_damages
from colossal_llama.utils.checked_json import DamagedJsonError, read_checked, with_checksum, write_checked
from colossal_llama.utils.checksums import checksum_of

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
    if _is_merged(directory):
        return
    directory.mkdir(parents=True, exist_ok=True)  # without a rule across documents nobody has made it
    settings = DuplicateSettings.of_rules(rules)
    is_dropped = merge_duplicates(directory, block_sizes, texts_of, settings, memory_bytes)
    if (recurring := Boilerplate.of_rules(rules)) is not None:
        shutil.rmtree(directory / BOILERPLATE / boilerplate.CUTS, ignore_errors=True)
        index = DocumentIndex.of_chunks(block_sizes)
        boilerplate.write_cuts(directory / BOILERPLATE, index, is_dropped, recurring, memory_bytes)
    runs = {str(path.relative_to(directory)): checksum_of(path).xxh3_128 for path in _decisions(directory)}
    facts = {"documents": sum(block_sizes), "dropped": int(is_dropped.sum()), "runs_xxh3": runs}
    write_checked(directory / _MERGED, with_checksum(facts))


def _is_merged(directory: Path) -> bool:
    """True where the decisions of a finished merge are as they were written."""
    with suppress(FileNotFoundError, DamagedJsonError):
        recorded = read_checked(directory / _MERGED, {"runs_xxh3": dict})["runs_xxh3"]
        found = {str(path.relative_to(directory)): checksum_of(path).xxh3_128 for path in _decisions(directory)}
        if found == recorded:
            return True
        say_damages(["work/signatures: the decisions of the merge have changed since they were written"])
    return False


def _decisions(directory: Path) -> list[Path]:
    """Runs of the decisions of all rules."""
    names = (f"{EXACT}/{exact.DROPPED}", f"{NEAR}/{near.DROPPED}", f"{PARAGRAPHS}/{paragraphs.CUT}")
    folders = (*names, f"{BOILERPLATE}/{boilerplate.CUTS}")
    return sorted(path for folder in folders for path in (directory / folder).glob("run-*.npy"))
