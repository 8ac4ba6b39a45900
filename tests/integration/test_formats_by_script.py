"""Every script reads every format in every compression as it reads the same records as jsonl."""

import pytest

from tests.support.data_files import FORMATS
from tests.support.format_table import (
    BEGIN,
    DOCUMENT,
    END,
    PATHS,
    Bench,
    format_row,
    path_row,
)


@pytest.fixture(scope="module")
def bench(made_llama2, tmp_path_factory) -> Bench:
    return Bench(made_llama2, tmp_path_factory.mktemp("formats"))


def documented_row(name: str) -> list[str]:
    """The cells of a row of docs/data.md."""
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return next((row for row in rows if row[0] == name), [])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_table_of_formats_is_true(bench, form):
    made = format_row(bench, form)
    assert made == documented_row(form.name), "python -m tests.support.format_table --write"
    assert set(made[1:]) <= {"yes", "–"}, "a script no longer reads it, or one of its compressions"


@pytest.mark.parametrize("form", PATHS, ids=lambda form: form.name)
def test_the_table_of_ways_to_name_the_data_is_true(bench, form):
    made = path_row(bench, form)
    assert made == documented_row(form.name), "python -m tests.support.format_table --write"
    assert set(made[1:]) == {"yes"}, "a script no longer takes it"
