"""Prepares a data set: tokenize the input chunk by chunk, plan the buckets, write the parts, tell what was done.

input files → chunks → cache/chunks → plan → arrow/part-0000i, jsonl/part-0000i.jsonl →
manifest.json
"""

import errno
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from colossal_llama.dataset.prepare import output_dir
from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.buckets import plan_parts
from colossal_llama.dataset.prepare.cache import PartPlan, chunk_facts
from colossal_llama.dataset.prepare.chunk_worker import ChunkJob, process_chunk
from colossal_llama.dataset.prepare.input_files import Chunk, InputFile, content_digest, find_input_files, plan_chunks
from colossal_llama.dataset.prepare.manifest import build_manifest, total_statistics
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer, record_tokenizer
from colossal_llama.dataset.prepare.part_writer import PartTask, part_facts, write_part
from colossal_llama.dataset.prepare.rejections import (
    SHOWN_BAD_RECORDS,
    BadInputError,
    bad_record_messages,
    write_rejected,
)
from colossal_llama.dataset.prepare.worker_pool import WorkerPool, shared_flag, worker_pool
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.utils.atomic_io import fsync_path, write_json
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError


@dataclass
class Rates:
    """Seconds, and what was done in them, of each stage of this run (not of earlier ones that it went on with)."""

    tokenize_s: float = 0.0
    tokenized_documents: int = 0
    tokenized_tokens: int = 0
    write_s: float = 0.0
    written_tokens: int = 0
    total_s: float = 0.0


def prepare(arguments: PrepareArguments, opened: OpenTokenizer | None = None) -> dict | None:
    """Runs a preparation, or the rest of one that was interrupted.

    Args:
        arguments: of the script.
        opened: the tokenizer of `--tokenizer_dir`, if it is open already.

    Returns:
        The manifest; None if this is one shard's job and the others have not finished tokenizing.

    Raises:
        UserError: the input, the tokenizer or the output directory is not as it must be; the disk
            is full.
    """
    try:
        with output_dir.output_dir_lock(arguments):
            return _prepare_locked(arguments, opened)
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read or written: {error.strerror}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {arguments.output_dir} is full: free some space and run the same command again; finished "
            "parts are intact and will be kept"
        ) from error


def _prepare_locked(arguments: PrepareArguments, opened: OpenTokenizer | None) -> dict | None:
    started = time.perf_counter()
    files = find_input_files(arguments.paths.data_input_dirs, excluded=arguments.output_dir)
    tokenizer, format_facts = record_tokenizer(arguments, opened or OpenTokenizer(arguments.paths.tokenizer_dir))
    identity = output_dir.identity(arguments, files, format_facts)
    state = output_dir.open_directory(arguments, identity, files)
    preparation = _Preparation(arguments, files, plan_chunks(files, arguments.run.limit), identity, Rates())
    if state != "new":
        _refuse_changed_content(preparation, state)
    if state == "complete":
        log_rank_zero(f"{arguments.output_dir} is complete already, nothing is done")
        manifest = orjson.loads((arguments.output_dir / "manifest.json").read_bytes())
    else:
        done = _do_what_is_left(preparation, tokenizer, new=state == "new")
        if done is None:
            return None
        preparation.rates.total_s = time.perf_counter() - started
        manifest = _finish(preparation, *done)
    if not arguments.run.keep_cache:
        with output_dir.finishing_lock(arguments.output_dir):
            output_dir.empty_cache(arguments.output_dir)
    return manifest


@dataclass(frozen=True)
class _Preparation:
    """A preparation in its directory."""

    arguments: PrepareArguments
    files: Sequence[InputFile]
    chunks: Sequence[Chunk]
    identity: dict
    rates: Rates

    @property
    def chunk_dir(self) -> Path:
        return self.arguments.output_dir / "cache" / "chunks"


def _do_what_is_left(
    preparation: _Preparation, tokenizer: DocumentTokenizer | ConversationTokenizer, new: bool
) -> tuple[list[dict], list[dict]] | None:
    """Tokenizes and writes parts; the facts of all chunks and of all parts, or None if other shards have not done their share."""
    job = ChunkJob(tokenizer, preparation.chunk_dir, preparation.arguments.run.on_bad_record == "stop", shared_flag())
    with worker_pool(preparation.arguments.run.num_workers, job) as pool:
        try:
            _tokenize(preparation, pool)
            facts = [chunk_facts(preparation.chunk_dir, chunk.index) for chunk in preparation.chunks]
            if _left_to_others("chunks", facts):
                return None
            if not sum(fact["segments"] for fact in facts):
                raise BadInputError(_nothing_to_write(facts))
        except BadInputError:
            if new and preparation.arguments.shards.shard_index is None:
                output_dir.abandon(preparation.arguments)
            raise
        parts = _write_parts(preparation, pool, facts)
    return None if _left_to_others("parts", parts) else (facts, parts)


def _left_to_others(what: str, facts: Sequence[dict | None]) -> bool:
    missing = sum(fact is None for fact in facts)
    if missing:
        log_rank_zero(
            f"{missing} of {len(facts)} {what} are left to the other shards. When their jobs have ended, run this "
            "command again, or the command without --num_shards and --shard_index, which does what is left."
        )
    return bool(missing)


def _nothing_to_write(facts: Sequence[dict]) -> str:
    reasons = sum((Counter(fact["rejected_records"]) for fact in facts), Counter())
    for counts in total_statistics(facts).values():
        reasons += Counter({key: count for key, count in counts.items() if key.startswith("dropped_documents.")})
    told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "the files are empty"
    return f"--data_input_dirs: no record could be used, so that there is nothing to write ({told})"


def _finish(preparation: _Preparation, facts: Sequence[dict], parts: Sequence[dict]) -> dict:
    """Writes what lies beside the parts, unless another shard's job has done it meanwhile, and returns the manifest."""
    directory = preparation.arguments.output_dir
    with output_dir.finishing_lock(directory):
        if (directory / "manifest.json").is_file():
            return orjson.loads((directory / "manifest.json").read_bytes())
        write_rejected(directory, preparation.chunk_dir, preparation.chunks, facts)
        manifest = build_manifest(preparation.identity, facts, parts, [chunk.file.name for chunk in preparation.chunks])
        _write_records(preparation, manifest)
    return manifest


def _write_records(preparation: _Preparation, manifest: dict) -> None:
    """Writes what tells how the run went, and last the manifest, which makes the preparation complete."""
    times = output_dir.modification_times(preparation.files)
    last_run = {"num_workers": preparation.arguments.run.num_workers, **vars(preparation.rates), "modified_ns": times}
    write_json(preparation.arguments.output_dir / "last_run.json", last_run)
    write_json(preparation.arguments.output_dir / "manifest.json", manifest)


def _refuse_changed_content(preparation: _Preparation, state: output_dir.State) -> None:
    """Compares what has been read with what the files hold now, where their times do not say that it is the same."""
    directory, chunks = preparation.arguments.output_dir, preparation.chunks
    suspects = output_dir.changed_times(directory, preparation.files)
    if not suspects:
        return
    if state == "complete":
        manifest = orjson.loads((directory / "manifest.json").read_bytes())
        rows = {entry["name"]: entry["rows"] for entry in manifest["input_files"]}
        known = {entry["name"]: iter(entry["chunk_sha256"]) for entry in manifest["input_files"]}
        readings = [(chunk, rows[chunk.file.name], next(known[chunk.file.name])) for chunk in chunks]
    else:
        facts = [chunk_facts(preparation.chunk_dir, chunk.index) for chunk in chunks]
        readings = [(chunk, fact["rows"], fact["sha256"]) for chunk, fact in zip(chunks, facts, strict=True) if fact]
    changed = {
        chunk.file.name: None
        for chunk, row_count, sha256 in readings
        if chunk.file.name in suspects and content_digest(chunk, row_count) != sha256
    }
    output_dir.refuse_changed_content(directory, list(changed))


# ----------------------------------------------------------------------------------------------------- tokenizing


def _tokenize(preparation: _Preparation, pool: WorkerPool) -> None:
    """Tokenizes the chunks of this job that are not done."""
    waiting = [
        chunk
        for chunk in preparation.chunks
        if preparation.arguments.shards.includes(chunk.index)
        and chunk_facts(preparation.chunk_dir, chunk.index) is None
    ]
    rates = preparation.rates
    started = time.perf_counter()
    bad: list[tuple[Chunk, dict]] = []
    with progress_bar(total=sum(map(_chunk_bytes, waiting)), desc="tokenize", unit="B", unit_scale=True) as bar:
        for chunk, facts in zip(waiting, pool.map(process_chunk, waiting), strict=True):
            bar.update(_chunk_bytes(chunk))
            if not facts["finished"]:
                bad += [(chunk, record) for record in facts["rejected"]]
                if len(bad) > SHOWN_BAD_RECORDS:
                    break
                continue
            rates.tokenized_documents += facts["documents"]
            rates.tokenized_tokens += facts["tokens"]
            elapsed = time.perf_counter() - started
            bar.set_postfix_str(
                f"{rates.tokenized_documents / elapsed:,.0f} documents/s, {rates.tokenized_tokens / elapsed:,.0f} "
                "tokens/s"
            )
    rates.tokenize_s = time.perf_counter() - started
    if bad:
        raise BadInputError(bad_record_messages(bad))


def _chunk_bytes(chunk: Chunk) -> int:
    return chunk.file.size_bytes if chunk.end is None else chunk.end - chunk.start


# ---------------------------------------------------------------------------------------------------------- parts


def _write_parts(preparation: _Preparation, pool: WorkerPool, facts: Sequence[dict]) -> list[dict | None]:
    """Writes the parts of this job that are not done; returns the facts of all parts, None for those that are not done."""
    arguments, directory = preparation.arguments, preparation.arguments.output_dir
    indices = range(arguments.rows.num_spliced_dataset_bins)
    mine = [
        index
        for index in indices
        if preparation.arguments.shards.includes(index) and part_facts(directory, index) is None
    ]
    if mine:
        categories = tuple(sorted({name for fact in facts for name in fact["categories"]}))
        splicing = arguments.rows.splicing
        row_tokens = arguments.rows.max_length if splicing == "best_fit" else None
        plan = plan_parts(preparation.chunk_dir, facts, categories, arguments.rows.num_spliced_dataset_bins, row_tokens)
        plan.save(directory / "cache" / "plan")
        common = {"kind": arguments.kind, "max_length": arguments.rows.max_length, "seed": arguments.rows.seed}
        common |= {name: preparation.identity[name] for name in ("tokenizer_fingerprint", "vocab_size")}
        task = PartTask(directory, splicing, arguments.rows.max_length, arguments.rows.seed, categories, common)
        _run_part_tasks(pool, [(task, index) for index in mine], plan, preparation.rates)
        for name in ("arrow", "jsonl"):
            fsync_path(directory / name)
    return [part_facts(directory, index) for index in indices]


def _run_part_tasks(pool: WorkerPool, tasks: Sequence[tuple[PartTask, int]], plan: PartPlan, rates: Rates) -> None:
    started = time.perf_counter()
    ranges = [slice(*plan.part_starts[index : index + 2]) for _, index in tasks]
    tokens = [int(plan.lengths[segments].sum()) for segments in ranges]
    written = 0
    with progress_bar(total=sum(tokens), desc="write parts", unit=" tokens", unit_scale=True) as bar:
        for segments, count, _ in zip(ranges, tokens, pool.map(_write_one_part, tasks), strict=True):
            bar.update(count)
            written += int(plan.first_of_document[segments].sum())
            bar.set_postfix_str(f"{written / (time.perf_counter() - started):,.0f} documents/s")
    rates.write_s, rates.written_tokens = time.perf_counter() - started, sum(tokens)


def _write_one_part(_: ChunkJob, task: tuple[PartTask, int]) -> None:
    write_part(*task)
