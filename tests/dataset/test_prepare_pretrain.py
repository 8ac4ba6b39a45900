"""prepare_pretrain_dataset.py from records to parts, on tokenizers of both families."""

import json
import os
import subprocess
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from tests.support.preparations import preparation
from tests.support.scripts import run_script

CONTROL_STRINGS = ["<s>", "</s>", "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"]


@pytest.fixture(scope="module", params=["llama2", "llama3-base"])
def tokenizer_dir(request, any_data):
    return any_data / "tokenizers" / request.param


@pytest.fixture(scope="module")
def opened(tokenizer_dir):
    return OpenTokenizer(tokenizer_dir)


def write_jsonl(path: Path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def settings_for(directory: Path, tokenizer_dir: Path, **changes) -> PrepareArguments:
    options = {"max_length": 64, "num_spliced_dataset_bins": 3, **changes}
    return preparation("pretrain", (directory / "in",), tokenizer_dir, directory / "out", **options)


def prepared(directory: Path, opened: OpenTokenizer, **changes) -> dict:
    return prepare(settings_for(directory, Path(opened.tokenizer.name_or_path), **changes), opened)


def read_parts(output: Path) -> list[list[dict]]:
    """The rows of all parts, read as users do; the jsonl files must hold the same."""
    parts = []
    for directory in sorted((output / "arrow").iterdir()):
        rows = datasets.load_from_disk(str(directory)).to_list()
        lines = (output / "jsonl" / f"{directory.name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
        parts.append(rows)
    return parts


def expected_documents(opened, records) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each document by the plain definition, one call of the tokenizer a text."""
    encoder, tokenizer = opened.text_encoder, opened.tokenizer
    documents = []
    for record in records:
        source = encoder.encode_beginning([record["source"]])[0]
        encode = encoder.encode_continuation if record["source"] else encoder.encode_beginning
        target = encode([record["target"]])[0]
        ids = [tokenizer.bos_token_id, *source, *target, tokenizer.eos_token_id]
        context = 1 + len(source)
        documents.append((ids, [-100] * context + ids[context:]))
    return documents


def documents_of(row: dict) -> list[tuple[list[int], list[int], int]]:
    found, start = [], 0
    for length, category in zip(row["document_lengths"], row["document_categories"], strict=True):
        found.append((row["input_ids"][start : start + length], row["labels"][start : start + length], category))
        start += length
    return found


def check_rows(parts, max_length) -> None:
    for row in (row for part in parts for row in part):
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["document_lengths"]) <= max_length
        assert any(label != -100 for label in row["labels"])
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert all(labels[0] == -100 for _, labels, _ in documents_of(row))


CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.text(CHARACTERS, max_size=12) | st.sampled_from(CONTROL_STRINGS), max_size=4).map("".join)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"source": TEXTS, "target": TEXTS.filter(bool), "category": st.sampled_from(["zh", "en", "诗"])}
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("splicing", ["best_fit", "greedy"])
def test_documents_that_fit_come_out_as_they_are_defined(tmp_path, opened, splicing):
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(records=RECORDS)
    def check(records):
        write_jsonl(tmp_path / "in" / "a.jsonl", records)
        manifest = prepared(tmp_path, opened, max_length=1024, splicing=splicing, overwrite=True)
        parts = read_parts(tmp_path / "out")
        assert len(parts) == 3
        check_rows(parts, 1024)
        names = sorted({record["category"] for record in records})
        expected = Counter(
            (tuple(ids), tuple(labels), names.index(record["category"]))
            for (ids, labels), record in zip(expected_documents(opened, records), records, strict=True)
        )
        found = Counter(
            (tuple(ids), tuple(labels), category)
            for part in parts for row in part for ids, labels, category in documents_of(row)
        )  # fmt: skip
        assert found == expected
        assert manifest["totals"]["tokens_in"] == manifest["totals"]["tokens_out"]

    check()


def test_every_part_has_its_share_of_every_category_and_the_classes_are_named(tmp_path, opened):
    records = [
        {"source": "", "target": f"{category} {number}", "category": category}
        for category, count in (("b", 10), ("a", 8), ("c", 2))
        for number in range(count)
    ]
    write_jsonl(tmp_path / "in" / "x.jsonl", records)
    prepared(tmp_path, opened)
    parts = read_parts(tmp_path / "out")
    counts = [Counter(category for row in part for _, _, category in documents_of(row)) for part in parts]
    for category, count in ((0, 8), (1, 10), (2, 2)):
        shares = [part_counts[category] for part_counts in counts]
        assert sum(shares) == count
        assert max(shares) - min(shares) <= 1
    first = datasets.load_from_disk(str(tmp_path / "out" / "arrow" / "part-00000"))
    wanted = datasets.Features(
        {
            "input_ids": datasets.Sequence(datasets.Value("int32")),
            "labels": datasets.Sequence(datasets.Value("int32")),
            "document_lengths": datasets.Sequence(datasets.Value("int32")),
            "document_categories": datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"])),
        }
    )
    assert first.features == wanted


def test_more_parts_than_documents_are_all_written_and_load(tmp_path, opened):
    write_jsonl(tmp_path / "in" / "x.jsonl", [{"source": "", "target": "one", "category": "a"}] * 2)
    prepared(tmp_path, opened, num_spliced_dataset_bins=5)
    parts = read_parts(tmp_path / "out")
    assert [len(part) for part in parts] == [1, 1, 0, 0, 0]
    names = [path.name for path in sorted((tmp_path / "out" / "arrow").iterdir())]
    assert names == [f"part-0000{index}" for index in range(5)]


def test_long_documents_are_split_without_a_loss(tmp_path, opened):
    text = "\n\n".join(f"Paragraph {number}: some words 和一些汉字。" * (number % 4 + 1) for number in range(40))
    write_jsonl(tmp_path / "in" / "x.jsonl", [{"source": "", "target": text, "category": "a"}])
    manifest = prepared(tmp_path, opened, num_spliced_dataset_bins=1)
    (rows,) = read_parts(tmp_path / "out")
    check_rows([rows], 64)
    ids, _ = expected_documents(opened, [{"source": "", "target": text}])[0]
    segments = [segment for row in rows for segment, _, _ in documents_of(row)]
    ordered, position = [], 0  # the segments put together in the order of the text
    while position < len(ids):
        fitting = [segment for segment in segments if ids[position : position + len(segment)] == segment]
        segments.remove(max(fitting, key=len))
        ordered.append(max(fitting, key=len))
        position += len(ordered[-1])
    assert not segments
    assert list(chain.from_iterable(ordered)) == ids
    special = [opened.tokenizer.bos_token_id, opened.tokenizer.eos_token_id]
    assert [token for segment in ordered for token in segment if token in special] == special
    assert manifest["totals"]["documents_split"] == 1


def test_truncating_counts_what_is_cut(tmp_path, opened):
    text = "words and words " * 100
    write_jsonl(tmp_path / "in" / "x.jsonl", [{"source": "", "target": text, "category": "a"}])
    manifest = prepared(tmp_path, opened, num_spliced_dataset_bins=1, long_documents="truncate")
    (rows,) = read_parts(tmp_path / "out")
    ids, _ = expected_documents(opened, [{"source": "", "target": text}])[0]
    totals = manifest["totals"]
    assert [len(row["document_lengths"]) for row in rows] == [1]
    assert rows[0]["input_ids"] == ids[: len(rows[0]["input_ids"])]
    assert totals["tokens_in"] == len(ids) == totals["tokens_out"] + totals["cut_tokens.truncated"]


@pytest.mark.parametrize("target_words", [1, 20, 300])
def test_a_source_longer_than_a_row_leaves_targets_in_every_row(tmp_path, opened, target_words):
    record = {"source": "question " * 200, "target": "answer " * target_words, "category": "a"}
    write_jsonl(tmp_path / "in" / "x.jsonl", [record])
    manifest = prepared(tmp_path, opened, num_spliced_dataset_bins=1)
    (rows,) = read_parts(tmp_path / "out")
    check_rows([rows], 64)
    totals = manifest["totals"]
    ids, labels = expected_documents(opened, [record])[0]
    assert totals["tokens_in"] == len(ids) == totals["tokens_out"] + totals["cut_tokens.source_too_long"]
    targets = sum(label != -100 for label in labels)
    later_segments = totals["segments"] - 1  # whose first token has no context and is no target
    assert totals["target_tokens"] == targets - later_segments
    longest = max((row for row in rows), key=lambda row: sum(label == -100 for label in row["labels"]))
    assert longest["labels"].count(-100) > 1  # the target's beginning sees the nearest end of its source


def test_a_different_seed_gives_the_same_rows_in_another_order(tmp_path, opened):
    records = [{"source": "", "target": f"document {number} " * 4, "category": "a"} for number in range(60)]
    write_jsonl(tmp_path / "in" / "x.jsonl", records)
    prepared(tmp_path, opened, num_spliced_dataset_bins=1, seed=1)
    (one,) = read_parts(tmp_path / "out")
    prepared(tmp_path, opened, num_spliced_dataset_bins=1, seed=2, overwrite=True)
    (other,) = read_parts(tmp_path / "out")
    assert one != other
    assert sorted(map(json.dumps, one)) == sorted(map(json.dumps, other))


def run_prepare(project_root: Path, *arguments: object, **settings: object) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run_script(project_root, "prepare_pretrain_dataset.py", *arguments, env=environment, **settings)


def test_the_script_gives_the_same_bytes_with_two_workers(tmp_path, any_data, project_root):
    """Three files are three chunks, which two workers share; the call in this process has one.

    The script is started in a directory with modules of the project's and of its libraries' names:
    nobody may import those.
    """
    for name in ("colossal_llama", "numpy", "orjson", "tokenizers"):
        (tmp_path / "trap").mkdir(exist_ok=True)
        (tmp_path / "trap" / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    directory = any_data / "tokenizers" / "llama2"
    for number in range(3):
        records = [{"source": "", "target": f"{number} {n} words", "category": "ab"[n % 2]} for n in range(200)]
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", records)
    done = run_prepare(
        project_root, "--data_input_dirs", tmp_path / "in", "--tokenizer_dir", directory, "--data_output_dirs",
        tmp_path / "two", "--num_workers", 2, "--num_spliced_dataset_bins", 3, "--max_length", 64,
        cwd=tmp_path / "trap",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tokens/character" in done.stdout
    prepare(settings_for(tmp_path, directory))
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.is_file() and path.name != "last_run.json":
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "out")).read_bytes(), path
    assert not any((tmp_path / "two" / "cache").iterdir())


def test_all_bad_arguments_are_named_at_once(tmp_path, project_root):
    done = run_prepare(
        project_root, "--data_input_dirs", tmp_path / "none", "--max_length", "1", "--num_spliced_dataset_bins",
        "100000", "--splicing", "best", "--num_shards", "2", "--nonsense",
    )  # fmt: skip
    assert done.returncode == 2
    named = ("--data_input_dirs", "--max_length", "--num_spliced_dataset_bins", "--splicing", "--tokenizer_dir")
    for name in (*named, "--data_output_dirs", "--shard_index", "--nonsense"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
