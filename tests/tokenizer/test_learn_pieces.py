"""learn_pieces.py and report.py as a user runs them."""

import codecs
import gzip
import json
import random
import subprocess
import sys
from collections import Counter

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from colossal_llama.tokenizer.compression import DocumentCounter
from colossal_llama.tokenizer.corpus import find_files, read_texts, split_into_blocks
from colossal_llama.tokenizer.learning import training_corpus
from colossal_llama.tokenizer.learning.bpe_continuation import word_pattern
from colossal_llama.tokenizer.learning.vocabulary_size_curve import CurvePoint, choose_size
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

FAMILIES = ["llama2", "llama3-base"]


def run_script(root, name, *arguments):
    command = [sys.executable, f"colossal_llama/tokenizer/{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus(shared_data, tmp_path_factory):
    """About 1.5 MB of the real corpus: Chinese and English documents, conversations, a file."""
    directory = tmp_path_factory.mktemp("corpus")
    for name, number in (("pretrain/zh_docs", 120), ("pretrain/zh_articles", 60), ("pretrain/en_docs", 4)):
        lines = sorted((shared_data / name).glob("*.jsonl"))[0].read_text("utf-8").splitlines()[:number]
        (directory / name.split("/")[1]).mkdir()
        (directory / name.split("/")[1] / "part.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (directory / "talk").mkdir()
    lines = next((shared_data / "sft" / "kdconv").glob("*.jsonl")).read_text("utf-8").splitlines()[:50]
    (directory / "talk" / "talk.jsonl").write_text("\n".join(lines), "utf-8")
    (directory / "notes").mkdir()
    (directory / "notes" / "a.txt").write_text("螃蟹 and a 𝔊lyph\n" * 3, "utf-8")
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def learned(request, project_root, shared_data, corpus, tmp_path_factory):
    """learn_pieces.py on the corpus: (source directory, output directory, printed text)."""
    work = tmp_path_factory.mktemp("learned")
    (work / "blocked.txt").write_text("可以\n\n", "utf-8")
    source = shared_data / "tokenizers" / request.param
    options = ["--source_tokenizer_dir", source, "--data_input_dirs", corpus, "--output_dir", work / "out"]
    options += ["--scripts", "Han", "--max_pieces", 1500, "--min_frequency", 5, "--max_piece_length", 4]
    run = run_script(project_root, "learn_pieces.py", *options, "--blocklist_file", work / "blocked.txt")
    assert run.returncode == 0, run.stderr
    return source, work / "out", run.stdout


def test_learned_pieces_keep_the_limits_and_the_source_lacks_them(learned, corpus):
    source, output, _ = learned
    pieces = [record["piece"] for record in read_jsonl(output / "pieces.jsonl")]
    assert len(pieces) == len(set(pieces)) > 300
    assert all(regex.fullmatch(r"[\p{Han}\p{M}]{1,4}", piece) for piece in pieces)
    assert not any("可以" in piece for piece in pieces)
    text = "\n".join(
        "\n".join(message["content"] for message in record["messages"])
        if "messages" in record
        else record["source"] + record["target"]
        for path in corpus.rglob("*.jsonl")
        for record in read_jsonl(path)
    )
    assert all(text.count(piece) >= 5 for piece in pieces)
    tokenizer = AutoTokenizer.from_pretrained(source)
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    for piece in pieces:
        assert len(tokenizer("a" + piece, add_special_tokens=False)["input_ids"]) > len(before) + 1


def test_learned_pieces_need_few_bridges_and_shorten_the_text_as_the_curve_says(learned, project_root, tmp_path):
    source, output, printed = learned
    report = json.loads((output / "learning_report.json").read_text("utf-8"))
    options = ["--source_tokenizer_dir", source, "--target_tokenizer_dir", tmp_path / "new"]
    run = run_script(project_root, "init_tokenizer.py", *options, "--expand_tokens_file", output / "pieces.jsonl")
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


def test_the_choice_follows_the_arguments(project_root, shared_data, corpus, tmp_path):
    options = ["--source_tokenizer_dir", shared_data / "tokenizers" / "llama2", "--data_input_dirs", corpus / "talk"]
    options += ["--scripts", "Han", "--max_pieces", 200, "--num_pieces", 123, "--output_dir", tmp_path / "out"]
    run = run_script(project_root, "learn_pieces.py", *options, "--min_frequency", 2)
    assert run.returncode == 0, run.stderr
    assert len(read_jsonl(tmp_path / "out" / "pieces.jsonl")) == 123
    report = json.loads((tmp_path / "out" / "learning_report.json").read_text("utf-8"))
    points = [CurvePoint(**point) for point in report["curve"]]
    for least in (0.1, 1.0, 5.0, 20.0):
        kept = points.index(choose_size(points, None, least))
        assert all(point.saving_percent_per_1000_rows >= least for point in points[2 : kept + 1])
        assert kept + 1 == len(points) or points[kept + 1].saving_percent_per_1000_rows < least


DOCUMENTS = {
    "one short": [3_000],
    "one": [100_000],
    "five short": [500] * 5,
    "many": [900] * 200,
    "many short, one long": [100] * 300 + [200_000],
    "two, more than is held out at most": [600_000] * 2,
}


@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_twentieth_of_the_text_is_held_out_however_few_the_documents(lengths, tmp_path, monkeypatch):
    monkeypatch.setattr(training_corpus, "HELD_OUT_BYTES", 40_000)
    line = "一二三四 five six\n"
    texts = [(line * (length // len(line) + 1))[:length] for length in lengths]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    corpus = read(tmp_path)
    expected = sum(lengths) * min(1 / 20, 40_000 / file.stat().st_size)
    assert 0.5 * expected <= sum(map(len, corpus.held_out)) <= 2 * expected
    assert corpus.documents == len(lengths)
    learned = "".join(texts).count("四") - "".join(corpus.held_out).count("四")
    assert sum(count for word, count in corpus.words.items() if "四" in word) == learned


def read(directory, sample_mb=500.0, seed=0) -> training_corpus.TrainingCorpus:
    return training_corpus.read_training_corpus([directory], sample_mb, seed, ["Han"])


def test_a_small_sample_has_the_requested_size_also_of_few_and_huge_records(tmp_path):
    """And taken by the seed, from the beginning and the end of long records alike."""
    halves = ["一二三四。\n", "五六七八。\n"]
    texts = ["".join(half * 20_000 for half in halves)] * 2 + [half * 3 for half in halves] * 500
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    sample_mb = 0.02 * sum(len(line.encode()) for line in lines) / 1e6
    counts = []
    for seed in (0, 0, 1, 2, 3):
        corpus = read(tmp_path, sample_mb, seed)
        assert corpus.characters == pytest.approx(0.02 * sum(map(len, texts)), rel=0.25)
        assert len("".join(corpus.held_out)) == pytest.approx(corpus.characters / 20, rel=0.5)
        # Of the 500 short ones a fiftieth, and both long ones, however many blocks.
        assert 2 <= corpus.documents <= 2 + 40
        counts.append([sum(count for word, count in corpus.words.items() if half[0] in word) for half in halves])
    assert counts[0] == counts[1] != counts[2]
    first, second = (sum(found) for found in zip(*counts[1:], strict=True))
    assert first == pytest.approx(second, rel=0.2)


def test_a_sample_of_compressed_texts_has_the_requested_size(tmp_path):
    """Of their content, not of their bytes on the disk, which are a sixth of it here."""
    numbers = random.Random(0)
    texts = ["".join(numbers.choices("一二三四五六。", k=2_000)) for _ in range(3_000)]
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, compresslevel=6))
    assert read(tmp_path, sample_mb=2.0).characters == pytest.approx(2e6 / 3, rel=0.15)


def test_a_byte_order_mark_is_no_text_and_files_of_other_kinds_are_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.parquet").touch()
    files = find_files([tmp_path])
    assert [text.text for text in read_texts(files)] == ["one", "two"]
    message = f"left out: 1 files of formats that only preparation reads, the first of them {tmp_path / 'b.parquet'}"
    assert message in capsys.readouterr().out


def test_a_damaged_file_is_named(tmp_path):
    content = gzip.compress(b'{"text": "one two three"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is damaged"):
        read(tmp_path)


def test_nothing_to_hold_out_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("一二三四\n" * 20)
    with pytest.raises(UserError, match="nothing can be held out"):
        read(tmp_path)


@given(st.text("ab \n"), st.integers(1, 9))
def test_blocks_are_the_text(text, length):
    blocks = list(split_into_blocks(text, length))
    assert "".join(blocks) == text
    assert all(len(block) <= length for block in blocks)
    assert all(block[-1] in " \n" or not set(block) & set(" \n") for block in blocks[:-1])


def test_the_report_counts_what_there_is(project_root, shared_data, corpus, tmp_path):
    directories = {name: shared_data / "tokenizers" / name for name in FAMILIES}
    named = [f"{name}={directory}" for name, directory in directories.items()]
    options = ["--data_input_dirs", f"{corpus},{corpus / 'talk'}", "--output_file", tmp_path / "report.json"]
    run = run_script(project_root, "report.py", "--tokenizers", *named, *options)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    texts = {"notes": [(corpus / "notes" / "a.txt").read_text("utf-8")]}
    for path in corpus.rglob("*.jsonl"):
        for record in read_jsonl(path):
            text = (
                "\n".join(message["content"] for message in record["messages"])
                if "messages" in record
                else record["source"] + record["target"]
            )
            texts.setdefault(record.get("category") or path.parent.name, []).append(text)
    for name, directory in directories.items():
        tokenizer = AutoTokenizer.from_pretrained(directory)
        figures = report["tokenizers"][name]
        assert figures["vocab_size"] == len(tokenizer)
        assert set(figures["categories"]) == set(texts)
        for category, documents in texts.items():
            found = figures["categories"][category]
            encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
            assert found["documents"] == len(documents)
            assert found["characters"] == sum(map(len, documents))
            assert found["tokens"] == sum(map(len, encoded))
            decoded = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in encoded]
            assert found["round_trip_failures"] == sum(
                back != text for back, text in zip(decoded, documents, strict=True)
            )
        total = figures["total"]
        assert total["tokens"] == sum(one["tokens"] for one in figures["categories"].values())
        assert f"{total['tokens']:,}" in run.stdout
        assert total["tokens_per_character"] == pytest.approx(total["tokens"] / total["characters"])
    vocabulary = AutoTokenizer.from_pretrained(directories["llama2"]).get_vocab()
    for category, documents in texts.items():  # LLaMA-2 cuts exactly the characters it lacks; a line break is one byte
        characters = Counter("".join(documents))
        lacking = sum(n for c, n in characters.items() if c not in vocabulary and ord(c) >= 128)
        assert report["tokenizers"]["llama2"]["categories"][category]["characters_in_bytes"] == lacking
    notes = report["tokenizers"]["llama3-base"]["categories"]["notes"]
    assert notes["characters_in_bytes"] == 3 * len("螃蟹𝔊")


def test_bad_arguments_and_bad_records_are_one_message(project_root, shared_data, corpus, tmp_path):
    source = shared_data / "tokenizers" / "llama2"
    run = run_script(
        project_root, "learn_pieces.py", "--source_tokenizer_dir", tmp_path / "absent",
        "--data_input_dirs", tmp_path / "none", "--output_dir", tmp_path, "--scripts", "Klingon",
        "--max_pieces", 5, "--num_pieces", 6,
    )  # fmt: skip
    assert run.returncode == 2
    for complaint in (
        "absent does not exist",
        "none does not exist",
        "exists already",
        "Klingon",
        "--num_pieces 6 is more",
    ):
        assert complaint in run.stderr
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text('{"text": "fine"}\n{"source": "", "target": null}\n')
    run = run_script(project_root, "report.py", "--tokenizers", source, "--data_input_dirs", tmp_path / "bad")
    assert run.returncode == 2
    assert "x.jsonl:2" in run.stderr
    run = run_script(
        project_root, "learn_pieces.py", "--source_tokenizer_dir", source, "--data_input_dirs", corpus / "en_docs",
        "--output_dir", tmp_path / "out", "--scripts", "Hebrew",
    )  # fmt: skip
    assert run.returncode == 2
    assert "no piece was learned" in run.stderr
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        (["Han"], ["学习"]),
        (["han"], ["学习"]),
        (["Hani"], ["学习"]),
        (["Latin"], [" or"]),
        (["Han", "Latin"], [" 学习", " or"]),
    ],
)
def test_words_take_a_space_along_where_their_script_is_written_with_spaces(scripts, words):
    assert word_pattern(scripts).findall(" 学习 or") == words


def test_an_added_token_counts_with_its_bytes(shared_data):
    """If one that is not ASCII counted in characters, what follows would be taken for its bytes."""
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "llama3-base")
    tokenizer.add_tokens(["工具"])
    texts = ("你好", "😀龘", "你好工具😀龘")
    before, after, whole = (counts.characters_in_bytes for counts in DocumentCounter(tokenizer).count(texts))
    assert (before, after) == (0, 2)
    assert whole == before + after
