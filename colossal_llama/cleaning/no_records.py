"""Explains why there is nothing to clean: which records could not be used, with examples."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.dataset.prepare.cache import chunk_rejected
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.rejections import messages_with_places


def no_record_problems(chunk_dir: Path, chunks: Sequence[Chunk], facts: Sequence[dict]) -> list[str]:
    """The problem, and an example of each reason.

    Args:
        chunk_dir: directory of the finished chunks.
        chunks: all of them.
        facts: of all chunks.
    """
    reasons = sum((Counter(fact["rejected_records"]) for fact in facts), Counter())
    counted = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "the files are empty"
    examples: dict[str, tuple[Chunk, dict]] = {}
    for chunk in chunks:
        if len(examples) == len(reasons):
            break
        for record in chunk_rejected(chunk_dir, chunk.index):
            examples.setdefault(record["reason"], (chunk, record))
    return [
        f"--data_input_dirs: no record could be used, so that there is nothing to clean ({counted})",
        *messages_with_places(list(examples.values())),
    ]
