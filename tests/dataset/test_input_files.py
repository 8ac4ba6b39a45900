"""Chunks of input files: of any size they give every line once, are shared evenly, and are few."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare import input_files
from colossal_llama.dataset.prepare.input_files import plan_chunks
from colossal_llama.readers.formats import Format
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.rows import BYTE_ORDER_MARK, FileRange, read_rows, rows_before


def _rows(file_range):
    return [row for _, row in read_rows(file_range, 1 << 20)]


def _file(name: str, size_bytes: int) -> InputFile:
    return InputFile(Path("/nowhere") / name, name, size_bytes, 0, Format(".jsonl"))


LINES = st.builds(  # no beginning of a compressed file, or of one in another encoding
    lambda mark, data: mark + b"x" + data.replace(b"\x00", b"\n"),
    st.sampled_from((b"", BYTE_ORDER_MARK)),
    st.binary(max_size=60),
)


@given(content=LINES, size=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_chunks_of_any_size_give_every_line_once(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("chunks") / "a.jsonl"
    path.write_bytes(content)
    file = InputFile(path, "a.jsonl", len(content), 0, Format(".jsonl"))
    ranges = [FileRange(file, start, min(start + size, len(content))) for start in range(0, len(content), size)]
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    expected = [line.rstrip(b"\r\n") for line in lines]
    if expected:
        expected[0] = lines[0].removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    seen = []
    for file_range in ranges:
        rows = _rows(file_range)
        if rows:
            assert rows_before(file_range) == len(seen)
        seen += rows
    assert seen == expected


@given(count=st.integers(1, 5), limit=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_limit_is_shared_evenly(count, limit):
    chunks = plan_chunks([_file(f"{number}", 10) for number in range(count)], limit)
    shares = [piece.record_limit for chunk in chunks for piece in chunk.pieces]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


@given(sizes=st.lists(st.one_of(st.integers(0, 5000), st.integers(0, 20 << 20)), min_size=1, max_size=300))
@settings(max_examples=100, deadline=None)
def test_chunks_hold_every_byte_once_in_order_and_are_few(sizes):
    files = [_file(f"{number:04d}", size) for number, size in enumerate(sizes)]
    chunks = plan_chunks(files, None)
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    assert pieces == [piece for chunk in plan_chunks(files, None, grouped=False) for piece in chunk.pieces]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for file in files:
        ranges = [piece.range for piece in pieces if piece.range.file == file]
        assert [ranges[0].start, *(part.end for part in ranges)] == [*(part.start for part in ranges), file.size_bytes]
    assert all(chunk.size_bytes <= input_files.CHUNK_BYTES for chunk in chunks)
    cost = sum(sizes) + len(pieces) * input_files.RANGE_COST_BYTES
    assert len(chunks) <= 2 * max(input_files.MIN_GROUPS, cost / input_files.GROUP_BYTES) + 1


def test_fifty_thousand_small_files_are_some_hundred_chunks():
    chunks = plan_chunks([_file(f"{number:05d}", 2000) for number in range(50_000)], None)
    assert 200 < len(chunks) < 400
    few = plan_chunks([_file(f"{number}", 2000) for number in range(50)], None)
    assert len(few) == 50, "a small input is shared by many workers, too"
