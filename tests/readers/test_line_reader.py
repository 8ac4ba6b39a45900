"""Lines of bounded length: what is read is the file, and memory stays near the bound."""

import io

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.readers import line_reader
from colossal_llama.readers.line_reader import LongLine, read_line


@given(
    content=st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n")),
    block_bytes=st.integers(1, 9),
    max_bytes=st.integers(1, 20),
)
def test_every_byte_is_observed_and_lines_within_the_bound_are_read(content, block_bytes, max_bytes):
    seen, lines, file = [], [], io.BytesIO(content)
    former, line_reader._BLOCK_BYTES = line_reader._BLOCK_BYTES, block_bytes
    try:
        while line := read_line(file, max_bytes, seen.append):
            lines.append(line)
    finally:
        line_reader._BLOCK_BYTES = former
    assert b"".join(seen) == content
    expected = io.BytesIO(content).readlines()
    assert [len(line) for line in lines] == [len(line) for line in expected]
    for line, whole in zip(lines, expected, strict=True):
        if len(whole) <= max_bytes:
            assert line == whole
        else:
            assert isinstance(line, LongLine)
            assert whole.startswith(line.beginning)


class _Endless(io.RawIOBase):
    """A line of so many bytes, and a short one."""

    def __init__(self, size_bytes):
        self.left = size_bytes

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        self.left -= count
        buffer[:count] = bytes([65]) * count
        return count


def test_a_long_line_is_passed_over_in_bounded_memory(tmp_path):
    import tracemalloc

    file = io.BufferedReader(_Endless(300 << 20), 1 << 20)
    tracemalloc.start()
    try:
        line = read_line(file, 16_000_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(line) == "the line has 315 MB, more than 16: is a line feed missing?"
    assert peak_bytes < 24_000_000
