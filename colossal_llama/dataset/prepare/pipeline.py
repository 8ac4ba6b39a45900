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
from colossal_llama.dataset.prepare.buckets import plan_parts
from colossal_llama.dataset.prepare.cache import Plan, chunk_facts
from colossal_llama.dataset.prepare.chunk_worker import ChunkJob, process_chunk
from colossal_llama.dataset.prepare.config import Settings
from colossal_llama.dataset.prepare.input_files import Chunk, InputFile, content_digest, find_input_files, plan_chunks
from colossal_llama.dataset.prepare.manifest import build_manifest, total_statistics
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer, sample_tokenizer
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


def prepare(settings: Settings, opened: OpenTokenizer | None = None) -> dict | None:
    """Runs a preparation, or the rest of one that was interrupted.

    Args:
        settings: what to do.
        opened: the tokenizer of `settings.tokenizer_dir`, if it is open already.

    Returns:
        The manifest; None if this is one shard's job and the others have not finished tokenizing.

    Raises:
        UserError: the input, the tokenizer or the output directory is not as it must be; the disk
            is full.
    """
    try:
        with output_dir.locked(settings):
            return _prepare_locked(settings, opened)
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read or written: {error.strerror}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {settings.output_dir} is full: free some space and run the same command again; "
            "finished parts are intact and will be kept"
        ) from error


def _prepare_locked(settings: Settings, opened: OpenTokenizer | None) -> dict | None:
    started = time.perf_counter()
    files = find_input_files(settings.data_input_dirs, excluded=settings.output_dir)
    tokenizer, format_facts = sample_tokenizer(settings, opened or OpenTokenizer(settings.tokenizer_dir))
    identity = output_dir.identity(settings, files, format_facts)
    state = output_dir.open_directory(settings, identity, files)
    run = _Run(settings, files, plan_chunks(files, settings.limit), identity, Rates())
    if state != "new":
        _refuse_changed_content(run, state)
    if state == "complete":
        log_rank_zero(f"{settings.output_dir} is complete already, nothing is done")
        manifest = orjson.loads((settings.output_dir / "manifest.json").read_bytes())
    else:
        done = _do_what_is_left(run, tokenizer, new=state == "new")
        if done is None:
            return None
        run.rates.total_s = time.perf_counter() - started
        manifest = _finish(run, *done)
    if not settings.keep_cache:
        with output_dir.finishing(settings.output_dir):
            output_dir.empty_cache(settings.output_dir)
    return manifest


@dataclass(frozen=True)
class _Run:
    """A preparation in its directory."""

    settings: Settings
    files: Sequence[InputFile]
    chunks: Sequence[Chunk]
    identity: dict
    rates: Rates

    @property
    def chunk_dir(self) -> Path:
        return self.settings.output_dir / "cache" / "chunks"

    def is_mine(self, index: int) -> bool:
        """Whether a chunk or part is this job's to do."""
        return self.settings.shard_index is None or index % self.settings.num_shards == self.settings.shard_index


def _do_what_is_left(
    run: _Run, tokenizer: DocumentTokenizer | ConversationTokenizer, new: bool
) -> tuple[list[dict], list[dict]] | None:
    """Tokenizes and writes parts; the facts of all chunks and of all parts, or None if other shards have not done their share."""
    job = ChunkJob(tokenizer, run.chunk_dir, run.settings.on_bad_record == "stop", shared_flag())
    with worker_pool(run.settings.num_workers, job) as pool:
        try:
            _tokenize(run, pool)
            facts = [chunk_facts(run.chunk_dir, chunk.index) for chunk in run.chunks]
            if _left_to_others("chunks", facts):
                return None
            if not sum(fact["segments"] for fact in facts):
                raise BadInputError(_nothing_to_write(facts))
        except BadInputError:
            if new and run.settings.shard_index is None:
                output_dir.abandon(run.settings)
            raise
        parts = _write_parts(run, pool, facts)
    return None if _left_to_others("parts", parts) else (facts, parts)


def _left_to_others(what: str, facts: Sequence[dict | None]) -> bool:
    missing = sum(fact is None for fact in facts)
    if missing:
        log_rank_zero(
            f"{missing} of {len(facts)} {what} are left to the other shards. When their jobs have ended, run this "
            "command "
            "again, or the command without --num_shards and --shard_index, which does what is left."
        )
    return bool(missing)


def _nothing_to_write(facts: Sequence[dict]) -> str:
    reasons = sum((Counter(fact["rejected_records"]) for fact in facts), Counter())
    for counts in total_statistics(facts).values():
        reasons += Counter({key: count for key, count in counts.items() if key.startswith("dropped_documents.")})
    told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "the files are empty"
    return f"--data_input_dirs: no record could be used, so that there is nothing to write ({told})"


def _finish(run: _Run, facts: Sequence[dict], parts: Sequence[dict]) -> dict:
    """Writes what lies beside the parts, unless another shard's job has done it meanwhile, and returns the manifest."""
    directory = run.settings.output_dir
    with output_dir.finishing(directory):
        if (directory / "manifest.json").is_file():
            return orjson.loads((directory / "manifest.json").read_bytes())
        write_rejected(directory, run.chunk_dir, run.chunks, facts)
        manifest = build_manifest(run.identity, facts, parts, [chunk.file.name for chunk in run.chunks])
        _write_records(run, manifest)
    return manifest


def _write_records(run: _Run, manifest: dict) -> None:
    """Writes what tells how the run went, and last the manifest, which makes the preparation complete."""
    times = output_dir.modification_times(run.files)
    last_run = {"num_workers": run.settings.num_workers, **vars(run.rates), "modified_ns": times}
    write_json(run.settings.output_dir / "last_run.json", last_run)
    write_json(run.settings.output_dir / "manifest.json", manifest)


def _refuse_changed_content(run: _Run, state: output_dir.State) -> None:
    """Compares what has been read with what the files hold now, where their times do not say that it is the same."""
    directory, chunks = run.settings.output_dir, run.chunks
    suspects = output_dir.changed_times(directory, run.files)
    if not suspects:
        return
    if state == "complete":
        manifest = orjson.loads((directory / "manifest.json").read_bytes())
        rows = {entry["name"]: entry["rows"] for entry in manifest["input_files"]}
        known = {entry["name"]: iter(entry["chunk_sha256"]) for entry in manifest["input_files"]}
        readings = [(chunk, rows[chunk.file.name], next(known[chunk.file.name])) for chunk in chunks]
    else:
        facts = [chunk_facts(run.chunk_dir, chunk.index) for chunk in chunks]
        readings = [(chunk, fact["rows"], fact["sha256"]) for chunk, fact in zip(chunks, facts, strict=True) if fact]
    changed = {
        chunk.file.name: None
        for chunk, row_count, sha256 in readings
        if chunk.file.name in suspects and content_digest(chunk, row_count) != sha256
    }
    output_dir.refuse_changed_content(directory, list(changed))


# ----------------------------------------------------------------------------------------------------- tokenizing


def _tokenize(run: _Run, pool: WorkerPool) -> None:
    """Tokenizes the chunks of this job that are not done."""
    waiting = [
        chunk for chunk in run.chunks if run.is_mine(chunk.index) and chunk_facts(run.chunk_dir, chunk.index) is None
    ]
    rates = run.rates
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


def _write_parts(run: _Run, pool: WorkerPool, facts: Sequence[dict]) -> list[dict | None]:
    """Writes the parts of this job that are not done; returns the facts of all parts, None for those that are not done."""
    settings, output_dir = run.settings, run.settings.output_dir
    indices = range(settings.num_bins)
    mine = [index for index in indices if run.is_mine(index) and part_facts(output_dir, index) is None]
    if mine:
        categories = tuple(sorted({name for fact in facts for name in fact["categories"]}))
        splicing = settings.splicing if settings.kind == "pretrain" else "none"
        row_tokens = settings.max_length if splicing == "best_fit" else None
        plan = plan_parts(run.chunk_dir, facts, categories, settings.num_bins, row_tokens)
        plan.save(output_dir / "cache" / "plan")
        common = {"kind": settings.kind, "max_length": settings.max_length, "seed": settings.seed}
        common |= {name: run.identity[name] for name in ("tokenizer_fingerprint", "vocab_size")}
        task = PartTask(output_dir, splicing, settings.max_length, settings.seed, categories, common)
        _run_part_tasks(pool, [(task, index) for index in mine], plan, run.rates)
        for name in ("arrow", "jsonl"):
            fsync_path(output_dir / name)
    return [part_facts(output_dir, index) for index in indices]


def _run_part_tasks(pool: WorkerPool, tasks: Sequence[tuple[PartTask, int]], plan: Plan, rates: Rates) -> None:
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
