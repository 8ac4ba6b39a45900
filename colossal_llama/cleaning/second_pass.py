"""Writes one part of the corpus: what the first pass has kept, without what the merge has found.

The unit of work of a worker. A part is made of chunks that follow each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from colossal_llama.cleaning.candidates import Candidate, read_candidates, record_of
from colossal_llama.cleaning.chunk_files import UnitFiles, unit_facts
from colossal_llama.cleaning.counts import CountsBuilder
from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.dropped import dropped_line
from colossal_llama.cleaning.first_pass import chunk_base
from colossal_llama.cleaning.merge import ChunkDecisions, Decisions
from colossal_llama.dataset.prepare.input_files import Chunk
from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.fingerprint import fingerprint_file

SMALLEST_PART_BYTES = 4 << 20
LARGEST_PART_BYTES = 64 << 20
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
        work_dir: directory of the intermediates.
        first_rows: for each chunk and each of its ranges the number of rows before it in its file.
        decisions: of the merge.
    """

    output_dir: Path
    work_dir: Path
    first_rows: Sequence[Sequence[int]]
    decisions: Decisions

    def position(self, chunk: int, place: Sequence[int]) -> int:
        """Line or record number of a row in its file, counted from 1."""
        piece, row = place
        return self.first_rows[chunk][piece] + row + 1

    def is_finished(self, part: Part) -> bool:
        """True for a part whose documents are as they were written."""
        facts, target = unit_facts(part_base(self.work_dir, part.index), part.index), self.documents_of(part)
        return facts is not None and target.is_file() and fingerprint_file(target) == facts["documents_sha256"]

    def documents_of(self, part: Part) -> Path:
        """File of a part's documents."""
        return self.output_dir / "documents" / part.name


def part_base(work_dir: Path, index: int) -> Path:
    """Path of the files of a part under work/, without their endings."""
    return work_dir / "parts" / f"part-{index:05d}"


def write_part(job: SecondPass, part: Part) -> dict:
    """Writes the documents of a part, and its dropped documents under work/.

    Returns:
        The facts of the part: counts of kept and dropped documents, SHA-256 of the documents.
    """
    files, counts = UnitFiles(part_base(job.work_dir, part.index), ["dropped"]), CountsBuilder()
    target = job.documents_of(part)
    documents = 0
    try:
        with atomic_file(target, durable=False) as output:
            for chunk in part.chunks:
                for line in _dropped_before(job, chunk, counts):
                    files.write("dropped", line)
                for candidate, verdict in _decided(job, chunk):
                    if verdict is None:
                        output.write(_kept(candidate, counts))
                        documents += 1
                    else:
                        files.write("dropped", _dropped(job, chunk, candidate, verdict, counts))
        facts = {
            "index": part.index,
            "documents": documents,
            "documents_sha256": fingerprint_file(target),
            "counts": counts.result().as_record(),
        }
        return files.finish(facts)
    finally:
        files.discard()


def _dropped_before(job: SecondPass, chunk: int, counts: CountsBuilder) -> Iterator[bytes]:
    """Lines of the documents that the first pass has dropped."""
    with chunk_base(job.work_dir, chunk).with_suffix(".dropped").open("rb") as lines:
        for line in lines:
            content = orjson.loads(line)
            verdict, position = Verdict(*content["verdict"]), job.position(chunk, content["place"])
            record, file = content["record"], content["file"]
            counts.add_dropped(verdict, record["category"], file, position, _text(record), content["characters"])
            yield dropped_line(verdict, file, position, record)


def _decided(job: SecondPass, chunk: int) -> Iterator[tuple[Candidate, Verdict | None]]:
    """Documents of a chunk with the lines and paragraphs cut that the merge has found."""
    decisions: ChunkDecisions = job.decisions.of_chunk(chunk)
    for number, candidate in enumerate(read_candidates(chunk_base(job.work_dir, chunk).with_suffix(".candidates"))):
        yield candidate, decisions.apply(number, candidate)


def _kept(candidate: Candidate, counts: CountsBuilder) -> bytes:
    document = candidate.document
    counts.add_kept(
        candidate.category,
        sum(map(len, candidate.original)),
        document.category,
        document.length_characters,
        candidate.changes,
    )
    record = record_of(document, document.texts, document.category, candidate.untrained)
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _dropped(job: SecondPass, chunk: int, candidate: Candidate, verdict: Verdict, counts: CountsBuilder) -> bytes:
    document, position = candidate.document, job.position(chunk, candidate.place)
    record = record_of(document, candidate.original, candidate.category, candidate.untrained)
    characters = sum(map(len, candidate.original))
    counts.add_dropped(verdict, candidate.category, document.file, position, _text(record), characters)
    return dropped_line(verdict, document.file, position, record)


def _text(record: dict) -> str:
    """The text of a record, for a sample."""
    if "messages" in record:
        return "\n".join(message["content"] for message in record["messages"])
    return "\n".join(text for text in (record["source"], record["target"]) if text)
