"""Verification of a cleaning: a whole one passes, every kind of damage is named."""

import json
from pathlib import Path

import pytest

from colossal_llama.cleaning.output_files import file_entries
from colossal_llama.cleaning.report import write_report
from colossal_llama.cleaning.verification import verify
from colossal_llama.utils.checked_json import with_checksum
from colossal_llama.utils.errors import UserError
from tests.support.cleaned_corpus import write_cleaned


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """A cleaning that is whole."""
    write_report(tmp_path, write_cleaned(tmp_path), {})
    return tmp_path


def _problems(directory: Path) -> str:
    with pytest.raises(UserError) as raised:
        verify(directory)
    return str(raised.value)


def test_a_whole_cleaning_is_verified(cleaned):
    (cleaned / "work").mkdir()
    (cleaned / "work" / "chunk").write_text("kept by --keep_work")
    (cleaned / ".lock").write_text("")
    assert "400 documents" not in verify(cleaned)
    assert "all as in the report" in verify(cleaned)


def test_damaged_missing_and_foreign_files_are_named(cleaned):
    part = cleaned / "documents" / "part-00001.jsonl"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    (cleaned / "dropped" / "language.jsonl").unlink()
    (cleaned / "documents" / "mine.jsonl").write_text("{}\n")
    (cleaned / "cleaning.png").unlink()
    found = _problems(cleaned)
    assert f"documents/part-00001.jsonl has {len(content) // 2} bytes of {len(content)}" in found
    assert "documents/part-00001.jsonl: line" in found
    assert "dropped/language.jsonl is missing" in found
    assert "documents/mine.jsonl is not in the report" in found
    assert "cleaning.png is missing" in found


@pytest.mark.parametrize("change", [lambda content: b"", lambda content: content[:-7], lambda content: b"x" + content])
def test_a_picture_that_is_cut_off_is_found(cleaned, change):
    path = cleaned / "cleaning.png"
    path.write_bytes(change(path.read_bytes()))
    assert "cleaning.png is no whole PNG file" in _problems(cleaned)


def test_a_changed_character_is_found(cleaned):
    part = cleaned / "documents" / "part-00000.jsonl"
    part.write_bytes(part.read_bytes().replace("甲".encode(), "乙".encode(), 1))
    assert "the content of documents/part-00000.jsonl is not what was written" in _problems(cleaned)


def test_a_report_that_was_edited_is_refused(cleaned):
    path = cleaned / "cleaning.json"
    path.write_text(path.read_text().replace('"records": 402', '"records": 403'))
    assert "checksum" in _problems(cleaned)
    report = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in report.items() if name != "checksum"}))
    assert "has no checksum" in _problems(cleaned)
    path.write_text("{")
    assert "cannot be read as JSON" in _problems(cleaned)
    path.unlink()
    assert "has no cleaning.json: the cleaning is not finished" in _problems(cleaned)


def test_hits_of_benchmarks_belong_to_dropped_documents(cleaned):
    path, report = cleaned / "decontamination.jsonl", json.loads((cleaned / "cleaning.json").read_text())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[2:]))  # both questions of one document
    entry = file_entries(cleaned)["decontamination.jsonl"]
    report["files"]["decontamination.jsonl"] = entry
    (cleaned / "cleaning.json").write_text(json.dumps(with_checksum(report)))
    assert "are dropped for decontamination" in _problems(cleaned)


WRONG_COUNTS = {
    "a document kept": (("categories", "docs", "kept", "documents"), "category docs, kept"),
    "characters dropped": (
        ("categories", "docs", "dropped", "length", "characters"),
        "category docs, dropped by length",
    ),
    "records": (("totals", "records"), "are rejected, dropped or kept"),
    "rejected": (("totals", "rejected", "broken_json"), "rejected.jsonl has 2"),
    "a reason": (("reasons", "language", "documents"), "documents dropped by its parts"),
    "what came in": (("categories", "诗词", "incoming", "documents"), "came into category 诗词"),
    "a change": (("changes", "mask.email", "removed_characters"), "lost"),
    "a length": (("lengths", "after", 7), "the lengths of the documents that are kept"),
    "a length before": (("lengths", "before", 7), "the lengths before do not add up"),
    "a sample": (("samples", "length", 2, "position"), "the samples of length"),
}


@pytest.mark.parametrize("name", WRONG_COUNTS)
def test_every_wrong_count_is_found(cleaned, name):
    """Faults of the program itself, which come with a checksum that is right."""
    keys, said = WRONG_COUNTS[name]
    report = json.loads((cleaned / "cleaning.json").read_text())
    where = report
    for key in keys[:-1]:
        where = where[key]
    where[keys[-1]] += 1
    (cleaned / "cleaning.json").write_text(json.dumps(with_checksum(report)))
    assert said in _problems(cleaned)
