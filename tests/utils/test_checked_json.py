"""JSON objects with their checksum: read as written, refused when anything has changed."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.utils.checked_json import DamagedJsonError, has_checksum, read_checked, with_checksum

CONTENT = {"name": "字", "count": 3, "share": 0.1, "parts": [{"rows": 2}, {"rows": 10**30}]}
SHAPE = {"name": str, "count": int, "parts": [{"rows": int}]}


def test_what_was_written_is_read_whatever_the_layout(tmp_path):
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(with_checksum(CONTENT), indent=indent, ensure_ascii=False), encoding="utf-8")
        content = read_checked(path, SHAPE)
        assert has_checksum(content)
        assert {**content, "checksum": None} == {**CONTENT, "checksum": None}
    path.write_text(json.dumps(CONTENT), encoding="utf-8")
    assert not has_checksum(read_checked(path, SHAPE))


@given(st.data())
def test_no_changed_byte_gives_other_content(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("json") / "a.json"
    whole = json.dumps(with_checksum(CONTENT), ensure_ascii=False).encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    path.write_bytes(changed)
    try:
        content = read_checked(path, SHAPE)
    except DamagedJsonError:
        return
    # The name of the checksum itself was hit: then there is none, as in an earlier version.
    assert {key: content[key] for key in CONTENT} == CONTENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "nested too deeply|recursion"),
        ("[]", "holds no JSON object"),
        ("null", "holds no JSON object"),
        ('{"name": "a"}', "lacks count"),
        ('{"name": "a", "count": "3", "parts": []}', "lacks count, or has another type"),
        ('{"name": "a", "count": 3, "parts": {}}', "lacks parts"),
        ('{"name": "a", "count": 3, "parts": [{"rows": 1}, {}]}', r"lacks parts\.1\.rows"),
    ],
)
def test_other_content_is_named(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedJsonError, match=reason):
        read_checked(tmp_path / "a.json", SHAPE)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(DamagedJsonError, match="is not a file"):
            read_checked(tmp_path / name, SHAPE)
    with pytest.raises(FileNotFoundError):
        read_checked(tmp_path / "nothing", SHAPE)
