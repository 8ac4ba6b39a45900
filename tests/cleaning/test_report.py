"""The report of a cleaning: the same bytes for any chunks, tables and figure of any names."""

import json

from colossal_llama.cleaning.counts import ChunkCounts
from colossal_llama.cleaning.figure import TITLE, draw_report
from colossal_llama.cleaning.report import build_report, read_report, write_report
from colossal_llama.cleaning.report_tables import summary
from tests.support.cleaned_corpus import CATEGORIES, REASONS, write_cleaned


def test_the_report_is_the_same_for_any_number_of_chunks(tmp_path):
    for chunks in (1, 3, 50):
        directory = tmp_path / str(chunks)
        write_report(directory, write_cleaned(directory, chunks=chunks), {"preset": "web"})
    reports = [(tmp_path / str(chunks) / "cleaning.json").read_bytes() for chunks in (1, 3, 50)]
    assert reports[0] == reports[1] == reports[2]
    report = read_report(tmp_path / "3")
    assert report == json.loads(reports[0])
    assert set(report["categories"]) == set(CATEGORIES)
    assert set(report["reasons"]) == set(REASONS)
    assert all(len(samples) == 5 for samples in report["samples"].values())
    assert report["totals"]["records"] == 402
    dropped = sum(amount["documents_share"] for amount in report["reasons"].values())
    kept = report["totals"]["kept"]["documents"] / report["totals"]["incoming"]["documents"]
    assert abs(dropped + kept - 1) < 1e-5


def test_the_tables_name_categories_reasons_and_changes(tmp_path):
    text = summary(write_report(tmp_path, write_cleaned(tmp_path), {}))
    for part in (*CATEGORIES, *REASONS, "mask.email", "broken_json", "total"):
        assert part in text


def test_a_report_of_nothing_is_written_and_shown(tmp_path):
    report = write_report(tmp_path, ChunkCounts(), {})
    assert "no document was dropped" in summary(report)
    assert (tmp_path / "cleaning.png").is_file()


def test_the_figure_takes_any_names_and_sums_up_what_has_no_room(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "colossal_llama.cleaning.figure.save_figure", lambda figure, *rest: saved.append((figure, rest))
    )
    report = build_report(write_cleaned(tmp_path), {}, {})
    amount = {"documents": 1, "characters": 9, "documents_share": 0.0, "characters_share": 0.0}
    report["reasons"] |= {f"blocklist.词_{number}": amount for number in range(40)}
    side = {"documents": 2, "characters": 4}
    for number in range(30):
        report["categories"][f"类 $ {number}"] = {"incoming": side, "kept": side, "dropped": {}}
    report["changes"] |= {
        f"change {number}": {"documents": 1, "times": 2, "removed_characters": 0} for number in range(30)
    }
    draw_report(report, tmp_path)
    (figure, (path, title)), *_ = saved
    assert (path, title) == (tmp_path / "cleaning.png", TITLE)
    reasons, lengths, categories, changes = figure.axes
    names = [label.get_text() for label in reasons.get_yticklabels()]
    assert names[0] in REASONS
    assert names[-1] == "26 other reasons"
    assert len(names) == 19
    assert [label.get_text() for label in categories.get_yticklabels()][-1] == "20 other categories"
    assert "of 33)" in changes.get_title() or "of 31)" in changes.get_title()
    assert sum(patch.get_data().values.sum() for patch in lengths.patches) == sum(
        sum(report["lengths"][name]) for name in ("before", "after")
    )
