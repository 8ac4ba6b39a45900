"""The bar of tokenizing moves within one large file, and ends at the size of all of them."""

import random
from pathlib import Path

import pytest

from colossal_llama.dataset.prepare import chunk_rows, chunk_worker, reading_bar
from colossal_llama.dataset.prepare.pipeline import prepare
from tests.support.data_files import FORMATS
from tests.support.preparations import preparation

TABLES = [form for form in FORMATS if not form.is_text and "a file" not in form.name and "splits" not in form.name]


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self, total: int, **settings):
        self.total, self.moves, self.texts = total, [], []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, size: int) -> None:
        self.moves.append(size)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.texts.append(text)


@pytest.fixture
def bars(monkeypatch):
    """All bars of the test."""
    shown: list[Bar] = []

    def show(**settings):
        shown.append(Bar(**settings))
        return shown[-1]

    monkeypatch.setattr(reading_bar, "progress_bar", show)
    return shown


def documents(count: int) -> list[dict]:
    words = random.Random(1)
    return [
        {"source": "", "target": " ".join(f"{words.random():.12f}" for _ in range(100)), "category": "numbers"}
        for _ in range(count)
    ]


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("form", TABLES, ids=[form.name for form in TABLES])
def test_the_bar_moves_within_a_file_of_every_format(
    tmp_path, opened, tokenizer_dir, monkeypatch, bars, form, compression
):
    if compression and not form.is_compressible:
        pytest.skip("it has no compressed form")
    monkeypatch.setattr(chunk_rows, "_REPORT_INTERVAL_S", 0)
    monkeypatch.setattr(chunk_worker, "BATCH_BYTES", 20_000)
    source = tmp_path / "in"
    source.mkdir()
    form.write(source, documents(2_000), compression)
    given = tuple(source / name for name in form.given)
    prepare(preparation("pretrain", given, tokenizer_dir, tmp_path / "out", max_length=512), opened)
    (bar,) = bars
    assert sum(bar.moves) == bar.total
    assert min(bar.moves) >= 0, "it never goes back"
    assert max(bar.moves) < 0.75 * bar.total, "it does not stand still until the file is read"
    assert any("chunk 0 of" in text and " 0 tokens/s" not in text for text in bar.texts), "rates before the first chunk"


def test_workers_move_the_bar_too(tmp_path, tokenizer_dir, bars):
    source = tmp_path / "in"
    source.mkdir()
    (form,) = (form for form in TABLES if form.name == "`.json`, one array")
    form.write(source, documents(8_000), ".gz")
    prepare(preparation("pretrain", (source,), tokenizer_dir, tmp_path / "out", num_workers=2))
    (bar,) = bars
    assert len(bar.moves) >= 2, "a report each half second"
    assert sum(bar.moves) == bar.total == next(Path(source).iterdir()).stat().st_size
