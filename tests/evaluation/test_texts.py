"""`evaluate.py --texts` as users run it: categories, tables, refusals, a run that was ended."""

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.evaluation.text_tables import Estimate, changed_most, make_rows, ratio
from tests.support.forked import run_forked
from tests.support.ranks import run_ranks

SCRIPT = "evaluate.py"
TEXTS = {
    "en": [f"Number {number}. " * (number % 7 + 1) for number in range(30)],
    "zh": ["学而时习之", "不亦说乎 " * 90],
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Two categories: records with faults among them, and a text that is longer than a window."""
    directory = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"body": text, "lang": "en"}) for text in TEXTS["en"]]
    (directory / "a.jsonl").write_text("\n".join([*lines, "{broken", '{"body": "", "lang": "en"}']), "utf-8")
    with gzip.open(directory / "b.csv.gz", "wt", encoding="utf-8") as file:
        file.write("body,lang\n" + "".join(f"{text},zh\n" for text in TEXTS["zh"]))
    return directory


@pytest.fixture(scope="module")
def models(random_model_directory, tmp_path_factory) -> list[Path]:
    tuned = tmp_path_factory.mktemp("models") / "tuned"
    shutil.copytree(random_model_directory, tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.9)
    model.save_pretrained(tuned)
    return [tuned, random_model_directory]


def command_of(models, texts, out, *more: object) -> list[str]:
    words = ["--model_path", models[0], "--output_dir", out, "--max_length", 200, "--device", "cpu"]
    fields = ["--text_field", "body", "--category_field", "lang"]
    return [str(word) for word in (*words, "--texts", texts, *fields, *more)]


def lines_of(out: Path, model: str) -> list[dict]:
    return [json.loads(line) for line in (out / model / "texts.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def measured(project_root, models, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "out"
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, out, "--compare", models[1]))
    assert done.returncode == 0, done.stderr
    return out, done


def test_every_document_has_a_line_and_faults_are_named(measured, texts):
    out, done = measured
    for model in ("tuned", "random"):
        lines = lines_of(out, model)
        assert [line["category"] for line in lines] == ["en"] * 30 + ["zh"] * 2
        assert [line["bytes"] for line in lines] == [len(text.encode()) for text in TEXTS["en"] + TEXTS["zh"]]
        assert [line["number"] for line in lines[:30]] == list(range(1, 31))
        assert all(line["tokens"] > 0 and line["bits"] > 0 and line["is_lossless"] for line in lines)
    assert "a.jsonl:31: not valid JSON" in done.stdout
    assert "a.jsonl:32: the text is empty" in done.stdout
    problems = json.loads((out / "texts.json").read_text("utf-8"))["problems"]
    assert len(problems) == 2
    assert not list(out.rglob("*partial*"))


def test_tables_are_sums_of_the_lines(measured):
    out, done = measured
    content = json.loads((out / "texts.json").read_text("utf-8"))
    new, old = lines_of(out, "tuned"), lines_of(out, "random")
    size = sum(line["bytes"] for line in new)
    total = content["total"]
    bits = sum(line["bits"] for line in new)
    assert total["models"]["tuned"]["bits_per_byte"]["value"] == pytest.approx(bits / size)
    tokens = sum(line["tokens"] for line in new)
    assert total["models"]["tuned"]["perplexity_per_token"] == pytest.approx(2 ** (bits / tokens))
    difference = (bits - sum(line["bits"] for line in old)) / size
    assert total["differences"]["random"]["value"] == pytest.approx(difference)
    assert [category["name"] for category in content["categories"]] == ["en", "zh"]
    table = (out / "texts.md").read_text("utf-8")
    assert f"{difference:+.4f} ± " in table
    assert f"{difference:+.4f} ± " in done.stdout
    assert content["changed_most"]["random"]["rose"] or content["changed_most"]["random"]["fell"]
    assert (out / "texts.png").read_bytes().startswith(b"\x89PNG")


def test_the_standard_error_is_that_of_a_ratio():
    assert ratio([3.0], [2]) == Estimate(1.5, None)
    equal_sizes = ratio([1.0, 2.0, 6.0], [1, 1, 1])
    assert equal_sizes.value == pytest.approx(3)
    assert equal_sizes.standard_error == pytest.approx(math.sqrt(7 / 3))  # of a mean
    assert ratio([2.0, 4.0, 6.0], [1, 2, 3]).standard_error == pytest.approx(0)


def test_documents_that_changed_most_are_listed_in_both_directions():
    document = {"file": "f", "category": "c", "bytes": 10, "beginning": ""}
    before = [{**document, "number": number, "bits": 20.0} for number in range(50)]
    after = [{**line, "bits": 20.0 + line["number"] - 25} for line in before]
    found = changed_most(after, before)
    assert [change["number"] for change in found["rose"]] == list(range(49, 39, -1))
    assert [change["number"] for change in found["fell"]] == list(range(10))
    assert found["rose"][0]["difference"] == pytest.approx(2.4)


def test_figures_of_hardly_any_words_are_left_out():
    """2 to the power of bits per word is beyond any number."""
    line = {"category": "c", "bytes": 9000, "words": 1, "tokens": 2000, "bits": 5000.0, "is_lossless": False}
    rows, _ = make_rows({"m": [{**line, "unknown_tokens": 3}]})
    assert rows[0].models["m"].perplexity_per_word is None
    assert rows[0].models["m"].lossy_documents == 1
    assert rows[0].models["m"].perplexity_per_token == pytest.approx(2**2.5)


def test_a_limit_chooses_the_same_documents_and_keeps_what_is_measured(project_root, models, texts, measured, tmp_path):
    out = tmp_path / "out"
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, out, "--text_limit", 5))
    assert done.returncode == 0, done.stderr
    few = lines_of(out, "tuned")
    assert [line["category"] for line in few] == ["en"] * 5 + ["zh"] * 2
    assert "25 more documents are left out by --text_limit" in done.stdout
    results = out / "tuned" / "texts.jsonl"  # a result that shows whether it was computed again
    results.write_text("".join(json.dumps({**line, "bits": 1.0}) + "\n" for line in few), "utf-8")
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, out, "--text_limit", 9))
    assert done.returncode == 0, done.stderr
    more = {line["text_hash"]: line["bits"] for line in lines_of(out, "tuned")}
    assert len(more) == 11
    whole = {line["text_hash"]: line["bits"] for line in lines_of(measured[0], "tuned")}
    kept = {line["text_hash"] for line in few}
    assert all(bits == (1.0 if key in kept else pytest.approx(whole[key], rel=1e-5)) for key, bits in more.items())


def test_a_run_that_was_ended_goes_on(project_root, models, texts, measured, tmp_path):
    """Partial results of any number of processes count, a line that was cut off does not."""
    out = tmp_path / "out"
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, out))
    assert done.returncode == 0, done.stderr
    results = out / "tuned" / "texts.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"bits": 1.0}
    (out / "tuned" / "texts.partial-0.jsonl").write_bytes(json.dumps(marked).encode() + b"\n" + lines[1][:40])
    (out / "tuned" / "texts.partial-7.jsonl").write_bytes(b"".join(lines[20:]))
    results.unlink()
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, out))
    assert done.returncode == 0, done.stderr
    first, *others = lines_of(out, "tuned")
    assert first["bits"] == 1.0
    whole = lines_of(measured[0], "tuned")
    assert [line["bits"] for line in others] == pytest.approx([line["bits"] for line in whole[1:]], rel=1e-5)
    assert not list(out.rglob("*partial*"))


def test_results_in_a_directory_of_texts_are_no_texts(project_root, models, texts, tmp_path):
    shutil.copytree(texts, tmp_path / "texts")
    for _ in range(2):
        done = run_forked(project_root, SCRIPT, *command_of(models, tmp_path / "texts", tmp_path / "texts" / "out"))
        assert done.returncode == 0, done.stderr
        assert len(lines_of(tmp_path / "texts" / "out", "tuned")) == 32
        assert len(json.loads((tmp_path / "texts" / "out" / "texts.json").read_text("utf-8"))["problems"]) == 2


def test_results_of_other_settings_are_refused(project_root, models, texts, measured):
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, measured[0], "--stride", 50))
    assert done.returncode == 2
    assert "stride was 100, now 50" in done.stderr
    assert "Traceback" not in done.stderr


def test_windows_with_more_stride_than_length_are_refused(project_root, models, texts, tmp_path):
    done = run_forked(project_root, SCRIPT, *command_of(models, texts, tmp_path / "out", "--stride", 201))
    assert done.returncode == 2
    assert "--stride 201 is more than --max_length 200" in done.stderr


@pytest.mark.distributed
def test_processes_share_the_documents(project_root, models, texts, measured, tmp_path):
    out = tmp_path / "out"
    done = run_ranks(SCRIPT, command_of(models, texts, out), 2, project_root)
    assert done.returncode == 0, done.stdout
    whole = lines_of(measured[0], "tuned")
    shared = lines_of(out, "tuned")
    assert [line["text_hash"] for line in shared] == [line["text_hash"] for line in whole]
    assert [line["bits"] for line in shared] == pytest.approx([line["bits"] for line in whole], rel=1e-5)
