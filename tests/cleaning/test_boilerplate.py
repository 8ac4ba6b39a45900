"""Tests of boilerplate: which lines recur in a group, what is cut, and what never is."""

import random
from pathlib import Path

import numpy as np
import pytest

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.boilerplate import Boilerplate, cut_lines, read_cuts, write_cuts, write_lines
from colossal_llama.cleaning.duplicates.document_index import DocumentIndex
from colossal_llama.cleaning.rule_settings import read_rules

AMPLE, LEAST = 1 << 30, 1
FOOTER = "本页内容由网站编辑整理，未经许可不得转载"
SETTINGS = Boilerplate(min_documents=10, min_document_share=0.05)


def cleaned(
    directory: Path,
    texts: list[str],
    groups: list[str] | None = None,
    settings: Boilerplate = SETTINGS,
    blocks: int = 3,
    memory_bytes: int = AMPLE,
    dropped: tuple[int, ...] = (),
) -> list[str]:
    """The texts without boilerplate, by way of the disk."""
    groups = groups or ["a"] * len(texts)
    parts = np.array_split(np.arange(len(texts)), blocks)
    for block, part in enumerate(parts):
        write_lines(directory, block, [texts[i] for i in part], [groups[i] for i in part])
    index = DocumentIndex.of_chunks([len(part) for part in parts])
    is_dropped = np.isin(np.arange(len(texts)), dropped)
    write_cuts(directory, index, is_dropped, settings, memory_bytes)
    result = list(texts)
    for block, part in enumerate(parts):
        for position, hashes in read_cuts(directory, block, settings).items():
            at = part[position]
            result[at], count = cut_lines(texts[at], groups[at], hashes, settings)
            assert count == _lines(texts[at]) - _lines(result[at])
    return result


def _lines(text: str) -> int:
    return sum(map(bool, map(str.strip, text.split("\n"))))


def pages(count: int, footers: int, footer: str = FOOTER) -> list[str]:
    """Pages of which the first have a footer."""
    return [f"第{i}页的题目\n正文{i}" + (f"\n  {footer}" if i < footers else "") for i in range(count)]


@pytest.mark.parametrize(("footers", "is_cut"), [(9, False), (10, True), (30, True)])
def test_a_line_recurs_from_a_number_of_documents_on(tmp_path, footers, is_cut):
    texts = pages(60, footers)
    assert (cleaned(tmp_path, texts) == pages(60, 0)) == is_cut
    assert is_cut or cleaned(tmp_path, texts) == texts


@pytest.mark.parametrize(("count", "is_cut"), [(240, True), (241, False)])
def test_a_line_recurs_from_a_share_of_its_group_on(tmp_path, count, is_cut):
    texts = pages(count, 12)
    assert cleaned(tmp_path, texts) == (pages(count, 0) if is_cut else texts)


def test_groups_are_counted_each_by_itself(tmp_path):
    texts = pages(40, 40)
    groups = ["a.com"] * 8 + ["b.com"] * 32
    result = cleaned(tmp_path, texts, groups)
    assert result == texts[:8] + pages(40, 0)[8:]


def test_a_line_counts_once_a_document(tmp_path):
    texts = ["\n".join([f"第{i}页", *[FOOTER] * 20]) for i in range(5)]
    assert cleaned(tmp_path, texts) == texts


def test_documents_that_are_dropped_as_duplicates_do_not_count(tmp_path):
    copies = ["一篇被转载了很多次的文章，它的每一行都相同"] * 30
    texts = pages(60, 9) + copies
    assert cleaned(tmp_path, texts, dropped=tuple(range(61, 90))) == texts
    assert cleaned(tmp_path, texts)[60:] == [""] * 30


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("memory_bytes", [LEAST, AMPLE])
def test_memory_and_blocks_change_nothing(tmp_path, monkeypatch, blocks, memory_bytes):
    monkeypatch.setattr(hash_runs, "_LARGEST_GROUP", 100)
    generator = random.Random(3)
    lines = [f"a line that is in some documents {number}" for number in range(40)]
    texts = ["\n".join(generator.choices(lines, range(1, 41), k=8)) for _ in range(1000)]
    groups = [generator.choice(["a", "a", "b", "c"]) for _ in texts]
    settings = Boilerplate(min_documents=50, min_document_share=0.2)
    dropped = tuple(range(0, 1000, 7))
    assert cleaned(tmp_path / "x", texts, groups, settings, blocks, memory_bytes, dropped) == cleaned(
        tmp_path / "y", texts, groups, settings, 3, AMPLE, dropped
    )


@pytest.mark.parametrize("piece", [7, 64, 199])
@pytest.mark.parametrize(("min_documents", "is_cut"), [(900, True), (901, False)])
def test_a_line_that_comes_in_pieces_is_counted_exactly(tmp_path, monkeypatch, piece, min_documents, is_cut):
    monkeypatch.setattr(hash_runs, "_LARGEST_GROUP", piece)
    texts = [FOOTER] * 901 + ["其他"] * 100
    settings = Boilerplate(min_documents, 0.05)
    dropped = (0,) if piece == 64 else (5,)
    result = cleaned(tmp_path, texts, settings=settings, memory_bytes=LEAST, dropped=dropped)
    assert (FOOTER not in result) == is_cut


def test_lines_are_counted_as_a_plain_count_does(tmp_path):
    generator = random.Random(4)
    lines = [f"words of line number {number}" for number in range(200)]
    texts = ["\n".join(generator.choices(lines, range(1, 201), k=6)) for _ in range(2000)]
    groups = [generator.choice("abc") for _ in texts]
    settings = Boilerplate(min_documents=20, min_document_share=0.03)
    sets = [set(text.split("\n")) for text in texts]
    recurring = {
        (group, line)
        for group in "abc"
        for line in lines
        if (found := sum(line in set_ for set_, own in zip(sets, groups, strict=True) if own == group)) >= 20
        and found >= 0.03 * groups.count(group)
    }
    expected = [
        "\n".join(line for line in text.split("\n") if (group, line) not in recurring)
        for text, group in zip(texts, groups, strict=True)
    ]
    assert 0 < len(recurring) < 300
    assert cleaned(tmp_path, texts, groups, settings, memory_bytes=LEAST) == expected


@pytest.mark.parametrize("line", ["}", "```", "---", "else:", "白居易", "References", "};", "* * *", "```python"])
def test_short_lines_stay_however_often_they_recur(tmp_path, line):
    texts = pages(40, 40, line)
    assert cleaned(tmp_path, texts) == texts


def test_short_lines_go_where_they_follow_each_other(tmp_path):
    texts = [f"首页\n新闻\n\n体育\n关于我们\n第{i}页的正文\n首页" for i in range(40)]
    assert cleaned(tmp_path, texts) == [f"第{i}页的正文\n首页" for i in range(40)]


@pytest.mark.parametrize(
    ("page", "left"),
    [
        ("one\n\n{}\n\ntwo", "one\n\ntwo"),
        ("one\n{}\n\ntwo", "one\n\ntwo"),
        ("one\n\n{}\ntwo", "one\n\ntwo"),
        ("one\n\n{}", "one"),
        ("one\n{}\n\n", "one"),
        ("{}\n\none", "one"),
        ("one\n\n\n{}\n \n{}\n\n", "one"),
        ("{}", ""),
    ],
)
def test_blank_lines_around_what_is_cut_go_where_they_separate_nothing(tmp_path, page, left):
    texts = [page.format(FOOTER, FOOTER).replace("o", f"o{i}") for i in range(20)]
    assert cleaned(tmp_path, texts) == [left.replace("o", f"o{i}") for i in range(20)]


@pytest.mark.parametrize(("min_letters", "is_cut"), [(4 * len(FOOTER) - 4, True), (4 * len(FOOTER), False)])
def test_letters_of_long_lines_count_in_full(tmp_path, min_letters, is_cut):
    footer = FOOTER.replace("，", "") * 3
    texts = pages(40, 40, footer)
    settings = Boilerplate(10, 0.05, min_letters=3 * min_letters)
    assert (cleaned(tmp_path, texts, settings=settings) == pages(40, 0)) == is_cut


def test_a_short_line_that_a_document_repeats_counts_once(tmp_path):
    texts = [f"首页\n首页\n首页\n首页\n首页\n正文{i}" for i in range(40)]
    assert cleaned(tmp_path, texts) == texts


CODE = [
    "import numpy as np",
    "from typing import Any, Optional, Union",
    "public static void main(String[] args) {",
    "for name in the list of all names:",
    "#include <stdio.h>",
    "# Heading of several words that recurs",
    "| a table | with words | in the row | of it |",
    "return the_value_of(self, that, we, want)",
    "## 兼容性变更与已知问题说明",
    "## Parameters",
    "SELECT name FROM the table of users WHERE id = 3;",
    "</details>",
]


@pytest.mark.parametrize("line", CODE)
def test_code_and_headings_stay_where_code_is_kept(tmp_path, line):
    texts = pages(40, 40, line)
    settings = Boilerplate(10, 0.05, keep_code=True)
    assert cleaned(tmp_path, texts, settings=settings) == texts


@pytest.mark.parametrize("fence", ["```", "~~~"])
def test_fenced_code_stays_where_code_is_kept(tmp_path, fence):
    sentence = "This document has been placed in the public domain."
    fenced = f"{fence}text\n{sentence}\n{fence}"
    texts = [f"Page {i}\n{fenced}\nmore {i}\n{sentence}\n{FOOTER}" for i in range(40)]
    settings = Boilerplate(10, 0.05, keep_code=True)
    assert cleaned(tmp_path, texts, settings=settings) == [f"Page {i}\n{fenced}\nmore {i}" for i in range(40)]


@pytest.mark.parametrize(
    ("page", "is_cut"),
    [
        ("Heading\n~~~~~~~\n\n{}\n\nOther\n~~~~~\n", True),
        ("````md\n```\n{}\n```\n````\nend", False),
        ("```\n```python\n{}\n```\nend", False),
        ("```a\n```\n{}\n```\n```\nend", True),
        ("text `` with ``` ticks ```\n{}\nend", True),
        ("```inline``` code\n{}\nend", True),
        ("  - point\n    ```\n    {}\n    ```\n", False),
        ("```\n{}\nnever closed", False),
    ],
)
def test_fences_are_told_as_markdown_does(tmp_path, page, is_cut):
    texts = [f"Page {i}\n" + page.format(FOOTER) for i in range(40)]
    settings = Boilerplate(10, 0.05, keep_code=True)
    assert [FOOTER not in text for text in cleaned(tmp_path, texts, settings=settings)] == [is_cut] * 40


def test_presets_set_what_is_spared():
    assert Boilerplate.of_rules(read_rules("web")).keep_code is False
    assert Boilerplate.of_rules(read_rules("code-docs")).keep_code is True
    assert Boilerplate.of_rules(read_rules("conversations")) is None
    changed = read_rules("web", changes=["boilerplate.min_documents=3", "boilerplate.min_letters=2"])
    assert Boilerplate.of_rules(changed).min_documents == 3


def test_documents_without_lines_and_no_documents_at_all(tmp_path):
    assert cleaned(tmp_path, ["", "\n\n", "x"]) == ["", "\n\n", "x"]
    index = DocumentIndex.of_chunks([])
    assert write_cuts(tmp_path / "none", index, np.zeros(0, dtype=bool), SETTINGS, AMPLE) == 0
