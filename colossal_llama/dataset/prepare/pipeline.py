"""Prepares a data set: tokenizes the input chunk by chunk, plans the parts and writes them.

input files → chunks → cache/chunks → cache/plan → arrow/part-0000i, jsonl/part-0000i.jsonl →
manifest.json
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from colossal_llama.dataset.prepare import output_dir
from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.cache import PartPlan, chunk_facts
from colossal_llama.dataset.prepare.chunk_worker import ChunkJob, process_chunk
from colossal_llama.dataset.prepare.input_files import (
    Chunk,
    Piece,
    content_digest,
    plan_chunks,
)
from colossal_llama.dataset.prepare.manifest import build_manifest, read_manifest, total_statistics
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer, record_tokenizer
from colossal_llama.dataset.prepare.output_errors import errors_named
from colossal_llama.dataset.prepare.part_planning import category_names, open_plan, report_plan, show_plan
from colossal_llama.dataset.prepare.part_writer import PartTask, part_facts, write_part
from colossal_llama.dataset.prepare.range_entries import with_entries
from colossal_llama.dataset.prepare.reading_bar import ReadingBar
from colossal_llama.dataset.prepare.recheck import (
    recheck_chunks,
    recheck_parts,
    recheck_rejected,
    refuse_other_parts,
    remove_parts_of_other_plan,
    say_further_entries,
)
from colossal_llama.dataset.prepare.recorded_tokenizer import tokenizer_record
from colossal_llama.dataset.prepare.rejections import (
    SHOWN_BAD_RECORDS,
    BadInputError,
    bad_record_messages,
    write_rejected,
)
from colossal_llama.dataset.prepare.worker_pool import ProgressReports, WorkerPool, shared_flag, worker_pool
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.readers.column_messages import ColumnMessages
from colossal_llama.readers.directory_listing import unread_message
from colossal_llama.readers.fields import OTHER_KIND, with_file_categories
from colossal_llama.readers.input_doubts import doubts_about
from colossal_llama.readers.listing import InputFile, find_input_files, refuse_files_that_changed
from colossal_llama.readers.remote import is_of_this_process
from colossal_llama.utils.atomic_io import fsync_path
from colossal_llama.utils.checked_json import with_checksum, write_checked
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError


@dataclass
class StageTimes:
    """Duration and throughput of each stage of this run, without the runs that it resumes."""

    tokenize_s: float = 0.0
    tokenized_documents: int = 0
    tokenized_tokens: int = 0
    write_s: float = 0.0
    written_tokens: int = 0
    total_s: float = 0.0


def prepare(arguments: PrepareArguments, opened: OpenTokenizer | None = None) -> dict | None:
    """Runs a preparation, or resumes one that was interrupted.

    Args:
        arguments: of the script.
        opened: the tokenizer of `--tokenizer_dir`, if it has been opened.

    Returns:
        The manifest; None if this is one shard's job and others have not finished theirs, and with
            `--plan_only`, which prints the plan.

    Raises:
        UserError: the input, the tokenizer or the output directory cannot be used; the disk is
            full.
    """
    with errors_named(arguments.output_dir), output_dir.run_lock(arguments):
        return _prepare_locked(arguments, opened)


def _prepare_locked(arguments: PrepareArguments, opened: OpenTokenizer | None) -> dict | None:
    started = time.perf_counter()
    files, unread_files = find_input_files(arguments.paths.data_input_dirs, excluded=arguments.output_dir)
    files = with_file_categories(files, arguments.fields)
    for message in filter(None, (unread_message(unread_files), doubts_about(files))):
        log_rank_zero(message)
    arguments = _for_files(arguments, files)
    date = output_dir.recorded_date(arguments) or datetime.now().date().isoformat()
    opened = opened or OpenTokenizer(arguments.paths.tokenizer_dir)
    tokenizer, format_facts = record_tokenizer(arguments, opened, date)
    identity = output_dir.identity(arguments, files, format_facts)
    missing = output_dir.missing_directories(arguments)
    state = output_dir.open_directory(arguments, identity, files)
    rules = [state == "new" or output_dir.has_rule(arguments.output_dir, rule) for rule in output_dir.CHUNK_RULES]
    chunks = plan_chunks(files, arguments.run.limit, *rules)
    origin = tokenizer_record(opened.directory)
    preparation = _Preparation(arguments, files, unread_files, chunks, identity, StageTimes(), origin)
    if state != "new":
        _refuse_changed_content(preparation, state)
    if state == "complete" and arguments.mixture.plan_only:
        _show_plan_of_complete(preparation)
        return None
    if state == "complete" and _is_whole(preparation):
        log_rank_zero(f"{arguments.output_dir} is complete already: nothing to do")
        manifest = read_manifest(arguments.output_dir)
    else:
        done = _tokenize_and_write(preparation, tokenizer, made=missing if state == "new" else None)
        if done is None:
            return None
        preparation.times.total_s = time.perf_counter() - started
        manifest = _finish(preparation, *done)
    if not arguments.run.keep_cache:
        with output_dir.finishing_lock(arguments.output_dir):
            output_dir.empty_cache(arguments.output_dir)
    return manifest


def _for_files(arguments: PrepareArguments, files: Sequence[InputFile]) -> PrepareArguments:
    """The arguments, with one worker where other processes do not see the files."""
    if arguments.run.num_workers == 1 or not any(is_of_this_process(file.path) for file in files):
        return arguments
    log_rank_zero("memory:// is of this process alone, which does the work of all workers")
    return replace(arguments, run=replace(arguments.run, num_workers=1))


@dataclass(frozen=True)
class _Preparation:
    """A preparation and its output directory."""

    arguments: PrepareArguments
    files: Sequence[InputFile]
    unread_files: dict
    chunks: Sequence[Chunk]
    identity: dict
    times: StageTimes
    tokenizer_origin: dict
    """`tokenizer_record`, for the report of the run."""

    @property
    def chunk_dir(self) -> Path:
        return self.arguments.output_dir / "cache" / "chunks"


def _is_whole(preparation: _Preparation) -> bool:
    """Compares a complete preparation with its checksums; False if something must be made anew."""
    arguments, directory = preparation.arguments, preparation.arguments.output_dir
    manifest = read_manifest(directory)
    listed, num_parts = len(manifest["parts"]), arguments.rows.num_spliced_dataset_bins
    if listed != num_parts:
        raise UserError(
            f"{directory / 'manifest.json'} lists {listed} of {num_parts} parts: it was changed since it was written; "
            "--overwrite starts afresh"
        )
    indices = range(len(manifest["parts"]))
    with output_dir.finishing_lock(directory):
        output_dir.restore_last_run(arguments, preparation.files, preparation.tokenizer_origin)
        damages = [
            recheck_parts(directory, indices, arguments.run.num_workers, manifest["parts"]),
            recheck_rejected(directory, manifest),
        ]
        say_further_entries(directory, len(indices))
        if any(damages):
            output_dir.reopen(directory, preparation.identity, preparation.files)
    return not any(damages)


def _show_plan_of_complete(preparation: _Preparation) -> None:
    """Shows the plan of a complete preparation, or with a kept cache that of any mixture.

    Raises:
        UserError: the cache that another mixture needs is gone.
    """
    arguments = preparation.arguments
    recheck_chunks(arguments.output_dir, preparation.chunks, arguments.run.num_workers)
    facts = [chunk_facts(preparation.chunk_dir, chunk.index) for chunk in preparation.chunks]
    known = [fact for fact in facts if fact is not None]
    manifest = read_manifest(arguments.output_dir)
    if len(known) == len(facts):
        show_plan(arguments, known)
    elif manifest["identity"] == preparation.identity and "mixture" in manifest:
        report_plan(arguments, manifest["mixture"])
    else:
        raise UserError(
            f"{arguments.output_dir} is complete, and what was tokenized is gone from its cache: plan in another "
            "--data_output_dirs (--keep_cache keeps it)"
        )


def _tokenize_and_write(
    preparation: _Preparation, tokenizer: DocumentTokenizer | ConversationTokenizer, made: Sequence[Path] | None
) -> tuple[list[dict], list[dict]] | None:
    """Tokenizes the chunks and writes the parts that are not finished.

    Args:
        preparation: whose chunks and parts these are.
        tokenizer: of records.
        made: the directories that this run has made; None where an earlier run began.

    Returns:
        The facts of all chunks and of all parts; None if some are left to other shards, or with
            `--plan_only`.
    """
    recheck_chunks(preparation.arguments.output_dir, preparation.chunks, preparation.arguments.run.num_workers)
    run = preparation.arguments.run
    fields = preparation.arguments.field_options
    roles = RoleNames.with_given(preparation.arguments.rows.roles)
    stops = run.on_bad_record == "stop"
    reports = ProgressReports()
    job = ChunkJob(tokenizer, preparation.chunk_dir, run.max_line_bytes, stops, shared_flag(), fields, roles, reports)
    try:
        with worker_pool(run.num_workers, job) as pool:
            found = _tokenize(preparation, pool, reports)
            refuse_files_that_changed(preparation.files)
            if _others_pending("chunks", found):
                return None
            facts = [fact for fact in found if fact is not None]
            if not sum(fact["segments"] for fact in facts):
                raise BadInputError(_no_records_message(facts))
            if preparation.arguments.mixture.plan_only:
                show_plan(preparation.arguments, facts)
                return None
            parts = _write_parts(preparation, pool, facts)
    except BadInputError:  # no worker writes any more
        if made is not None and preparation.arguments.shards.shard_index is None:
            output_dir.discard_run(preparation.arguments, made)
        raise
    if _others_pending("parts", parts):
        return None
    return facts, [fact for fact in parts if fact is not None]


def _others_pending(units: str, facts: Sequence[dict | None]) -> bool:
    """True when other shards have chunks or parts to finish, which is logged."""
    missing = sum(fact is None for fact in facts)
    if missing:
        log_rank_zero(
            f"{missing} of {len(facts)} {units} are left to the other shards. When their jobs have ended, run this "
            "command again, or the command without --num_shards and --shard_index, which does what is left."
        )
    return bool(missing)


def _no_records_message(facts: Sequence[dict]) -> str:
    reasons = sum((Counter(fact["rejected_records"]) for fact in facts), Counter())
    for counts in total_statistics(facts).values():
        reasons += Counter({key: count for key, count in counts.items() if key.startswith("dropped_documents.")})
    counted = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "the files are empty"
    advice = "".join(f"; these are of the other kind: {OTHER_KIND[kind]}" for kind in OTHER_KIND if kind in reasons)
    return f"--data_input_dirs: no record could be used, so that there is nothing to write ({counted}){advice}"


def _finish(preparation: _Preparation, facts: Sequence[dict], parts: Sequence[dict]) -> dict:
    """Writes the manifest and the reports, unless another shard's job has; returns the manifest.

    What was made anew in a complete preparation must be as the manifest says.
    """
    directory = preparation.arguments.output_dir
    with output_dir.finishing_lock(directory):
        recorded = read_manifest(directory) if (directory / "manifest.json").is_file() else None
        if recorded is not None:
            refuse_other_parts(directory, recorded, parts)
            if recorded.get("rejected_sha256") and not (directory / "rejected.jsonl").exists():
                write_rejected(directory, preparation.chunk_dir, preparation.chunks, facts)
            return recorded
        refuse_files_that_changed(preparation.files)
        rejected_sha256 = write_rejected(directory, preparation.chunk_dir, preparation.chunks, facts)
        ranges = [[piece.range for piece in chunk.pieces] for chunk in preparation.chunks]
        mixture = (
            None if preparation.arguments.mixture.mixture is None else open_plan(preparation.arguments, facts).record
        )
        manifest = build_manifest(
            preparation.identity, facts, parts, ranges, preparation.unread_files, rejected_sha256, mixture
        )
        _write_reports(preparation, manifest)
    return manifest


def _write_reports(preparation: _Preparation, manifest: dict) -> None:
    """Writes the report of the run, then the manifest, which makes the preparation complete."""
    modified_ns = output_dir.modification_times(preparation.files)
    last_run = {
        "num_workers": preparation.arguments.run.num_workers,
        **vars(preparation.times),
        **preparation.tokenizer_origin,
        "modified_ns": modified_ns,
    }
    write_checked(preparation.arguments.output_dir / "last_run.json", with_checksum(last_run))
    write_checked(preparation.arguments.output_dir / "manifest.json", manifest)


def _refuse_changed_content(preparation: _Preparation, state: output_dir.State) -> None:
    """Compares the hashes of what was read with those of files whose modification times differ."""
    directory = preparation.arguments.output_dir
    suspects = output_dir.files_with_changed_times(directory, preparation.files)
    if not suspects:
        return
    max_row_bytes = preparation.arguments.run.max_line_bytes
    changed = {
        piece.range.file.name: None
        for piece, row_count, sha256 in _recorded_readings(preparation, state)
        if piece.range.file.name in suspects and content_digest(piece, row_count, max_row_bytes) != sha256
    }
    output_dir.refuse_changed_content(directory, list(changed))


def _recorded_readings(preparation: _Preparation, state: output_dir.State) -> Iterator[tuple[Piece, int, str]]:
    """Number of rows and SHA-256 of each range that an earlier run has read."""
    if state == "complete":
        manifest = read_manifest(preparation.arguments.output_dir)
        rows = {entry["name"]: entry["rows"] for entry in manifest["input_files"]}
        known = {entry["name"]: iter(entry["chunk_sha256"]) for entry in manifest["input_files"]}
        for chunk in preparation.chunks:
            for piece in chunk.pieces:
                name = piece.range.file.name
                yield piece, rows[name], next(known[name])
        return
    for chunk in preparation.chunks:
        facts = chunk_facts(preparation.chunk_dir, chunk.index)
        # A damaged chunk, which is made anew, may be that of other ranges.
        for piece, (row_count, sha256) in zip(chunk.pieces, facts["pieces"] if facts else (), strict=False):
            yield piece, row_count, sha256


# ------------------------------------------------------------------------------------- tokenizing


def _tokenize(preparation: _Preparation, pool: WorkerPool, reports: ProgressReports) -> list[dict | None]:
    """Tokenizes this job's chunks; returns the facts of all, None for unfinished ones."""
    includes, chunks = preparation.arguments.shards.includes, preparation.chunks
    known = {chunk.index: chunk_facts(preparation.chunk_dir, chunk.index) for chunk in chunks if includes(chunk.index)}
    pending = [chunk for chunk in chunks if includes(chunk.index) and known[chunk.index] is None]
    if any(piece.range.needs_entry for chunk in pending for piece in chunk.pieces):
        pending = with_entries(pending, chunks, pool)
    times, messages = preparation.times, ColumnMessages()
    started = time.perf_counter()
    bad: list[tuple[Chunk, dict]] = []
    with ReadingBar.over(pending) as progress:
        reports.listener = progress.take
        for chunk, facts in zip(pending, pool.map(process_chunk, pending), strict=True):
            known[chunk.index] = facts
            if not facts["finished"]:
                bad += [(chunk, record) for record in facts["rejected"]]
                if len(bad) > SHOWN_BAD_RECORDS:
                    break
                continue
            messages.say(chunk.files, facts["statistics"])
            times.tokenized_documents += facts["documents"]
            times.tokenized_tokens += facts["tokens"]
            progress.finish(chunk, facts)
    messages.finish()
    times.tokenize_s = time.perf_counter() - started
    if bad:
        raise BadInputError(bad_record_messages(bad))
    return [known.get(chunk.index) or chunk_facts(preparation.chunk_dir, chunk.index) for chunk in chunks]


# ------------------------------------------------------------------------------------------ parts


def _write_parts(preparation: _Preparation, pool: WorkerPool, facts: Sequence[dict]) -> list[dict | None]:
    """Writes this job's unfinished parts; returns the facts of all, None for unfinished ones."""
    arguments, directory = preparation.arguments, preparation.arguments.output_dir
    indices = range(arguments.rows.num_spliced_dataset_bins)
    own = [index for index in indices if arguments.shards.includes(index)]
    others = [index for index in indices if not arguments.shards.includes(index)]
    recorded = read_manifest(directory)["parts"] if (directory / "manifest.json").is_file() else None
    if recorded is None:
        recheck_parts(directory, own, arguments.run.num_workers)
    if any(part_facts(directory, index) is None for index in own):
        _write_own_parts(preparation, pool, facts, own, may_replace=recorded is None)
    parts = [part_facts(directory, index) for index in indices]
    if others and None not in parts and recheck_parts(directory, others, arguments.run.num_workers):
        return [part_facts(directory, index) for index in indices]
    return parts


def _write_own_parts(
    preparation: _Preparation, pool: WorkerPool, facts: Sequence[dict], own: Sequence[int], may_replace: bool
) -> None:
    """Writes those of this job's parts that are not finished; replaces those of another plan."""
    arguments, directory = preparation.arguments, preparation.arguments.output_dir
    opened = open_plan(arguments, facts)
    plan_sha256 = opened.plan.fingerprint()
    if may_replace:
        remove_parts_of_other_plan(directory, own, plan_sha256, unnamed=opened.is_new)
    pending = [index for index in own if part_facts(directory, index) is None]
    common: dict = {"kind": arguments.kind, "max_length": arguments.rows.max_length, "seed": arguments.rows.seed}
    common |= {name: preparation.identity[name] for name in ("tokenizer_fingerprint", "vocab_size")}
    if template := preparation.identity.get("template"):
        common["conversation_format"] = template
        if date := template.get("date"):
            common["chat_template_date"] = date
    common["plan_sha256"] = plan_sha256
    task = PartTask(
        directory,
        arguments.rows.splicing,
        arguments.rows.max_length,
        arguments.rows.seed,
        category_names(facts),
        common,
        counts_categories=opened.record is not None,
    )
    _run_part_tasks(pool, [(task, index) for index in pending], opened.plan, preparation.times)
    for name in ("arrow", "jsonl"):
        fsync_path(directory / name)


def _run_part_tasks(pool: WorkerPool, tasks: Sequence[tuple[PartTask, int]], plan: PartPlan, times: StageTimes) -> None:
    started = time.perf_counter()
    ranges = [slice(*plan.part_starts[index : index + 2]) for _, index in tasks]
    tokens = [int(plan.lengths[segments].sum()) for segments in ranges]
    moves = [max(1, count) for count in tokens]  # the bar moves over empty parts, too
    written = 0
    with progress_bar(total=sum(moves), desc="write parts", unit=" tokens", unit_scale=True) as bar:
        for number, (segments, move, _) in enumerate(zip(ranges, moves, pool.map(_write_one_part, tasks), strict=True)):
            written += int(plan.first_of_document[segments].sum())
            speed = written / (time.perf_counter() - started)
            bar.set_postfix_str(f"part {number + 1:,} of {len(tasks):,}, {speed:,.0f} documents/s", refresh=False)
            bar.update(move)
    times.write_s, times.written_tokens = time.perf_counter() - started, sum(tokens)


def _write_one_part(_: ChunkJob, task: tuple[PartTask, int]) -> None:
    write_part(*task)
