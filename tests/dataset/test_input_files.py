"""Chunks of input files: of any size they give every line once, and share a limit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare.input_files import Chunk, plan_chunks
from colossal_llama.readers.formats import Format
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.rows import BYTE_ORDER_MARK, read_rows, rows_before


def _rows(chunk):
    return [row for _, row in read_rows(chunk.range, 1 << 20)]


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
    chunks = [Chunk(0, file, start, min(start + size, len(content)), None) for start in range(0, len(content), size)]
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    expected = [line.rstrip(b"\r\n") for line in lines]
    if expected:
        expected[0] = lines[0].removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    seen = []
    for chunk in chunks:
        rows = _rows(chunk)
        if rows:
            assert rows_before(chunk.range) == len(seen)
        seen += rows
    assert seen == expected


@given(count=st.integers(1, 5), limit=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_limit_is_shared_evenly(tmp_path_factory, count, limit):
    files = [
        InputFile(tmp_path_factory.getbasetemp() / f"{n}.jsonl", f"{n}", 10, 0, Format(".jsonl")) for n in range(count)
    ]
    shares = [chunk.record_limit for chunk in plan_chunks(files, limit)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1
