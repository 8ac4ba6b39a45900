"""learn_pieces.py as a user runs it."""

import json
import random

import pytest
import regex
from transformers import AutoTokenizer

from colossal_llama.tokenizer.learning.vocabulary_size_curve import CurvePoint, choose_size, curve_table
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.support.tokenizer_scripts import expand, read_jsonl, run_tokenizer_script

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
    sizes = [choose_size(points, None, least).pieces for least in (0.1, 1.0, 5.0, 20.0, 1e9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == points[1].pieces


def points_of(*steps):
    """A curve of (rows, held-out saving, its error, expected saving) of each step, in percent."""
    points, rows = [CurvePoint(0, 0, 1000, 0.5)], 0
    for step_rows, saved, error, expected in steps:
        rows += step_rows
        tokens = round(points[-1].tokens * (1 - saved / 100))
        point = CurvePoint(rows, rows, tokens, tokens / 2000, 100 - tokens / 10, saved, error, expected)
        points.append(point)
    return points


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [
        # A large held-out text: the last step whose 1,000 rows save 0.2 %, whatever is expected.
        ([(1000, 20, 0.1, 20), (1000, 5, 0.1, 5), (1000, 0.1, 0.01, 3), (1000, 0.05, 0.01, 2)], 2),
        ([(1000, 20, 0.1, 20), (1000, 5, 0.1, 0.1), (1000, 0.5, 0.1, 0.1)], 3),
        # One poor step before good ones ends nothing.
        ([(1000, 20, 0.1, 20), (1000, 0.15, 0.01, 0.1), (1000, 2, 0.1, 2)], 3),
        # A small held-out text, in which some pieces happen not to occur.
        ([(4, 3, 1.5, 4), (4, 0, 1.0, 2), (8, 1, 1.2, 2), (8, 0, 1.0, 1), (8, 0, 1.0, 1)], 5),
        # Nor does it justify what the text learned from has not.
        ([(4, 3, 1.5, 4), (4000, 1, 1.2, 0), (4000, 1, 1.2, 0)], 1),
        ([(4, 0, 1.5, 0)], 1),
    ],
)
def test_the_size_is_robust_against_noise(steps, chosen):
    points = points_of(*steps)
    assert choose_size(points, None, 0.2) == points[chosen]


def test_a_number_between_two_points_is_interpolated():
    points = points_of((10, 20, 0.5, 20), (10, 10, 0.5, 10))
    point = choose_size(points, 15, 0.2)
    assert (point.pieces, point.rows, point.tokens) == (15, 15, 760)
    assert point.step_saved_percent == 5
    assert choose_size(points, 999, 0.2) == points[-1]


def test_the_table_says_what_was_measured_and_extrapolates_nothing():
    points = [CurvePoint(0, 0, 1000, 0.5), CurvePoint(4, 5, 442, 0.2, 55.8, 55.8, 3.2, 50.0)]
    points.append(CurvePoint(9, 2005, 400, 0.2, 60.0, 9.502, 1.0, 8.0))
    lines = curve_table(points, points[1]).splitlines()
    assert "55.80 %" in lines[2]
    assert "55.800 % by 5 rows" in lines[2]
    assert "± 3.200" in lines[2]
    assert lines[2].endswith("<- chosen")
    assert "9.502 % by 2,000 rows" in lines[3]


HINDI = {
    "subjects": ["लड़का", "लड़की", "अध्यापक", "किसान", "डॉक्टर", "पड़ोसी", "विद्यार्थी", "माताजी"],
    "objects": ["किताब", "पत्रिका", "चिट्ठी", "मिठाई", "तस्वीर", "साइकिल", "हिन्दी कविता", "पुरानी घड़ी"],
    "ends": ["देखता है।", "पढ़ती थी।", "ख़रीदेगा।", "भूल गया।", "ढूँढ रही है।", "बेच देगी।"],
}
THAI = {
    "subjects": ["เด็กผู้ชาย", "คุณครู", "ชาวนา", "พี่สาว", "เพื่อนบ้าน", "นักเรียน"],
    "objects": ["หนังสือพิมพ์", "ข้าวเหนียว", "จักรยาน", "ผลไม้", "จดหมาย", "น้ำแข็ง"],
    "ends": ["ที่ตลาด", "อยู่ในบ้าน", "ทุกวันจันทร์", "กับเพื่อน", "ไม่ได้เลย"],
}


def sentences(words, kilobytes, seed=0):
    """Made-up text of a few words in new combinations."""
    generator, text = random.Random(seed), ""
    while len(text.encode()) < 1000 * kilobytes:
        parts = [generator.choice(words[part]) for part in ("subjects", "objects", "ends")]
        text += (" " if words is HINDI else "").join(parts) + generator.choice([" ", "\n"])
    return text


def learned_and_added(project_root, source, text, work, *options, extend=None):
    """Both scripts on a text: (their results, tokens before, tokens after)."""
    (work / "in").mkdir(parents=True)
    (work / "in" / "a.txt").write_text(text, "utf-8")
    extension = ["--extend_pretokenizer", extend] if extend else []
    paths = ["--source_tokenizer_dir", source, "--data_input_dirs", work / "in", "--output_dir", work / "pieces"]
    learned = run_tokenizer_script(project_root, "learn_pieces.py", *paths, *options, *extension)
    assert learned.returncode == 0, learned.stderr
    added = expand(project_root, source, work / "new", work / "pieces" / "pieces.jsonl", *extension)
    assert added.returncode == 0, added.stderr
    pieces = [record["piece"] for record in read_jsonl(work / "pieces" / "pieces.jsonl")]
    report = json.loads((work / "new" / "expansion_report.json").read_text("utf-8"))
    assert report["new"] == len(pieces)
    assert report["impossible"] == report["unreachable"] == report["already_known"] == 0
    unseen = sentences(HINDI if "hi" in options else THAI, 5, seed=1)
    tokens = [len(load_tokenizer(path).encode(unseen, add_special_tokens=False)) for path in (source, work / "new")]
    return learned, pieces, *tokens


@pytest.mark.parametrize("family", ["llama2", "llama3-base"])
@pytest.mark.parametrize(("language", "words", "script"), [("hi", HINDI, "Devanagari"), ("th", THAI, "Thai")])
def test_a_small_text_of_a_language_saves_tokens(project_root, made_data, tmp_path, family, language, words, script):
    source = made_data / "tokenizers" / family
    extend = script if family == "llama3-base" else None
    text = sentences(words, 11)
    learned, pieces, before, after = learned_and_added(
        project_root, source, text, tmp_path, "--language", language, extend=extend
    )
    assert after < 0.4 * before
    assert len(pieces) > 30
    assert not any(regex.match(r"\p{M}+\P{M}", piece) for piece in pieces)
    assert any(len(regex.findall(r"\X", piece)) < len(piece) for piece in pieces)
    assert "combining marks" not in learned.stdout
    report = json.loads((tmp_path / "pieces" / "learning_report.json").read_text("utf-8"))
    assert report["arguments"]["language"] == [script]
    assert all(abs(point[name]) <= 100 for point in report["curve"] for name in point if name.endswith("_percent"))


def test_without_extension_the_remedy_is_named(project_root, made_data, tmp_path):
    source, text = made_data / "tokenizers" / "llama3-base", sentences(HINDI, 11)
    learned, _, before, after = learned_and_added(project_root, source, text, tmp_path, "--language", "hi")
    assert "at combining marks" in learned.stdout
    assert "--extend_pretokenizer Devanagari, here and for init_tokenizer.py" in learned.stdout
    assert after < before
    (tmp_path / "pieces.jsonl").write_text('{"piece": "किताब"}\n{"piece": " हिन्दी"}\n')
    run = expand(project_root, source, tmp_path / "none", tmp_path / "pieces.jsonl")
    assert run.returncode == 2
    assert "none of the 2 requested pieces can be added: 2 split by the pre-tokenizer" in run.stderr
    assert "--extend_pretokenizer Devanagari" in run.stderr
    assert not (tmp_path / "none").exists()


def test_a_text_without_the_language_says_so(project_root, made_data, tmp_path):
    (tmp_path / "a.txt").write_text("Only English here.\n" * 200)
    paths = ["--data_input_dirs", tmp_path / "a.txt", "--output_dir", tmp_path / "out"]
    options = ["--source_tokenizer_dir", made_data / "tokenizers" / "llama2", *paths]
    run = run_tokenizer_script(project_root, "learn_pieces.py", *options, "--language", "ko")
    assert run.returncode == 2
    assert "no word of Hangul" in run.stderr
    for words in (["--scripts", "Devangari"], ["--language", "Hindhi"], ["--extend_pretokenizer", "Tahi"]):
        run = run_tokenizer_script(project_root, "learn_pieces.py", *options, *words)
        assert run.returncode == 2
        assert "did you mean" in run.stderr
    run = run_tokenizer_script(project_root, "learn_pieces.py", *options, "--language", "ko", "--scripts", "Han")
    assert "give one of them" in run.stderr


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
