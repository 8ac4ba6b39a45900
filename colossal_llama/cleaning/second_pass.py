"""Writes one part of the corpus: what the first pass has kept, without what the merge has found.

The unit of work of a worker. A part is made of chunks that follow each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from colossal_llama.cleaning.candidate_store import CandidateStore, chunk_base
from colossal_llama.cleaning.candidates import Candidate
from colossal_llama.cleaning.chunk_files import UnitFiles, unit_facts
from colossal_llama.cleaning.counts import CountsBuilder
from colossal_llama.cleaning.decisions import BlockDecisions
from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.dropped import dropped_line
from colossal_llama.cleaning.duplicates.decisions import Duplicate
from colossal_llama.cleaning.output_files import DOCUMENTS, text_of
from colossal_llama.cleaning.quality_loss import QualityBands
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.stages import judge_lengths
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.checksums import checksum_of

SMALLEST_PART_BYTES = 4 << 20
LARGEST_PART_BYTES = 64 << 20
BATCH_DOCUMENTS = 1000  # decided about at once
PREFERRED_PARTS = 64  # so many workers write a small corpus


@dataclass(frozen=True)
class Part:
    """Chunks that follow each other, which become one file of documents.

    Attributes:
        index: number of the part.
        chunks: numbers of the chunks.
    """

    index: int
    chunks: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the file of documents."""
        return part_name(self.index)


def part_name(index: int) -> str:
    """Name of a part's file of documents."""
    return f"part-{index:05d}.jsonl"


def plan_parts(chunks: Sequence[Chunk]) -> list[Part]:
    """Groups chunks into parts by the sizes of their input alone."""
    total = sum(chunk.size_bytes for chunk in chunks)
    size_bytes = min(max(total // PREFERRED_PARTS, SMALLEST_PART_BYTES), LARGEST_PART_BYTES)
    groups: list[list[int]] = []
    filled = size_bytes
    for chunk in chunks:
        if filled >= size_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(chunk.index)
        filled += chunk.size_bytes
    return [Part(index, tuple(group)) for index, group in enumerate(groups)]


@dataclass
class SecondPass:
    """Settings of the second pass.

    Attributes:
        output_dir: of the cleaning.
        candidates: of the first pass.
        rules: in effect.
        quality: bands of losses that are kept; None where nothing is measured.
    """

    output_dir: Path
    candidates: CandidateStore
    rules: RuleSettings
    quality: QualityBands | None = None

    def is_finished(self, part: Part) -> bool:
        """True for a part whose documents are as they were written."""
        facts, target = unit_facts(part_base(self.candidates.work_dir, part.index), part.index), self.documents_of(part)
        return facts is not None and target.is_file() and checksum_of(target).xxh3_128 == facts["documents_xxh3"]

    def documents_of(self, part: Part) -> Path:
        """File of a part's documents."""
        return self.output_dir / DOCUMENTS / part.name


def part_base(work_dir: Path, index: int) -> Path:
    """Path of the files of a part under work/, without their endings."""
    return work_dir / "parts" / f"part-{index:05d}"


def write_part(job: SecondPass, part: Part) -> dict:
    """Writes the documents of a part, and its dropped documents under work/.

    Returns:
        The facts of the part: counts of kept and dropped documents, checksum of the documents.
    """
    files = UnitFiles(part_base(job.candidates.work_dir, part.index), ["dropped", "hits"])
    counts = CountsBuilder()
    target = job.documents_of(part)
    documents = 0
    try:
        with atomic_file(target, durable=False) as output:
            for chunk in part.chunks:
                files.write("hits", b"".join(_hits(job, chunk)))
                for line in _dropped_before(job, chunk, counts):
                    files.write("dropped", line)
                for candidate, duplicate in _judged(job, chunk):
                    if duplicate is None:
                        output.write(_kept(candidate, counts))
                        documents += 1
                    else:
                        files.write("dropped", _dropped(job, chunk, candidate, duplicate, counts))
        facts = {
            "index": part.index,
            "documents": documents,
            "documents_xxh3": checksum_of(target).xxh3_128,
            "counts": counts.result().as_record(),
        }
        return files.finish(facts)
    finally:
        files.discard()


def _dropped_before(job: SecondPass, chunk: int, counts: CountsBuilder) -> Iterator[bytes]:
    """Lines of the documents that the first pass has dropped."""
    with chunk_base(job.candidates.work_dir, chunk).with_suffix(".dropped").open("rb") as lines:
        for line in lines:
            content = orjson.loads(line)
            verdict, position = Verdict(*content["verdict"]), job.candidates.position(chunk, content["place"])
            record, file = content["record"], content["file"]
            counts.add_dropped(verdict, record["category"], file, position, text_of(record), content["characters"])
            yield dropped_line(verdict, file, position, record)


def _hits(job: SecondPass, chunk: int) -> Iterator[bytes]:
    """Lines of the benchmark questions that the first pass has found."""
    with chunk_base(job.candidates.work_dir, chunk).with_suffix(".hits").open("rb") as lines:
        for line in lines:
            content = orjson.loads(line)
            content["position"] = job.candidates.position(chunk, content.pop("place"))
            yield orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def kept_documents(job: SecondPass, chunk: int) -> Iterator[Document]:
    """Yields the documents of a chunk that all but quality by loss keeps, as they are written."""
    return (candidate.document for candidate, why in _decided(job, chunk) if why is None)


def _judged(job: SecondPass, chunk: int) -> Iterator[tuple[Candidate, Duplicate | Verdict | None]]:
    """As `_decided`, with the verdicts of quality by loss."""
    if job.quality is None:
        yield from _decided(job, chunk)
        return
    verdicts = iter(job.quality.of_chunk(chunk))
    for candidate, why in _decided(job, chunk):
        yield candidate, next(verdicts) if why is None else why


def _decided(job: SecondPass, chunk: int) -> Iterator[tuple[Candidate, Duplicate | Verdict | None]]:
    """Documents of a chunk without what the merge has cut, and why they are dropped."""
    for block, size in job.candidates.blocks_of(chunk):
        decisions = BlockDecisions(job.candidates.work_dir, job.rules, block)
        found = enumerate(job.candidates.of_block(block))
        for start in range(0, size, BATCH_DOCUMENTS):
            yield from _decided_batch(job, decisions, list(islice(found, min(BATCH_DOCUMENTS, size - start))))


def _decided_batch(
    job: SecondPass, decisions: BlockDecisions, batch: Sequence[tuple[int, Candidate]]
) -> Iterator[tuple[Candidate, Duplicate | Verdict | None]]:
    duplicates = {position: decisions.duplicate(position) for position, _ in batch}
    cut = [
        candidate
        for position, candidate in batch
        if duplicates[position] is None and decisions.cut(position, candidate)
    ]
    verdicts = dict(zip(map(id, cut), judge_lengths([candidate.document for candidate in cut], job.rules), strict=True))
    for position, candidate in batch:
        yield candidate, duplicates[position] or verdicts.get(id(candidate))


def _kept(candidate: Candidate, counts: CountsBuilder) -> bytes:
    document = candidate.document
    counts.add_kept(
        candidate.category,
        candidate.original_characters,
        document.category,
        document.length_characters,
        candidate.changes,
    )
    return orjson.dumps(candidate.record(), option=orjson.OPT_APPEND_NEWLINE)


def _dropped(
    job: SecondPass, chunk: int, candidate: Candidate, why: Duplicate | Verdict, counts: CountsBuilder
) -> bytes:
    verdict, kept = (why, None) if isinstance(why, Verdict) else (why.verdict, job.candidates.place_of(why.kept))
    document, position = candidate.document, job.candidates.position(chunk, candidate.place)
    record = candidate.original_record()
    counts.add_dropped(
        verdict, candidate.category, document.file, position, text_of(record), candidate.original_characters
    )
    return dropped_line(verdict, document.file, position, record, kept)
