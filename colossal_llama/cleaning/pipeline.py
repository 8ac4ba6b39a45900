"""Cleans a corpus: two passes over chunks of the input, and one merge between them.

input files → chunks → work/chunks (first pass) → work/decisions (merge) → documents/, dropped/
(second pass) → cleaning.json
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colossal_llama.cleaning.arguments import CleanArguments
from colossal_llama.cleaning.candidate_store import CandidateStore, chunk_base
from colossal_llama.cleaning.chunk_files import remove_unit, unit_facts, unit_problem
from colossal_llama.cleaning.counts import ChunkCounts, CountsBuilder, add_counts
from colossal_llama.cleaning.decontamination.decontaminate import HITS_FILE, make_index
from colossal_llama.cleaning.dropped import gather_dropped, join_files
from colossal_llama.cleaning.first_pass import FirstPass, clean_chunk
from colossal_llama.cleaning.merge import merge
from colossal_llama.cleaning.no_records import no_record_problems
from colossal_llama.cleaning.normalization import normalization_of, normalize
from colossal_llama.cleaning.output_files import DROPPED, LAST_RUN
from colossal_llama.cleaning.quality_loss import QualityBands, QualityModel, measure_chunks, quality_base
from colossal_llama.cleaning.report import write_report
from colossal_llama.cleaning.run_directory import RunDirectory, State
from colossal_llama.cleaning.second_pass import Part, SecondPass, kept_documents, part_base, plan_parts, write_part
from colossal_llama.cleaning.signatures import BlockNumbers, run_problem
from colossal_llama.cleaning.stages import StageSettings
from colossal_llama.cleaning.workers import workers
from colossal_llama.dataset.prepare.input_files import Chunk, content_digest, plan_chunks
from colossal_llama.dataset.prepare.manifest import total_statistics, unread_members_of
from colossal_llama.dataset.prepare.output_dir import directory_locks, finishing_lock, modification_times
from colossal_llama.dataset.prepare.output_errors import errors_named
from colossal_llama.dataset.prepare.range_entries import with_entries
from colossal_llama.dataset.prepare.reading_bar import ReadingBar
from colossal_llama.dataset.prepare.recheck import problems_of, say_damages
from colossal_llama.dataset.prepare.rejections import write_rejected
from colossal_llama.dataset.prepare.worker_pool import ProgressReports, WorkerPool
from colossal_llama.dataset.role_names import RoleNames
from colossal_llama.readers.column_messages import ColumnMessages
from colossal_llama.readers.directory_listing import unread_message
from colossal_llama.readers.fields import with_file_categories
from colossal_llama.readers.input_doubts import doubts_about
from colossal_llama.readers.listing import InputFile, find_input_files, refuse_files_that_changed
from colossal_llama.utils.atomic_io import fsync_path, remove_abandoned_files
from colossal_llama.utils.checked_json import DamagedJsonError, with_checksum, write_checked
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError


def clean(arguments: CleanArguments) -> dict | None:
    """Runs a cleaning, or resumes one that was interrupted.

    Returns:
        The report; None where this is one shard's job, or the cleaning was complete before.

    Raises:
        UserError: the input or the output directory cannot be used; the disk is full.
    """
    directory = arguments.paths.output_dir
    with errors_named(directory), directory_locks(directory, arguments.shards, "--output_dir"):
        files, unread_files = _input_files(arguments)
        run = RunDirectory(directory)
        identity = _identity(arguments, files)
        is_alone = arguments.shards.shard_index is None
        with nullcontext() if is_alone else finishing_lock(directory):  # jobs that start at once go one by one
            state = run.open(identity, files, arguments.run.overwrite)
        chunks = plan_chunks(files, arguments.run.limit)
        cleaning = _Cleaning(arguments, run, files, unread_files, chunks, identity)
        if state != "new":
            cleaning.refuse_changed_content(state)
        if state == "complete":
            log_rank_zero(f"{directory} is complete already: nothing to do (--verify checks it)")
            run.remove_work()
            return None
        try:
            report = cleaning.run_passes()
        except UserError:
            if state == "new" and is_alone and not run.has_finished_chunks:
                run.remove_work()  # a run with other arguments is not to find this one's
            raise
        log_rank_zero(cleaning.speed)
        if report is not None and not arguments.run.keep_work:
            run.remove_work()
        return report


@dataclass
class _Cleaning:
    """A cleaning and its output directory."""

    arguments: CleanArguments
    run: RunDirectory
    files: Sequence[InputFile]
    unread_files: dict
    chunks: Sequence[Chunk]
    identity: dict
    times: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report: what was searched."""
    read_all: bool = False
    """This run has read all of the input."""

    def run_passes(self) -> dict | None:
        """Runs what is not finished yet of both passes and the merge; writes the report.

        Returns:
            The report; None where chunks are left to other shards.
        """
        chunks = self._first_pass()
        if chunks is None:
            return None
        rules, work = self.arguments.rules.settings, self.run.work
        candidates = CandidateStore.of_chunks(work, self.blocks, self.chunks, chunks)
        memory_bytes = self.arguments.run.memory_mb << 20
        self._timed("merge", merge, work, rules, candidates.block_sizes, candidates.texts_of, memory_bytes)
        second_pass = SecondPass(self.run.path, candidates, rules)
        if self.arguments.quality_model is not None:
            bands = self._timed("quality", self._measure_quality, second_pass, self.arguments.quality_model)
            second_pass = replace(second_pass, quality=bands)
        parts = self._second_pass(second_pass)
        return self._finish(chunks, parts)

    @property
    def speed(self) -> str:
        """Times of the stages of this run, and its rate where it read all of the input."""
        seconds = ", ".join(
            f"{name.removesuffix('_s').replace('_', ' ')} {time_s:.1f} s" for name, time_s in self.times.items()
        )
        size_mb = sum(file.size_bytes for file in self.files) / 1e6
        rate = f": {size_mb:,.1f} MB of files, {size_mb / sum(self.times.values()):,.2f} MB/s" if self.read_all else ""
        return f"{seconds or 'nothing was left to do'}{rate}"

    @property
    def blocks(self) -> BlockNumbers:
        """Numbers of the blocks of documents of all chunks."""
        return BlockNumbers.for_chunks(self.chunks)

    def _timed(self, name: str, function: Callable, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        self.times[f"{name}_s"] = time.perf_counter() - started
        return result

    # ------------------------------------------------------------------------------- first pass

    def _first_pass(self) -> list[dict] | None:
        """Facts of all chunks; None where some are left to other shards."""
        work, options = self.run.work, self.arguments
        own = [chunk for chunk in self.chunks if options.shards.includes(chunk.index)]
        own_units = [(chunk_base(work, chunk.index), chunk.index) for chunk in own]
        _remove_damaged(own_units, "check chunks", options, self._chunk_problem)
        pending = [chunk for chunk in own if unit_facts(chunk_base(work, chunk.index), chunk.index) is None]
        reports = ProgressReports()
        job = FirstPass(
            work,
            options.run.max_line_bytes,
            options.fields,
            RoleNames.with_given(options.conversations.roles) if options.is_conversations else None,
            StageSettings(work, options.rules.settings, options.blocklists, self._index_questions()),
            self.blocks,
            reports,
        )
        self.read_all = len(pending) == len(self.chunks)
        if pending:
            with workers(min(options.run.num_workers, len(pending)), job) as pool:
                self._timed("first_pass", self._run_chunks, pool, pending, reports)
        refuse_files_that_changed(self.files)
        found = [unit_facts(chunk_base(work, chunk.index), chunk.index) for chunk in self.chunks]
        if missing := sum(facts is None for facts in found):
            log_rank_zero(
                f"{missing} of {len(found)} chunks are left to the other shards. When their jobs have ended, run this "
                "command without --num_shards and --shard_index, which merges what they found and does what is left."
            )
            return None
        if options.shards.shard_index is not None:
            log_rank_zero(
                "all chunks are read: run this command without --num_shards and --shard_index, which merges them"
            )
            return None
        chunks = [facts for facts in found if facts is not None]
        if not sum(facts["documents"] for facts in chunks):
            problems = no_record_problems(work / "chunks", self.chunks, chunks)
            self.run.remove_work()  # with other files the next run is another one
            raise UserError(problems)
        return chunks

    def _index_questions(self) -> Path | None:
        """Makes the index of `--decontaminate`, unless it is there; returns its directory.

        Raises:
            UserError: a path holds no question.
        """
        paths, rules = self.arguments.lists.decontaminate, self.arguments.rules.settings
        if not paths:
            return None
        normalization = normalization_of(rules)
        found = make_index(
            paths, rules["decontamination"], self.run.work, lambda text: normalize(text, normalization)[0]
        )
        directory = Path(found.pop("directory"))
        for note in found["notes"]:
            log_rank_zero(note)
        self.facts["decontamination"] = found
        return directory

    def _chunk_problem(self, unit: tuple[Path, int]) -> str | None:
        """Names what has changed of a chunk: of its files, then of its signatures."""
        if (problem := unit_problem(*unit)) is not None:
            return problem
        facts = unit_facts(*unit)
        return None if facts is None else run_problem(self.run.work, facts)

    def _run_chunks(self, pool: WorkerPool, pending: Sequence[Chunk], reports: ProgressReports) -> None:
        if any(piece.range.needs_entry for chunk in pending for piece in chunk.pieces):
            pending = with_entries(pending, self.chunks, pool)
        messages = ColumnMessages()
        with ReadingBar.over(pending, "first pass", "characters") as bar:
            reports.listener = bar.take
            for chunk, facts in zip(pending, pool.map(clean_chunk, pending), strict=True):
                messages.say(chunk.files, facts["statistics"])
                bar.finish(chunk, facts)
        messages.finish()

    # ------------------------------------------------------------------------------ second pass

    def _measure_quality(self, job: SecondPass, model: QualityModel) -> QualityBands:
        """Measures what all else keeps with `--quality_model`, unless it is measured already."""
        work, rule = self.run.work, self.arguments.rules.settings["quality_loss"]
        chunks = [chunk.index for chunk in self.chunks]
        _remove_damaged([(quality_base(work, chunk), chunk) for chunk in chunks], "check losses", self.arguments)
        measure_chunks(work, chunks, lambda chunk: kept_documents(job, chunk), model, rule)
        bands = QualityBands.of_chunks(work, chunks, rule)
        self.facts["quality_loss"] = {"model": str(model.found.directory), "categories": bands.facts}
        return bands

    def _second_pass(self, job: SecondPass) -> list[dict]:
        """Writes the parts that are not finished; returns the facts of all."""
        work, options = self.run.work, self.arguments
        self.run.documents.mkdir(exist_ok=True)
        parts = plan_parts(self.chunks)
        remove_abandoned_files(self.run.documents, [part.name for part in parts])
        _remove_damaged([(part_base(work, part.index), part.index) for part in parts], "check parts", options)
        pending = [part for part in parts if not job.is_finished(part)]
        if pending:
            with workers(min(options.run.num_workers, len(pending)), job) as pool:
                self._timed("second_pass", self._run_parts, pool, pending)
        fsync_path(self.run.documents)
        return [facts for part in parts if (facts := unit_facts(part_base(work, part.index), part.index))]

    def _run_parts(self, pool: WorkerPool, pending: Sequence[Part]) -> None:
        sizes = [sum(self.chunks[chunk].size_bytes for chunk in part.chunks) for part in pending]
        started, documents = time.perf_counter(), 0
        with progress_bar(total=sum(map(_bar_bytes, sizes)), desc="second pass", unit="B", unit_scale=True) as bar:
            for size_bytes, facts in zip(sizes, pool.map(write_part, pending), strict=True):
                documents += facts["documents"]
                rate = documents / (time.perf_counter() - started)
                bar.set_postfix_str(f"{documents:,} documents kept, {rate:,.0f} documents/s", refresh=False)
                bar.update(_bar_bytes(size_bytes))

    # ------------------------------------------------------------------------------ end

    def _finish(self, chunks: Sequence[dict], parts: Sequence[dict]) -> dict:
        """Gathers what was dropped and rejected, and writes the report, which completes all."""
        directory, work = self.run.path, self.run.work
        self.run.remove_abandoned()
        bases = [part_base(work, part["index"]) for part in parts]
        gather_dropped([base.with_suffix(".dropped") for base in bases], directory / DROPPED)
        if self.arguments.lists.decontaminate:
            join_files([base.with_suffix(".hits") for base in bases], directory / HITS_FILE)
        write_rejected(directory, work / "chunks", self.chunks, chunks)
        rejected = CountsBuilder()
        for facts in chunks:
            rejected.add_empty_lines(facts["empty_lines"])
            for reason, count in facts["rejected_records"].items():
                rejected.add_rejected(reason, count)
        counts = add_counts([rejected.result(), *(ChunkCounts.from_record(part["counts"]) for part in parts)])
        modified_ns = modification_times(self.files)
        last_run = {
            "num_workers": self.arguments.run.num_workers,
            **self.times,
            "modified_ns": modified_ns,
            "pieces": [facts["pieces"] for facts in chunks],
        }
        write_checked(directory / LAST_RUN, with_checksum(last_run))
        notes = {name: dict(sorted(counts.items())) for name, counts in sorted(total_statistics(chunks).items())}
        run = {"identity": self.identity, "unread_files": self.unread_files, "notes": notes, **self.facts}
        if unread_members := unread_members_of(chunks):
            run["unread_members"] = unread_members
        return write_report(directory, counts, run)

    def refuse_changed_content(self, state: State) -> None:
        """Compares the hashes of what was read with those of files whose times differ.

        Args:
            state: of the output directory.

        Raises:
            UserError: the content of a file has changed since it was read.
        """
        suspects = self.run.files_with_changed_times(self.files)
        if not suspects:
            return
        changed: dict[str, None] = {}
        readings = self.run.recorded_readings() if state == "complete" else map(self._reading, self.chunks)
        for chunk, reading in zip(self.chunks, readings, strict=False):
            for piece, (rows, sha256) in zip(chunk.pieces, reading, strict=False):
                name = piece.range.file.name
                if name in suspects and content_digest(piece, rows, self.arguments.run.max_line_bytes) != sha256:
                    changed[name] = None
        self.run.refuse_changed(list(changed))

    def _reading(self, chunk: Chunk) -> Sequence[tuple[int, str]]:
        """Number of rows and SHA-256 of each range of a chunk, where it is finished and whole."""
        with suppress(DamagedJsonError):
            facts = unit_facts(chunk_base(self.run.work, chunk.index), chunk.index)
            return facts["pieces"] if facts else ()
        return ()


def _input_files(arguments: CleanArguments) -> tuple[list[InputFile], dict]:
    """The input files, and a record of what is not read, which is said."""
    files, unread = find_input_files(arguments.paths.data_input_dirs, excluded=arguments.paths.output_dir)
    files = with_file_categories(files, arguments.fields)
    for message in filter(None, (unread_message(unread), doubts_about(files))):
        log_rank_zero(message)
    return files, unread


def _identity(arguments: CleanArguments, files: Sequence[InputFile]) -> dict:
    """Everything that decides the bytes of the output."""
    listed = [{"name": file.name, "size_bytes": file.size_bytes} for file in files]
    return {"arguments": arguments.deciding_options(), "input_files": listed}


def _remove_damaged(
    units: Sequence[tuple[Path, int]],
    description: str,
    arguments: CleanArguments,
    problem_of: Callable[[tuple[Path, int]], str | None] = lambda unit: unit_problem(*unit),
) -> None:
    """Removes the finished units of work that have changed since they were written."""
    finished = [unit for unit in units if unit[0].with_name(f"{unit[0].name}.json").exists()]
    problems = problems_of(problem_of, finished, description, arguments.run.num_workers)
    for (base, _), _ in problems:
        remove_unit(base)
    say_damages([f"work/{base.parent.name}/{problem}" for (base, _), problem in problems])


def _bar_bytes(size_bytes: int) -> int:
    """Size of a part, at least 1, so that the bar moves over empty files."""
    return max(1, size_bytes)
