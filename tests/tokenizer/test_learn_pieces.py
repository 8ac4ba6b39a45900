"""learn_pieces.py as a user runs it."""

import json

import pytest
import regex
from transformers import AutoTokenizer

from colossal_llama.tokenizer.learning.vocabulary_size_curve import CurvePoint, choose_size, curve_table
from tests.support.tokenizer_scripts import read_jsonl, run_tokenizer_script

FAMILIES = ["llama2", "llama3-base"]


@pytest.fixture(scope="module", params=FAMILIES)
def learned(request, project_root, any_data, corpus_directory, tmp_path_factory):
    """learn_pieces.py on the corpus: (source directory, output directory, printed text)."""
    work = tmp_path_factory.mktemp("learned")
    (work / "blocked.txt").write_text("可以\n\n", "utf-8")
    source = any_data / "tokenizers" / request.param
    options = ["--source_tokenizer_dir", source, "--data_input_dirs", corpus_directory, "--output_dir", work / "out"]
    options += ["--scripts", "Han", "--max_pieces", 1500, "--min_frequency", 5, "--max_piece_length", 4]
    run = run_tokenizer_script(project_root, "learn_pieces.py", *options, "--blocklist_file", work / "blocked.txt")
    assert run.returncode == 0, run.stderr
    return source, work / "out", run.stdout


def test_learned_pieces_keep_the_limits_and_the_source_lacks_them(learned, corpus_directory):
    source, output, _ = learned
    pieces = [record["piece"] for record in read_jsonl(output / "pieces.jsonl")]
    assert len(pieces) == len(set(pieces)) > 300
    assert all(regex.fullmatch(r"[\p{Han}\p{M}]{1,4}", piece) for piece in pieces)
    assert not any("可以" in piece for piece in pieces)
    text = "\n".join(
        "\n".join(message["content"] for message in record["messages"])
        if "messages" in record
        else record["source"] + record["target"]
        for path in corpus_directory.rglob("*.jsonl")
        for record in read_jsonl(path)
    )
    assert all(text.count(piece) >= 5 for piece in pieces)
    tokenizer = AutoTokenizer.from_pretrained(source)
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    for piece in pieces:
        assert len(tokenizer("a" + piece, add_special_tokens=False)["input_ids"]) > len(before) + 1


def test_learned_pieces_need_few_intermediates_and_shorten_the_text_as_the_curve_says(learned, project_root, tmp_path):
    source, output, printed = learned
    report = json.loads((output / "learning_report.json").read_text("utf-8"))
    options = ["--source_tokenizer_dir", source, "--target_tokenizer_dir", tmp_path / "new"]
    run = run_tokenizer_script(
        project_root, "init_tokenizer.py", *options, "--expand_tokens_file", output / "pieces.jsonl"
    )
    assert run.returncode == 0, run.stderr
    expansion = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    assert expansion["unreachable"] == expansion["impossible"] == expansion["already_known"] == 0
    assert expansion["new"] == report["chosen"]["pieces"]
    assert expansion["bridges"] == report["chosen"]["rows"] - report["chosen"]["pieces"]
    if "llama2" in str(source):  # each piece is a merge of two that are there (LLaMA-3's may be parts of characters)
        assert expansion["bridges"] == 0
    tokens = [point["tokens"] for point in report["curve"]]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] < 0.95 * tokens[0]
    assert report["chosen"] in report["curve"]
    assert f"{report['chosen']['pieces']:,}" in printed
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_choice_follows_the_arguments(project_root, made_data, tmp_path):
    options = ["--source_tokenizer_dir", made_data / "tokenizers" / "llama2"]
    options += ["--data_input_dirs", made_data / "sft" / "kdconv"]
    options += ["--scripts", "Han", "--max_pieces", 200, "--num_pieces", 123, "--output_dir", tmp_path / "out"]
    run = run_tokenizer_script(project_root, "learn_pieces.py", *options, "--min_frequency", 2)
    assert run.returncode == 0, run.stderr
    assert len(read_jsonl(tmp_path / "out" / "pieces.jsonl")) == 123
    report = json.loads((tmp_path / "out" / "learning_report.json").read_text("utf-8"))
    points = [CurvePoint(**point) for point in report["curve"]]
    for least in (0.1, 1.0, 5.0, 20.0):
        kept = points.index(choose_size(points, None, least))
        assert all(point.saving_percent_per_1000_rows >= least for point in points[2 : kept + 1])
        assert kept + 1 == len(points) or points[kept + 1].saving_percent_per_1000_rows < least


def test_the_table_says_what_was_measured_and_extrapolates_nothing():
    points = [CurvePoint(0, 0, 1000, 0.5, 0.0), CurvePoint(4, 5, 442, 0.2, 11160.0), CurvePoint(9, 2005, 400, 0.2, 4.8)]
    lines = curve_table(points, points[1]).splitlines()
    assert "55.80 %" in lines[2]
    assert "55.800 % by 5 rows" in lines[2]
    assert lines[2].endswith("<- chosen")
    assert "9.502 % by 2,000 rows" in lines[3]


def test_bad_arguments_and_bad_records_are_one_message(project_root, made_data, tmp_path):
    source = made_data / "tokenizers" / "llama2"
    blocklist = tmp_path / "blocked.txt"
    blocklist.write_bytes(b"a\xff\n")
    run = run_tokenizer_script(
        project_root, "learn_pieces.py", "--source_tokenizer_dir", tmp_path / "absent",
        "--data_input_dirs", tmp_path / "none", "--output_dir", tmp_path, "--scripts", "Klingon",
        "--blocklist_file", blocklist,
        "--max_pieces", 5, "--num_pieces", 6,
    )  # fmt: skip
    assert run.returncode == 2
    for complaint in (
        "absent does not exist",
        "none does not exist",
        "exists already",
        "Klingon",
        "blocked.txt is not UTF-8 (byte 1",
        "--num_pieces 6 is more",
    ):
        assert complaint in run.stderr
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text('{"text": "fine"}\n{"source": "", "target": null}\n')
    run = run_tokenizer_script(project_root, "report.py", "--tokenizers", source, "--data_input_dirs", tmp_path / "bad")
    assert run.returncode == 2
    assert "x.jsonl:2" in run.stderr
    run = run_tokenizer_script(
        project_root, "learn_pieces.py", "--source_tokenizer_dir", source,
        "--data_input_dirs", made_data / "pretrain" / "en_docs",
        "--output_dir", tmp_path / "out", "--scripts", "Hebrew",
    )  # fmt: skip
    assert run.returncode == 2
    assert "no piece was learned" in run.stderr
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in run.stderr
