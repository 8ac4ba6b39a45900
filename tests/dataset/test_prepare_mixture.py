"""A prepared mixture: its parts, its record, other mixtures of the same cache, kills and shards."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest

from colossal_llama.dataset.mixture.mixture_file import read_mixture
from colossal_llama.dataset.prepare import part_planning, pipeline
from colossal_llama.dataset.prepare.cli import parse_arguments
from colossal_llama.dataset.prepare.manifest import read_manifest, summary
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.errors import UserError
from tests.support.preparations import content, preparation

PARTS = 5
LLAMA2_BOS = 1
REPLAY = """
categories:
  articles: {group: informative}
  qa:       {group: functional, epochs: 2.5}
  english:  {group: replay, share: 25%}
"""
LATE = """
categories:
  qa: {share: 1%, late: 15%}
  "*": {}
"""


@pytest.fixture(scope="module")
def input_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("input")
    chance = random.Random(5)
    for category, count in (("articles", 1600), ("qa", 500), ("english", 1200)):
        rows = [
            {
                "source": "a question? " if category == "qa" else "",
                "target": f"{category} {number} " + "some words " * chance.randint(1, 12 if number % 40 else 90),
                "category": category,
            }
            for number in range(count)
        ]
        for part in (0, 1):
            lines = "".join(json.dumps(row) + "\n" for row in rows[part::2])
            (directory / f"{category}-{part}.jsonl").write_text(lines)
    return directory


@pytest.fixture
def mixture_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mixture.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def wanted(input_dir, tokenizer_dir, mixture_file):
    def arguments(output: Path, text: str = REPLAY, **options):
        options = {"max_length": 64, "num_spliced_dataset_bins": PARTS, **options}
        mixture = read_mixture(mixture_file(text)) if text else None
        return preparation("pretrain", (input_dir,), tokenizer_dir, output, mixture=mixture, **options)

    return arguments


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, input_dir, tokenizer_dir, opened):
    """Outputs of whole runs, by the text of their mixture."""
    outputs = {}
    for text in (REPLAY, LATE):
        directory = tmp_path_factory.mktemp("undisturbed")
        (directory / "m.yaml").write_text(text)
        options = {"max_length": 64, "num_spliced_dataset_bins": PARTS, "mixture": read_mixture(directory / "m.yaml")}
        prepare(preparation("pretrain", (input_dir,), tokenizer_dir, directory / "out", **options), opened)
        outputs[text] = directory / "out"
    return outputs


def tokens_by_category(part: Path) -> Counter:
    rows = datasets.load_from_disk(str(part))
    names = rows.features["document_categories"].feature.names
    tokens = Counter()
    for row in rows:
        for number, length in zip(row["document_categories"], row["document_lengths"], strict=True):
            tokens[names[number]] += length
    return tokens


def documents_of(part: Path) -> Counter:
    """How often the part has the beginning of each document; later pieces may be alike."""
    found = Counter()
    for row in datasets.load_from_disk(str(part)):
        start = 0
        for length in row["document_lengths"]:
            if row["input_ids"][start] == LLAMA2_BOS:
                found[tuple(row["input_ids"][start : start + length])] += 1
            start += length
    return found


# -------------------------------------------------------------------------------------- the parts


def test_every_part_has_the_shares_and_the_manifest_says_so(undisturbed):
    output = undisturbed[REPLAY]
    manifest = read_manifest(output)
    record = manifest["mixture"]
    parts = [tokens_by_category(path) for path in sorted((output / "arrow").iterdir())]
    assert len(parts) == PARTS
    assert record["deviations"] == []
    for number, part in enumerate(parts):
        total = sum(part.values())
        assert part["english"] / total == pytest.approx(0.25, abs=0.001)
        assert part["qa"] / total == pytest.approx(record["categories"]["qa"]["requested_share"], abs=0.001)
        assert {name: entry["bucket_tokens"][number] for name, entry in record["categories"].items()} == part
    whole = sum(parts, Counter())
    assert whole["english"] / sum(whole.values()) == pytest.approx(0.25, abs=0.0002)
    entries = record["categories"]
    assert entries["qa"]["epochs"] == pytest.approx(2.5, abs=0.001)
    assert (entries["articles"]["epochs"], entries["articles"]["left_out_documents"]) == (1, 0)
    english = manifest["categories"]["english"]
    assert english["dropped_documents.left_out_by_mixture"] == entries["english"]["left_out_documents"] > 0
    assert english["tokens_in"] == english["tokens_out"] + english["dropped_tokens.left_out_by_mixture"]
    qa = manifest["categories"]["qa"]
    assert qa["tokens_out"] == qa["tokens_in"] + qa["further_epoch_tokens"] == whole["qa"]
    assert record["groups"]["replay"]["share"] == pytest.approx(0.25, abs=0.0002)
    assert manifest["identity"]["arguments"]["mixture"]["categories"]["english"] == {"group": "replay", "share": "25%"}
    assert "as in the manifest" in verify(output)
    assert "every share is met within 0.1 %" in summary(manifest)


def test_targets_are_counted_by_category(undisturbed):
    manifest = read_manifest(undisturbed[REPLAY])
    targets = Counter()
    for path in sorted((undisturbed[REPLAY] / "arrow").iterdir()):
        rows = datasets.load_from_disk(str(path))
        names = rows.features["document_categories"].feature.names
        for row in rows:
            start = 0
            for number, length in zip(row["document_categories"], row["document_lengths"], strict=True):
                targets[names[number]] += sum(label != -100 for label in row["labels"][start : start + length])
                start += length
    assert {name: counts["target_tokens"] for name, counts in manifest["categories"].items()} == targets
    assert manifest["totals"]["target_tokens"] == sum(targets.values())


def test_repeated_documents_are_in_other_parts_and_no_third_time_before_all_are_there_twice(undisturbed):
    parts = [documents_of(path) for path in sorted((undisturbed[REPLAY] / "arrow").iterdir())]
    entry = read_manifest(undisturbed[REPLAY])["mixture"]["categories"]["qa"]
    assert entry["chosen_documents"] > 2 * entry["documents"]
    assert max(count for part in parts for count in part.values()) == 1
    whole = {document: count for document, count in sum(parts, Counter()).items() if count > 1}
    assert set(whole.values()) == {2, 3}


def test_late_questions_come_late(undisturbed):
    parts = [tokens_by_category(path) for path in sorted((undisturbed[LATE] / "arrow").iterdir())]
    shares = [part["qa"] / sum(part.values()) for part in parts]
    assert shares == pytest.approx([0.01, 0.045, 0.08, 0.115, 0.15], abs=0.001)
    sizes = [sum(part.values()) for part in parts]
    assert max(sizes) - min(sizes) < 0.002 * max(sizes)


def test_total_tokens_is_met_and_truncated_tokens_are_not_counted(tmp_path, wanted, opened):
    manifest = prepare(wanted(tmp_path / "out", LATE, total_tokens=20_000, long_documents="truncate"), opened)
    assert sum(part["tokens"] for part in manifest["parts"]) == pytest.approx(20_000, abs=20)
    assert manifest["totals"]["cut_tokens.truncated"] > 0
    assert verify(tmp_path / "out")


def test_conversations_are_mixed_as_documents_are(tmp_path, mixture_file, made_data):
    directory = tmp_path / "in"
    directory.mkdir()
    chance = random.Random(1)
    for category, count in (("chat", 600), ("safety", 60)):
        rows = []
        for number in range(count):
            turns = [
                {"from": speaker, "content": f"{category} {number} " + "word " * chance.randint(1, 10)}
                for speaker in ("human", "assistant") * chance.randint(1, 6)
            ]
            rows.append({"messages": turns, "category": category})
        (directory / f"{category}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = read_mixture(mixture_file("categories: {safety: {share: 20%}, chat: {}}"))
    tokenizer_dir = made_data / "tokenizers" / "llama3-instruct"
    options = {"max_length": 128, "num_spliced_dataset_bins": 3, "long_conversations": "window", "mixture": mixture}
    manifest = prepare(preparation("sft", (directory,), tokenizer_dir, tmp_path / "out", **options))
    for path in sorted((tmp_path / "out" / "arrow").iterdir()):
        part = tokens_by_category(path)
        assert part["safety"] / sum(part.values()) == pytest.approx(0.2, abs=0.002)
    assert manifest["totals"]["repeated_tokens"] > 0
    assert verify(tmp_path / "out")


def test_few_long_documents_are_the_reason_that_is_said(tmp_path, tokenizer_dir, opened, mixture_file):
    directory = tmp_path / "in"
    directory.mkdir()
    for category, count, words in (("books", 3, 60), ("notes", 50, 4)):
        row = json.dumps({"source": "", "target": "some words " * words, "category": category}) + "\n"
        (directory / f"{category}.jsonl").write_text(row * count)
    mixture = read_mixture(mixture_file("categories: {books: {share: 50%}, notes: {}}"))
    options = {"max_length": 64, "num_spliced_dataset_bins": 4, "mixture": mixture}
    manifest = prepare(preparation("pretrain", (directory,), tokenizer_dir, tmp_path / "out", **options), opened)
    said = manifest["mixture"]["deviations"]
    assert any(line.startswith("books: up to ") and "few or long documents: 3 of up to" in line for line in said)
    assert "shares that are not met within 0.1 % of the tokens:" in summary(manifest)


# ------------------------------------------------------------------------- the same, however made


def test_workers_and_shards_change_nothing(tmp_path, wanted, opened, undisturbed):
    prepare(wanted(tmp_path / "workers", num_workers=3), opened)
    assert content(tmp_path / "workers") == content(undisturbed[REPLAY])
    for index in (1, 0, 0, 1):
        manifest = prepare(wanted(tmp_path / "shards", num_shards=2, shard_index=index), opened)
    assert manifest is not None
    assert content(tmp_path / "shards") == content(undisturbed[REPLAY])


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path, input_dir, tokenizer_dir, project_root, mixture_file, undisturbed
):
    call = [sys.executable, project_root / "prepare_pretrain_dataset.py", "--data_input_dirs", input_dir,
            "--tokenizer_dir", tokenizer_dir, "--data_output_dirs", tmp_path / "out", "--max_length", 64,
            "--num_spliced_dataset_bins", PARTS, "--num_workers", 2, "--mixture", mixture_file(REPLAY)]  # fmt: skip
    call = [str(part) for part in call]
    chance = random.Random(time.time_ns())
    limits = [chance.randint(3, 35) for _ in range(2)]
    for limit in limits:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and sum(len(files) for *_, files in os.walk(tmp_path / "out")) < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (limits, done.stderr)
    assert content(tmp_path / "out") == content(undisturbed[REPLAY]), limits


def test_a_damaged_part_of_a_complete_mixture_is_made_anew(tmp_path, wanted, opened, undisturbed):
    output = shutil.copytree(undisturbed[REPLAY], tmp_path / "out")
    (output / "jsonl" / "part-00003.jsonl").write_text("{}")
    prepare(wanted(output), opened)
    assert content(output) == content(undisturbed[REPLAY])


# --------------------------------------------------------------------------------------- plan only


def test_plan_only_shows_the_plan_and_the_real_run_goes_on_from_it(tmp_path, wanted, opened, undisturbed, capsys):
    output = tmp_path / "out"
    assert prepare(wanted(output, plan_only=True), opened) is None
    printed = capsys.readouterr().out
    for line in ("group replay", "part-00004", "epochs", "every share is met", "no part was written"):
        assert line in printed
    assert (output / "mixture_plan.png").read_bytes().startswith(b"\x89PNG")
    shown = json.loads((output / "mixture_plan.json").read_text())
    assert shown["plan"] == read_manifest(undisturbed[REPLAY])["mixture"]
    assert shown["mixture"]["categories"]["english"]["share"] == "25%"
    assert [path for name in ("arrow", "jsonl") for path in (output / name).iterdir()] == []
    before = {path: path.stat().st_mtime_ns for path in (output / "cache" / "chunks").iterdir()}
    # Another mixture is planned and prepared from the same chunks.
    prepare(wanted(output, LATE, plan_only=True), opened)
    manifest = prepare(wanted(output, LATE, keep_cache=True), opened)
    assert {path: path.stat().st_mtime_ns for path in (output / "cache" / "chunks").iterdir()} == before
    assert "nothing is tokenized again" in capsys.readouterr().out
    assert manifest["mixture"] == json.loads((output / "mixture_plan.json").read_text())["plan"]
    shutil.rmtree(output / "cache")
    (output / "cache").mkdir()
    made = {name: data for name, data in content(output).items() if not name.startswith("mixture_plan")}
    assert made == content(undisturbed[LATE])


def test_plan_only_without_a_mixture_shows_what_there_is(tmp_path, wanted, opened, capsys):
    prepare(wanted(tmp_path / "out", "", plan_only=True), opened)
    assert "articles" in capsys.readouterr().out
    shown = json.loads((tmp_path / "out" / "mixture_plan.json").read_text())["plan"]
    assert [entry["epochs"] for entry in shown["categories"].values()] == [1, 1, 1]
    manifest = prepare(wanted(tmp_path / "out", ""), opened)
    assert shown["bucket_tokens"] == [part["tokens"] for part in manifest["parts"]]


def test_plan_only_of_a_complete_preparation(tmp_path, wanted, opened, undisturbed, capsys):
    output = shutil.copytree(undisturbed[REPLAY], tmp_path / "out")
    prepare(wanted(output, plan_only=True), opened)
    assert "group replay" in capsys.readouterr().out
    with pytest.raises(UserError, match="gone from its cache"):
        prepare(wanted(output, LATE, plan_only=True), opened)
    kept = tmp_path / "kept"
    prepare(wanted(kept, keep_cache=True), opened)
    prepare(wanted(kept, LATE, plan_only=True), opened)
    assert json.loads((kept / "mixture_plan.json").read_text())["plan"] == read_manifest(undisturbed[LATE])["mixture"]
    with pytest.raises(UserError, match=r"prepared with other arguments[^~]*mixture.categories.english: "):
        prepare(wanted(kept, LATE), opened)
    assert verify(kept)


def test_names_that_matplotlib_would_misread_are_drawn(tmp_path, tokenizer_dir, opened, recwarn):
    (tmp_path / "in").mkdir()
    names = ["问答", "_hidden", "$x", "a" * 90, "$\\frac"] + [f"more {number}" for number in range(20)]
    rows = [{"source": "", "target": f"text {number}", "category": name} for number, name in enumerate(names)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = preparation("pretrain", (tmp_path / "in",), tokenizer_dir, tmp_path / "out", plan_only=True)
    prepare(arguments, opened)
    assert (tmp_path / "out" / "mixture_plan.png").stat().st_size > 10_000
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []


# -------------------------------------------------------------------------------- another mixture


def test_an_interrupted_run_takes_another_mixture_from_the_same_chunks(
    tmp_path, wanted, opened, undisturbed, monkeypatch, capsys
):
    output = tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "build_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted(output), opened)
    assert len(list((output / "arrow").iterdir())) == PARTS
    with pytest.raises(UserError, match="begun with another mixture"):
        prepare(wanted(output, LATE, num_shards=2, shard_index=0), opened)
    with pytest.raises(UserError, match="seed: 42 then, 7 now"):
        prepare(wanted(output, LATE, seed=7), opened)
    monkeypatch.setattr(pipeline, "process_chunk", None)  # nothing is tokenized again
    prepare(wanted(output, LATE), opened)
    assert f"{PARTS} parts of the former one are removed" in capsys.readouterr().out
    assert content(output) == content(undisturbed[LATE])


def test_a_refused_mixture_keeps_what_was_tokenized(tmp_path, wanted, opened, undisturbed, monkeypatch):
    output = tmp_path / "out"
    wrong = REPLAY.replace("qa:  ", "qq:  ")
    with pytest.raises(UserError, match=r"no usable document of 'qq'") as refused:
        prepare(wanted(output, wrong), opened)
    assert "does not name 'qa'" in str(refused.value)
    with pytest.raises(UserError, match=r"qa: .* 2.5 epochs"):
        prepare(wanted(output, max_repeats=2), opened)
    monkeypatch.setattr(pipeline, "process_chunk", None)
    prepare(wanted(output), opened)
    assert content(output) == content(undisturbed[REPLAY])


def test_without_and_with_a_mixture_in_one_directory(tmp_path, wanted, opened, undisturbed):
    output = tmp_path / "out"
    prepare(wanted(output, "", plan_only=True), opened)
    prepare(wanted(output), opened)
    made = {name: data for name, data in content(output).items() if not name.startswith("mixture_plan")}
    assert made == content(undisturbed[REPLAY])
    with pytest.raises(UserError, match=r"mixture: .* then, None now"):
        prepare(wanted(output, ""), opened)


def test_overwrite_with_another_mixture_takes_the_tokens_that_were_kept(
    tmp_path, wanted, opened, undisturbed, monkeypatch, capsys
):
    output = tmp_path / "out"
    prepare(wanted(output, keep_cache=True), opened)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "process_chunk", None)
        prepare(wanted(output, LATE, overwrite=True), opened)
    assert "nothing is tokenized again" in capsys.readouterr().out
    assert content(output) == content(undisturbed[LATE])
    prepare(wanted(output, overwrite=True), opened)  # the cache is gone
    assert content(output) == content(undisturbed[REPLAY])


def test_files_of_others_are_not_replaced(tmp_path, wanted, opened):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mixture_plan.png").write_bytes(b"\x89PNG\r\n\x1a\nof somebody else")
    with pytest.raises(UserError, match=r"holds mixture_plan.png, which these scripts did not write"):
        prepare(wanted(tmp_path / "out", plan_only=True), opened)


def test_overwrite_removes_the_plan_of_an_earlier_run(tmp_path, wanted, opened, undisturbed):
    prepare(wanted(tmp_path / "out", LATE, plan_only=True), opened)
    prepare(wanted(tmp_path / "out", overwrite=True), opened)
    assert content(tmp_path / "out") == content(undisturbed[REPLAY])


def test_a_saved_plan_without_its_record_is_made_anew(tmp_path, wanted, opened, undisturbed, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "build_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(wanted(output), opened)
    shutil.rmtree(output / "cache" / "plan")
    prepare(wanted(output), opened)
    assert content(output) == content(undisturbed[REPLAY])
    assert part_planning.PLAN_PNG == "mixture_plan.png"


# ------------------------------------------------------------------------------------ command line


def test_everything_that_is_wrong_with_a_command_is_said_at_once(mixture_file, capsys):
    path = mixture_file("categories: {a: {share: 25}, b: {shaer: 3%}}")
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(
            "sft", [f"--mixture={path}", "--total_tokens=8,5B", "--max_repeats=0.5", "--plan_only", "--overwrite"]
        )
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    for part in (
        "'25' is more than all tokens: write 25%",
        "did you mean 'share'?",
        "'8,5B' is not a number of tokens",
        "0.5 is less than 1",
        "--overwrite does not go with --plan_only",
        "--data_input_dirs is missing",
    ):
        assert part in said
    command = ["--data_input_dirs=.", "--total_tokens=8.5B", "--max_repeats=2", "--plan_only", "--inspect=3"]
    with pytest.raises(SystemExit):
        parse_arguments("pretrain", command)
    said = capsys.readouterr().err
    for name in ("total_tokens", "max_repeats"):
        assert f"--{name} has no effect without --mixture" in said
    assert "--inspect does not go with --plan_only" in said
