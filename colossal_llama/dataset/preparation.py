"""Prepares a data set: tokenize the input chunk by chunk, plan the buckets, write the parts, tell what was done.

input files → chunks → cache/chunks → plan → arrow/part-0000i, jsonl/part-0000i.jsonl → manifest.json
"""

import errno
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import orjson

from colossal_llama.dataset import run_directory
from colossal_llama.dataset.buckets import assign_bins
from colossal_llama.dataset.chunks import SHOWN_RECORD_CHARACTERS, ChunkJob, process_chunk
from colossal_llama.dataset.conversation import ConversationTemplate
from colossal_llama.dataset.intermediates import Plan, chunk_facts, chunk_rejected, chunk_segments
from colossal_llama.dataset.manifest import build_manifest
from colossal_llama.dataset.parts import PartTask, part_facts, write_part
from colossal_llama.dataset.records import Chunk, find_input_files, first_row_number, plan_chunks
from colossal_llama.dataset.segmentation import CutRanks
from colossal_llama.dataset.settings import Settings
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.dataset.worker_pool import WorkerPool, worker_pool
from colossal_llama.tokenizer.bulk_encoding import BulkEncoder
from colossal_llama.tokenizer.loading import TextEncoder, load_tokenizer, tokenizer_fingerprint
from colossal_llama.tokenizer.token_bytes import token_bytes
from colossal_llama.utils.console import progress, say
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.files import sync_to_disk, write_bytes, write_json

SHOWN_BAD_RECORDS = 20


@dataclass
class Rates:
    """Seconds, and what was done in them, of each stage of this run (not of earlier ones that it went on with)."""

    tokenize_s: float = 0.0
    tokenized_documents: int = 0
    tokenized_tokens: int = 0
    write_s: float = 0.0
    written_tokens: int = 0
    total_s: float = 0.0


def prepare(settings: Settings, opened: "OpenTokenizer | None" = None) -> dict | None:
    """Runs a preparation, or the rest of one that was interrupted.

    Args:
        settings: what to do.
        opened: the tokenizer of `settings.tokenizer_dir`, if it is open already.

    Returns:
        The manifest; None if this is one shard's job and the others have not finished tokenizing.

    Raises:
        UserError: the input, the tokenizer or the output directory is not as it must be; the disk is full.
    """
    try:
        with run_directory.locked(settings):
            return _prepare_locked(settings, opened)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {settings.output_dir} is full: free some space and run the same command again; "
            "finished parts are intact and will be kept"
        ) from error


def _prepare_locked(settings: Settings, opened: "OpenTokenizer | None") -> dict | None:
    started = time.perf_counter()
    files = find_input_files(settings.data_input_dirs, excluded=settings.output_dir)
    opened = opened or OpenTokenizer(settings.tokenizer_dir)
    sample_tokenizer, format_facts = _sample_tokenizer(settings, opened)
    identity = run_directory.identity(settings, files, format_facts)
    state = run_directory.open_directory(settings, identity)
    if state == "complete":
        say(f"{settings.output_dir} is complete already, nothing is done")
        run_directory.empty_cache(settings.output_dir)
        return orjson.loads((settings.output_dir / "manifest.json").read_bytes())
    chunks, rates = plan_chunks(files, settings.limit), Rates()
    chunk_dir = settings.output_dir / "cache" / "chunks"
    flag = get_context("spawn").Value("b", 0)
    job = ChunkJob(sample_tokenizer, chunk_dir, settings.on_bad_record == "stop", flag)
    with worker_pool(settings.num_workers, job) as pool:
        try:
            _tokenize(settings, pool, chunks, rates)
        except UserError:
            if state == "new" and settings.shard_index is None:
                run_directory.abandon(settings)
            raise
        facts = [chunk_facts(chunk_dir, chunk.index) for chunk in chunks]
        if any(fact is None for fact in facts):
            say(_unfinished(facts))
            return None
        if not sum(fact["segments"] for fact in facts):
            raise UserError("--data_input_dirs: no record could be used, so that there is nothing to write")
        parts = _write_parts(settings, pool, facts, format_facts, rates)
    if any(part is None for part in parts):
        say(_unfinished(parts))
        return None
    manifest = build_manifest(identity, facts, parts, [chunk.file.name for chunk in chunks])
    _write_rejected(settings.output_dir, chunk_dir, chunks, facts)
    rates.total_s = time.perf_counter() - started
    write_json(settings.output_dir / "last_run.json", {"num_workers": settings.num_workers, **vars(rates)})
    write_json(settings.output_dir / "manifest.json", manifest)
    if not settings.keep_cache:
        run_directory.empty_cache(settings.output_dir)
    return manifest


def _unfinished(facts: Sequence[dict | None]) -> str:
    return (
        f"{sum(fact is None for fact in facts)} of {len(facts)} are left to the other shards. When their jobs have "
        "ended, run this command again, or the command without --num_shards and --shard_index, which does what is left."
    )


class OpenTokenizer:
    """A tokenizer with what is computed from its vocabulary when it is needed: 0.5 s for LLaMA-2, 3 s for LLaMA-3."""

    def __init__(self, directory: Path):
        """Opens a tokenizer directory.

        Raises:
            UserError: see `load_tokenizer`.
        """
        self.tokenizer = load_tokenizer(directory)
        self.fingerprint = tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def _definition(self) -> dict:
        return json.loads(self.tokenizer.backend_tokenizer.to_str())

    @cached_property
    def encoder(self) -> BulkEncoder:
        """Encodes texts."""
        return BulkEncoder(TextEncoder(self.tokenizer), self._definition)

    @cached_property
    def ranks(self) -> CutRanks:
        """Tells where long documents are cut."""
        return CutRanks(token_bytes(self._definition, len(self.tokenizer)))


def _sample_tokenizer(
    settings: Settings, opened: OpenTokenizer
) -> tuple[DocumentTokenizer | ConversationTokenizer, dict]:
    """What turns records into samples, and the facts by which its format is known."""
    tokenizer = opened.tokenizer
    facts = {"tokenizer_fingerprint": opened.fingerprint, "vocab_size": len(tokenizer)}
    if settings.kind == "sft":
        template = ConversationTemplate.for_llama(tokenizer, settings.llama_version)
        facts["template"] = template.describe()
        samples = ConversationTokenizer(template, opened.encoder, settings.max_length, settings.long_conversations)
        return samples, facts
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    facts |= {"bos_id": bos_id, "eos_id": eos_id}
    samples = DocumentTokenizer(
        opened.encoder, bos_id, eos_id, opened.ranks, settings.max_length, settings.long_documents
    )
    return samples, facts


# ----------------------------------------------------------------------------------------------------- tokenizing


def _tokenize(settings: Settings, pool: WorkerPool, chunks: Sequence[Chunk], rates: Rates) -> None:
    """Tokenizes the chunks of this job that are not done."""
    chunk_dir = settings.output_dir / "cache" / "chunks"
    waiting = [
        chunk
        for chunk in chunks
        if (settings.shard_index is None or chunk.index % settings.num_shards == settings.shard_index)
        and chunk_facts(chunk_dir, chunk.index) is None
    ]
    started = time.perf_counter()
    bad: list[tuple[Chunk, dict]] = []
    with progress(total=sum(map(_chunk_bytes, waiting)), desc="tokenize", unit="B", unit_scale=True) as bar:
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
                f"{rates.tokenized_documents / elapsed:,.0f} documents/s, {rates.tokenized_tokens / elapsed:,.0f} tokens/s"
            )
    rates.tokenize_s = time.perf_counter() - started
    if bad:
        raise UserError(_bad_record_messages(bad))


def _chunk_bytes(chunk: Chunk) -> int:
    return chunk.file.size_bytes if chunk.end is None else chunk.end - chunk.start


def _bad_record_messages(bad: Sequence[tuple[Chunk, dict]]) -> list[str]:
    first_rows = {chunk.index: first_row_number(chunk) for chunk, _ in bad[:SHOWN_BAD_RECORDS]}
    messages = []
    for chunk, record in bad[:SHOWN_BAD_RECORDS]:
        line = first_rows[chunk.index] + record["row"] + 1
        shown = record["record"][:SHOWN_RECORD_CHARACTERS]
        messages.append(f"{chunk.file.path}:{line}: {record['message']} | {shown}")
    count = f"more than {SHOWN_BAD_RECORDS}" if len(bad) > SHOWN_BAD_RECORDS else f"{len(bad)}"
    return [
        *messages,
        f"{count} bad record{'s' if len(bad) > 1 else ''}, so that no part was written. Correct them, or pass them over with "
        "--on_bad_record skip, which counts them by reason and lists them in rejected.jsonl.",
    ]


def _write_rejected(output_dir: Path, chunk_dir: Path, chunks: Sequence[Chunk], facts: Sequence[dict]) -> None:
    """Gathers the bad records of all chunks in rejected.jsonl, with line numbers that count within their files."""
    lines, first_row = [], 0
    for chunk, fact in zip(chunks, facts, strict=True):
        first_row = 0 if chunk.start == 0 else first_row
        for record in chunk_rejected(chunk_dir, chunk.index):
            line = first_row + record.pop("row") + 1
            lines.append(
                orjson.dumps({"file": chunk.file.name, "line": line, **record}, option=orjson.OPT_APPEND_NEWLINE)
            )
        first_row += fact["rows"]
    if lines:
        write_bytes(output_dir / "rejected.jsonl", b"".join(lines))


# ---------------------------------------------------------------------------------------------------------- parts


def _write_parts(
    settings: Settings, pool: WorkerPool, facts: Sequence[dict], format_facts: dict, rates: Rates
) -> list[dict | None]:
    """Writes the parts of this job that are not done; returns the facts of all parts, None for those that are not done."""
    categories = tuple(sorted({name for fact in facts for name in fact["categories"]}))
    mine = [
        index
        for index in range(settings.num_bins)
        if (settings.shard_index is None or index % settings.num_shards == settings.shard_index)
        and part_facts(settings.output_dir, index) is None
    ]
    if mine:
        plan = _plan(settings.output_dir / "cache" / "chunks", facts, categories, settings.num_bins)
        plan.save(settings.output_dir / "cache" / "plan")
        task = PartTask(
            output_dir=settings.output_dir,
            splicing=settings.splicing if settings.kind == "pretrain" else "none",
            max_length=settings.max_length,
            seed=settings.seed,
            categories=categories,
            facts={
                "kind": settings.kind,
                "max_length": settings.max_length,
                "seed": settings.seed,
                "tokenizer_fingerprint": format_facts["tokenizer_fingerprint"],
                "vocab_size": format_facts["vocab_size"],
            },
        )
        _run_part_tasks(pool, [(task, index) for index in mine], plan, rates)
        for name in ("arrow", "jsonl"):
            sync_to_disk(settings.output_dir / name)
    return [part_facts(settings.output_dir, index) for index in range(settings.num_bins)]


def _run_part_tasks(pool: WorkerPool, tasks: Sequence[tuple[PartTask, int]], plan: Plan, rates: Rates) -> None:
    started = time.perf_counter()
    tokens = [int(plan.lengths[slice(*plan.part_starts[index : index + 2])].sum()) for _, index in tasks]
    with progress(total=sum(tokens), desc="write parts", unit=" tokens", unit_scale=True) as bar:
        for count, _ in zip(tokens, pool.map(_write_one_part, tasks), strict=True):
            bar.update(count)
    rates.write_s, rates.written_tokens = time.perf_counter() - started, sum(tokens)


def _write_one_part(_: ChunkJob, task: tuple[PartTask, int]) -> None:
    write_part(*task)


def _plan(chunk_dir: Path, facts: Sequence[dict], categories: tuple[str, ...], num_bins: int) -> Plan:
    """Deals all documents to the parts and orders each part's segments by category, then length, then place in the input."""
    number_of = {name: number for number, name in enumerate(categories)}
    tables, first_document = [], 0
    for fact in facts:
        segments = chunk_segments(chunk_dir, fact["index"])
        numbers = np.array([number_of[name] for name in fact["categories"]], np.int32)
        segments["category"] = numbers[segments["category"]] if len(segments) else 0
        segments["document"] += first_document
        first_document += fact["documents"]
        tables.append(segments)
    segments = np.concatenate(tables)
    lengths, documents, segment_categories = (np.ascontiguousarray(segments[name]) for name in segments.dtype.names)
    first_of_document = np.concatenate([[True], np.diff(documents) != 0])
    bins = assign_bins(segment_categories[first_of_document], num_bins)[documents]
    order = np.lexsort((lengths, segment_categories, bins))
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return Plan(
        starts=starts[order],
        lengths=lengths[order],
        categories=segment_categories[order],
        first_of_document=first_of_document[order],
        part_starts=np.searchsorted(bins[order], np.arange(num_bins + 1)),
        chunk_starts=np.cumsum([0, *(fact["tokens"] for fact in facts)]),
    )
