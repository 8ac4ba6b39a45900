"""init_tokenizer.py as a user runs it, on a LLaMA-2 tokenizer and files of pieces: the real ones
where they are.
"""

import json
import os
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast

from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.transformers_version import is_transformers_5
from tests.support.tokenizer_scripts import expand, ids_of

HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)
ANY = st.characters(exclude_categories=["Cs"])


def write_pieces(path, pieces):
    path.write_text("".join(json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in pieces), "utf-8")
    return path


def differing(texts, ids, other_ids):
    """The texts whose ids differ, cut short: a diff of whole lists would take pytest minutes."""
    return [text[:100] for text, one, other in zip(texts, ids, other_ids, strict=True) if one != other][:5]


@pytest.fixture(scope="module")
def llama2(any_data):
    """The real LLaMA-2 tokenizer where it is, else the made one."""
    return any_data / "tokenizers" / "llama2"


def pieces_file(any_data, size):
    """The smaller or the larger file of pieces; its name says how many they are."""
    files = sorted(any_data.glob("pieces_zh_*.jsonl"), key=number_of_pieces)
    return {"smaller": files[0], "larger": files[-1]}[size]


def number_of_pieces(file):
    return int(file.stem.rsplit("_", 1)[1])


def pieces_of(file):
    return [json.loads(line)["piece"] for line in file.read_text("utf-8").splitlines()]


def made_by_expanding(project_root, source, pieces, target):
    """The source with the pieces of a file: its directory and the script's output."""
    run = expand(project_root, source, target, pieces, "--pad_to_multiple_of", "64")
    assert run.returncode == 0, run.stderr
    return target, run.stdout


@pytest.fixture(scope="module")
def pieces(any_data):
    return pieces_of(pieces_file(any_data, "smaller"))


@pytest.fixture(scope="module")
def expanded(project_root, any_data, llama2, tmp_path_factory):
    """LLaMA-2 with the smaller file's pieces: its directory and the script's output."""
    target = tmp_path_factory.mktemp("expanded") / "tokenizer"
    return made_by_expanding(project_root, llama2, pieces_file(any_data, "smaller"), target)


@pytest.fixture(scope="module")
def corpus(any_data):
    """Texts of each part of the corpus, about 1 MB; all with COLOSSAL_LLAMA_ALL_TEXTS."""
    every = bool(os.environ.get("COLOSSAL_LLAMA_ALL_TEXTS"))
    lines, characters = (slice(None), None) if every else (slice(0, 400, 16), 20_000)
    texts = []
    for path in sorted(any_data.glob("pretrain/*/*.jsonl")) + sorted(any_data.glob("sft/*/*.jsonl")):
        for line in path.read_text("utf-8").split("\n")[lines]:
            if not line:
                continue
            record = json.loads(line)
            texts += (
                [m["content"] for m in record["messages"]] if "messages" in record else [record["target"][:characters]]
            )
    return texts


def test_the_two_lines_of_the_contract_become_one_token_each(project_root, llama2, tmp_path):
    pieces = write_pieces(tmp_path / "pieces.jsonl", ["你好", "人工智能", "你好", "▁the"])
    run = expand(project_root, llama2, tmp_path / "new", pieces)
    assert run.returncode == 0, run.stderr
    source = LlamaTokenizer.from_pretrained(llama2)
    for tokenizer in (
        LlamaTokenizer.from_pretrained(tmp_path / "new"),
        AutoTokenizer.from_pretrained(tmp_path / "new"),
    ):
        hello, intelligence = len(source), len(source) + 1
        ids = tokenizer.encode("你好，人工智能", add_special_tokens=False)
        assert hello in ids
        assert ids[-1] == intelligence
        assert tokenizer.decode(ids) == "你好，人工智能"
        assert tokenizer.convert_ids_to_tokens(list(range(len(source)))) == source.convert_ids_to_tokens(
            list(range(len(source)))
        )
    report = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    counts = {name: report[name] for name in ("asked", "duplicate", "already_known", "new", "unreachable")}
    assert counts == {"asked": 4, "duplicate": 1, "already_known": 1, "new": 2, "unreachable": 0}
    assert report["vocab_size"] == len(source) + 2 + report["bridges"] == report["padded_vocab_size"]


@pytest.mark.parametrize("size", ["smaller", "larger"])
def test_no_piece_is_unreachable(size, request, project_root, any_data, llama2, tmp_path):
    """Looks for every id with transformers' two tokenizers, in other texts than the script's."""
    file = pieces_file(any_data, size)
    pieces = pieces_of(file)
    assert len(pieces) == number_of_pieces(file)
    if size == "smaller":
        target, output = request.getfixturevalue("expanded")
    else:
        target, output = made_by_expanding(project_root, llama2, file, tmp_path / "tokenizer")
    slow, fast = LlamaTokenizer.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    id_of = {piece: slow.convert_tokens_to_ids(piece) for piece in pieces}
    old_size = len(AutoTokenizer.from_pretrained(llama2))
    assert sorted(id_of.values()) == list(range(old_size, old_size + len(pieces)))
    for tokenizer in (slow, fast):
        unreachable = dict(id_of)
        for before, after in (("", ""), ("。", "。"), ("\n", "\n"), ("a", "a")):
            texts = [before + piece.replace("▁", " ") + after for piece in unreachable]
            found = ids_of(tokenizer, texts)
            unreachable = {p: i for (p, i), ids in zip(unreachable.items(), found, strict=True) if i not in ids}
        assert unreachable == {}
    report = json.loads((target / "expansion_report.json").read_text("utf-8"))
    assert report["unreachable"] == 0
    assert report["new"] == len(pieces)
    assert report["vocab_size"] == len(fast) == len(slow) == old_size + len(pieces) + report["bridges"]
    assert report["padded_vocab_size"] % 64 == 0
    assert 0 <= report["padded_vocab_size"] - report["vocab_size"] < 64
    assert f"{report['vocab_size']:,}" in output


class Sentencepiece:
    """sentencepiece itself, called as a tokenizer of transformers.

    A control token that is spelt out is text to it. The texts here hold none.
    """

    def __init__(self, model):
        self._processor = SentencePieceProcessor(str(model))

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": self._processor.encode(texts)}


@pytest.fixture(scope="module")
def implementations(expanded, tmp_path_factory):
    """The expanded tokenizer: slow, fast, converted from tokenizer.model, saved and reloaded.

    transformers 5 has one implementation, without a slow one. There it is compared with the slow
    one's heart, sentencepiece itself.
    """
    target, _ = expanded
    fast = AutoTokenizer.from_pretrained(target)
    again = tmp_path_factory.mktemp("again")
    fast.save_pretrained(again)
    model_alone = tmp_path_factory.mktemp("alone")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(target / name, model_alone / name)
    found = {
        "fast": fast,
        "ours": load_tokenizer(target),
        "ours of tokenizer.model": load_tokenizer(model_alone),
        "reloaded": AutoTokenizer.from_pretrained(again),
    }
    if is_transformers_5():
        return {**found, "sentencepiece": Sentencepiece(target / "tokenizer.model")}
    return found | {
        "slow": LlamaTokenizer.from_pretrained(target),
        "tokenizer.json": LlamaTokenizerFast(tokenizer_file=str(target / "tokenizer.json"), legacy=False),
        "converted": LlamaTokenizerFast(str(target / "tokenizer.model"), legacy=False, add_prefix_space=True),
        "slow, reloaded": LlamaTokenizer.from_pretrained(again),
    }


def test_slow_and_fast_agree_on_texts_and_decode_them(implementations, corpus):
    wanted = ids_of(implementations["fast"], corpus)
    for name, tokenizer in implementations.items():
        assert differing(corpus, ids_of(tokenizer, corpus), wanted) == [], name
    for text, ids in zip(corpus, wanted, strict=True):
        assert implementations["fast"].decode(ids) == text


def test_slow_and_fast_agree_on_random_unicode(implementations, pieces):
    parts = st.one_of(st.sampled_from(pieces), st.text(HAN, max_size=4), st.text(ANY, max_size=6))

    # Transformers' slow and fast LLaMA-2 tokenizers differ on a text that begins with a space (or
    # ▁), expanded or not.
    @settings(max_examples=150, deadline=None)
    @given(text=st.lists(parts, max_size=8).map("".join).map(lambda text: text.lstrip(" ▁")))
    def check(text):
        wanted = ids_of(implementations["fast"], [text])
        for name, tokenizer in implementations.items():
            assert ids_of(tokenizer, [text]) == wanted, name

    check()


def test_old_text_keeps_its_old_ids(project_root, llama2, pieces, corpus, tmp_path):
    """Pieces without ASCII leave ASCII text unchanged; elsewhere they only join old tokens."""
    pieces = [piece for piece in pieces if not any(character.isascii() or character == "▁" for character in piece)]
    run = expand(project_root, llama2, tmp_path / "new", write_pieces(tmp_path / "pieces.jsonl", pieces))
    assert run.returncode == 0, run.stderr
    # Not AutoTokenizer: transformers 5 passes over the scores of a source without tokenizer.json.
    source, new = load_tokenizer(llama2), AutoTokenizer.from_pretrained(tmp_path / "new")
    ascii_texts = [text for text in corpus if text.isascii()]
    assert len(ascii_texts) > 50
    assert differing(ascii_texts, ids_of(new, ascii_texts), ids_of(source, ascii_texts)) == []
    changed, first_new_id = 0, len(source)
    for text in corpus:
        old, now = (
            tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for tokenizer in (source, new)
        )
        old_ids = set(zip(old["offset_mapping"], old["input_ids"], strict=True))
        new_ids = set(zip(now["offset_mapping"], now["input_ids"], strict=True))
        assert {end for _, end in now["offset_mapping"]} <= {end for _, end in old["offset_mapping"]}
        assert all(token_id >= first_new_id for _, token_id in new_ids - old_ids)
        changed += now["input_ids"] != old["input_ids"]
    assert changed > 100


def test_settings_of_the_source_survive(project_root, made_llama2, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(made_llama2, source)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_eos_token = True
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(source)
    for path in source.iterdir():
        path.chmod(0o644)
    run = expand(project_root, source, tmp_path / "new", write_pieces(tmp_path / "pieces.jsonl", ["你好", "世界和平"]))
    assert run.returncode == 0, run.stderr
    size = len(AutoTokenizer.from_pretrained(made_llama2))
    for load in (AutoTokenizer.from_pretrained, LlamaTokenizer.from_pretrained):
        old, new = load(source), load(tmp_path / "new")
        assert new.convert_tokens_to_ids(["<pad>", "<|im_start|>", "你好"]) == [size, size + 1, size + 2]
        assert len(new) == len(old) + 2 + 2
        assert new.special_tokens_map == old.special_tokens_map
        assert new.model_max_length == old.model_max_length == 4096
        conversation = [{"role": "user", "content": "hi"}]
        assert new.apply_chat_template(conversation, tokenize=False) == old.apply_chat_template(
            conversation, tokenize=False
        )
        text = "one<|im_start|> two <pad>three"
        assert new.encode(text) == old.encode(text)
        # The source's slow tokenizer alone decodes a space before an added token, as its id lies
        # beyond the model's pieces.
        assert new.decode(new.encode(text)) == AutoTokenizer.from_pretrained(source).decode(old.encode(text))
        assert size + 2 in new.encode("你好<|im_start|>")


@pytest.mark.parametrize("setting", [{"legacy": True}, {"add_prefix_space": False}], ids=["legacy", "no prefix space"])
def test_other_settings_of_llama2_and_a_second_expansion(project_root, made_llama2, tmp_path, setting):
    source = tmp_path / "source"
    source.mkdir()
    for path in made_llama2.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text()) | setting
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    first = write_pieces(tmp_path / "first.jsonl", ["人工", "人工智能", "意大利"])
    second = write_pieces(tmp_path / "second.jsonl", ["意大利", "工智", "智能", "博物馆"])
    for start, end, pieces in ((source, tmp_path / "once", first), (tmp_path / "once", tmp_path / "twice", second)):
        run = expand(project_root, start, end, pieces)
        assert run.returncode == 0, run.stderr
    texts = ["人工智能在意大利的博物馆", "a 人工 b", "x\n意大 利", "博物馆</s>博物馆 智能"]
    slow, fast = (load(tmp_path / "twice") for load in (LlamaTokenizer.from_pretrained, AutoTokenizer.from_pretrained))
    assert ids_of(slow, texts) == ids_of(fast, texts)
    old, once = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "once")
    assert ids_of(old, ["plain text"]) == ids_of(fast, ["plain text"])
    before, after = once.get_vocab(), fast.get_vocab()
    assert all(after[token] == token_id for token, token_id in before.items())
    report = json.loads((tmp_path / "twice" / "expansion_report.json").read_text("utf-8"))
    assert (report["already_known"], report["new"], report["unreachable"]) == (
        1 + ("工智" in before) + ("智能" in before),
        len(fast) - len(once) - report["bridges"],
        0,
    )


def test_a_piece_with_a_space_and_a_piece_that_cannot_be(project_root, llama2, tmp_path):
    pieces = write_pieces(tmp_path / "pieces.jsonl", [" 你好", "▁你好", "第一\n第二"])
    run = expand(project_root, llama2, tmp_path / "new", pieces)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    assert (report["duplicate"], report["new"], report["impossible"]) == (1, 1, 1)
    assert report["impossible_pieces"][0]["where"].endswith("pieces.jsonl:3")
    assert "pieces.jsonl:3" in run.stdout
    assert "U+000A" in run.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    new_id = len(AutoTokenizer.from_pretrained(llama2))
    assert new_id in tokenizer.encode("x 你好", add_special_tokens=False)
    assert new_id in tokenizer.encode("你好", add_special_tokens=False)


def test_a_piece_that_spells_a_control_token_with_another_is_left_out(project_root, made_llama2, tmp_path):
    pieces = write_pieces(tmp_path / "pieces.jsonl", ["</s", "博物馆", "</", "s>"])
    run = expand(project_root, made_llama2, tmp_path / "new", pieces)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    assert (report["new"], report["impossible"], report["already_known"]) == (1 + 1, 2, 0)
    assert [entry["piece"] for entry in report["impossible_pieces"]] == ["</s", "s>"]
    assert "pieces.jsonl:1: '</s'" in run.stdout
    for load in (LlamaTokenizer.from_pretrained, AutoTokenizer.from_pretrained):
        tokenizer = load(tmp_path / "new", split_special_tokens=True)
        assert tokenizer.eos_token_id not in tokenizer.encode("a </s>b", add_special_tokens=False)


BAD_LINES = {
    b'{"piece": "good"}': None,
    b"{broken": "is not JSON",
    b'{"piece": ""}': "empty",
    b'{"piece": " \xe2\x96\x81"}': "all spaces",
    b'{"piece": 12}': "not a string",
    b'{"piece": null}': "not a string",
    b'["piece"]': "not an object",
    b'{"text": "x"}': "not an object with the key",
    b'{"piece": "a</s>"}': "control token </s>",
    b'{"piece": "<0x0A>"}': "control token <0x0A>",
    b'{"piece": "\xff"}': "not UTF-8",
    b'{"piece": "\\ud800"}': "surrogate",
    b"[" * 5_000: "nested too deeply",
}


def test_adding_nothing_is_an_error_with_the_reasons(project_root, made_data, tmp_path):
    """The pieces of an expansion asked for again; impossible ones: counts of each reason."""
    source = made_data / "tokenizers" / "llama3-base"
    pieces = write_pieces(tmp_path / "pieces.jsonl", ["你好人工", "博物馆里"])
    assert expand(project_root, source, tmp_path / "new", pieces).returncode == 0
    pieces = write_pieces(tmp_path / "more.jsonl", ["你好人工", "博物馆里", "的，a", "a<|eot_id|>", "x" * 3000])
    run = expand(project_root, tmp_path / "new", tmp_path / "again", pieces)
    assert run.returncode == 2
    assert "none of the 5 requested pieces can be added: 2 in the source already" in run.stderr
    for count in ("1 split by the pre-tokenizer", "1 with an added token", "1 too long"):
        assert count in run.stderr
    assert "extend_pretokenizer" not in run.stderr
    assert not (tmp_path / "again").exists()


def test_pieces_that_are_partly_impossible_are_counted_by_cause(project_root, made_data, tmp_path):
    source = made_data / "tokenizers" / "llama3-base"
    pieces = write_pieces(tmp_path / "pieces.jsonl", ["你好人工", "ที่นี่", " हिन्दी", "的，a"])
    run = expand(project_root, source, tmp_path / "new", pieces)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    assert (report["new"], report["impossible_by_cause"]) == (1, {"split by the pre-tokenizer": 3})
    assert "2 of the pieces that the pre-tokenizer splits are words with combining marks" in run.stdout
    assert "--extend_pretokenizer Thai,Devanagari" in run.stdout


def test_every_bad_line_is_named_at_once_and_nothing_is_written(project_root, made_llama2, tmp_path):
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_bytes(b"\n".join(BAD_LINES) + b"\n")
    run = expand(project_root, made_llama2, tmp_path / "new", pieces)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    for number, complaint in enumerate(BAD_LINES.values(), start=1):
        lines = [line for line in run.stderr.splitlines() if f"pieces.jsonl:{number}:" in line]
        assert len(lines) == (complaint is not None), (number, run.stderr)
        assert all(complaint in line for line in lines), (complaint, lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces.jsonl"]


def test_bad_arguments_are_named_at_once_and_an_existing_target_is_untouched(project_root, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    source = tmp_path / "source"
    source.mkdir()
    run = expand(project_root, source, target, tmp_path / "absent.jsonl", "--pad_to_multiple_of", "0")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    for complaint in (
        "absent.jsonl does not exist",
        "exists already",
        "tokenizer.model",
        "tokenizer_config.json",
        "less than 1",
    ):
        assert complaint in run.stderr
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("content", "pieces", "complaint"),
    [
        (b"not a model", ["你好"], "not a sentencepiece model"),
        (None, [], "holds no piece"),
    ],
)
def test_a_source_or_a_file_that_cannot_be_used(project_root, made_llama2, tmp_path, content, pieces, complaint):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(made_llama2 / name, source / name)
    if content is not None:
        (source / "tokenizer.model").write_bytes(content)
    run = expand(project_root, source, tmp_path / "new", write_pieces(tmp_path / "pieces.jsonl", pieces))
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["llama2", "llama3-base"])
@pytest.mark.timeout(60)  # the search for shared intermediates would take hours
def test_long_pieces_take_seconds_and_longer_ones_are_left_out(made_data, name, tmp_path, project_root):
    numbers = random.Random(1)
    long = ["".join(chr(numbers.randrange(0x4E00, 0x9FFF)) for _ in range(length)) for length in (200, 2_000, 2_049)]
    pieces = write_pieces(tmp_path / "pieces.jsonl", [*long, "博物馆"])
    run = expand(project_root, made_data / "tokenizers" / name, tmp_path / "new", pieces)
    assert run.returncode == 0, run.stderr
    assert "pieces.jsonl:3: " in run.stdout
    assert "2,049 characters, and a piece at most 2,048" in run.stdout
    assert len(run.stdout) < 5_000  # long pieces are named by their beginnings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    first = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))["source_vocab_size"]
    for number, piece in enumerate(long[:2]):
        assert first + number in tokenizer.encode(f"，{piece}。", add_special_tokens=False)
