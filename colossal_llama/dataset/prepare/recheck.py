"""Compares what earlier runs left with its checksums, and removes what must be made anew.

Every removal is said. The reading is done by threads, which hashing leaves free to run together.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from colossal_llama.dataset.prepare.cache import chunk_facts, chunk_problem, remove_chunk
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.dataset.prepare.manifest import versions
from colossal_llama.dataset.prepare.part_check import part_problems, remove_part
from colossal_llama.dataset.prepare.part_writer import part_facts, part_name
from colossal_llama.utils.checked_json import has_checksum
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_file

SHOWN_DAMAGES = 5
Unit = TypeVar("Unit")


def recheck_chunks(output_dir: Path, chunks: Sequence[Chunk], num_threads: int) -> None:
    """Removes the finished chunks that have changed since they were written."""
    chunk_dir = output_dir / "cache" / "chunks"
    is_repair = (output_dir / "manifest.json").exists()
    finished = [chunk for chunk in chunks if (chunk_dir / f"chunk-{chunk.index:05d}.json").exists()]
    problems = problems_of(
        lambda chunk: chunk_problem(chunk_dir, chunk.index, len(chunk.pieces)), finished, "check chunks", num_threads
    )
    if (output_dir / "manifest.json").exists() and not is_repair:
        return  # another shard's job has finished the preparation, and empties the cache
    for chunk, _ in problems:
        remove_chunk(chunk_dir, chunk.index)
    say_damages([f"cache/chunks/{problem} (input: {chunk.files})" for chunk, problem in problems])
    damaged = {chunk.index for chunk, _ in problems}
    _say_what_is_not_recorded(
        "chunks", [chunk_facts(chunk_dir, chunk.index) for chunk in finished if chunk.index not in damaged]
    )


def recheck_parts(
    output_dir: Path, indices: Sequence[int], num_threads: int, recorded: Sequence[dict] | None = None
) -> bool:
    """Removes the parts that are damaged, or not whole; tells whether there was one.

    Args:
        output_dir: of the preparation.
        indices: of the parts to read.
        num_threads: that read at once.
        recorded: entries of all parts in the manifest of a complete preparation, where each must be
            there. None for an incomplete one, in which a killed run may have left the jsonl file
            alone.

    Raises:
        UserError: a damaged part's directory holds another program's file.
    """

    def problem_of(index: int) -> str | None:
        if recorded is None and not (output_dir / "arrow" / part_name(index)).exists():
            return None
        return next(part_problems(output_dir, index, None if recorded is None else recorded[index]), None)

    problems = problems_of(problem_of, indices, "check parts", num_threads)
    for index, _ in problems:
        remove_part(output_dir, index)
    say_damages([f"{part_name(index)}: {problem}" for index, problem in problems])
    _say_what_is_not_recorded("parts", [part_facts(output_dir, index) for index in indices])
    return bool(problems)


def remove_parts_of_other_plan(output_dir: Path, indices: Sequence[int], plan_sha256: str, unnamed: bool) -> None:
    """Removes the finished parts that were written by another plan than the one in use.

    Args:
        output_dir: of the preparation.
        indices: of the parts.
        plan_sha256: fingerprint of the plan.
        unnamed: removes parts of an earlier version, which do not name their plan, too.
    """
    others = []
    for index in indices:
        facts = part_facts(output_dir, index)
        if facts is not None and facts.get("plan_sha256", None if unnamed else plan_sha256) != plan_sha256:
            remove_part(output_dir, index)
            others.append(f"{part_name(index)} was written by another plan of the parts")
    say_damages(others)


def recheck_rejected(output_dir: Path, manifest: dict) -> bool:
    """Removes a damaged rejected.jsonl of a complete preparation; True if it must be made anew."""
    path, sha256 = output_dir / "rejected.jsonl", manifest.get("rejected_sha256")
    if sha256 is None or (path.is_file() and fingerprint_file(path) == sha256):
        return False
    say_damages(["rejected.jsonl has changed since it was written" if path.exists() else "rejected.jsonl is missing"])
    path.unlink(missing_ok=True)
    return True


def say_further_entries(output_dir: Path, num_parts: int) -> None:
    """Says what is in arrow/ and jsonl/ and is none of the preparation's parts."""
    for folder, suffix in (("arrow", ""), ("jsonl", ".jsonl")):
        parts = {part_name(index) + suffix for index in range(num_parts)}
        for path in sorted((output_dir / folder).glob("[!.]*")):
            if path.name not in parts:
                log_rank_zero(f"{path} is no part of this preparation, and is left as it is")


def refuse_other_parts(output_dir: Path, manifest: dict, parts: Sequence[dict]) -> None:
    """Refuses parts made anew that differ from those in the manifest, and removes them.

    Raises:
        UserError: there is one.
    """
    others = [
        index
        for index, (part, entry) in enumerate(zip(parts, manifest["parts"], strict=True))
        if any(part.get(name) != entry[name] for name in entry if name != "name")
    ]
    if not others:
        return
    for index in others:
        remove_part(output_dir, index)
    then, now = manifest["versions"], versions()
    changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
    raise UserError(
        f"{output_dir}: {', '.join(map(part_name, others))} cannot be made anew as they were "
        f"({', '.join(changed) or 'these scripts have changed'}): prepare it with those versions, or afresh with "
        "--overwrite"
    )


def problems_of(
    problem_of: Callable[[Unit], str | None], units: Sequence[Unit], description: str, num_threads: int
) -> list[tuple[Unit, str]]:
    """Checks units of finished work with a progress bar.

    Args:
        problem_of: names what is wrong with a unit; None where it is whole.
        units: to check.
        description: of the bar.
        num_threads: that read at once.

    Returns:
        The damaged units, each with its problem.
    """
    if not units:
        return []
    with ThreadPoolExecutor(num_threads) as pool:
        problems = list(progress_bar(pool.map(problem_of, units), desc=description, total=len(units)))
    return [(unit, problem) for unit, problem in zip(units, problems, strict=True) if problem is not None]


def _say_what_is_not_recorded(units: str, facts: Sequence[dict | None]) -> None:
    """Says that chunks or parts of an earlier version lack checksums."""
    if not all(has_checksum(fact) for fact in facts if fact is not None):
        log_rank_zero(
            f"{units} of an earlier version: not all of their checksums are recorded, so that some damage goes "
            "unnoticed"
        )


def say_damages(problems: Sequence[str]) -> None:
    """Says what is made anew: the first damages, and how many more there are."""
    for problem in problems[:SHOWN_DAMAGES]:
        log_rank_zero(f"{problem}: made anew")
    if len(problems) > SHOWN_DAMAGES:
        log_rank_zero(f"and {len(problems) - SHOWN_DAMAGES:,} more are made anew")
