"""Fingerprints tell apart what differs in a name, a boundary, a size or at either end."""

from colossal_llama.utils.fingerprint import fingerprint_bytes, fingerprint_directory, fingerprint_file


def test_boundaries_between_parts_count():
    found = [fingerprint_bytes(*parts) for parts in ((b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""))]
    assert len(set(found)) == 4


def test_a_file_and_its_copy_are_alike(tmp_path):
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (fingerprint_file(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_directory_counts_by_names_sizes_and_both_ends_of_long_files(tmp_path):
    def fingerprint(files):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        (directory / "below").mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        return fingerprint_directory(directory, whole_up_to_bytes=4)

    usual = fingerprint({"a": b"123456", "below/b": b"x"})
    assert usual == fingerprint({"a": b"123456", "below/b": b"x", ".hidden": b"x"})
    assert usual == fingerprint({"a": b"12--56", "below/b": b"x"})  # the middle is not read
    others = ({"a": b"-23456"}, {"a": b"12345-"}, {"a": b"1234-56"}, {"c": b"123456"}, {"below/b": b"y"})
    for other in others:
        assert usual != fingerprint({"a": b"123456", "below/b": b"x"} | other)
