"""Added tokens of the source keep their ids in an expansion, and text is encoded as before."""

import json
import random
import shutil

import pytest
from transformers import AddedToken, AutoTokenizer

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.expansion import old_ids
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.reachability import verify_reachability
from colossal_llama.tokenizer.expansion.result import write_expansion
from colossal_llama.tokenizer.expansion.source import open_source
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.tokenizer_scripts import expand, ids_of

FAMILIES = ["llama2", "llama3-base"]
# One word of the pre-tokenizer each, several, in the vocabulary already, part of a piece.
WORDS = ["人工智能", "foobarbaz", "two words", "###", "the", "你好世界", "ab", "é"]
SPECIAL = ["PADTOKEN", "<<<>>>", "<|im_start|>", "龘", "[MASK]"]
NEW_PIECES = ["智能手机", "博物馆", "意大利", "工智"]


def with_added_tokens(source, target, words=WORDS, special=SPECIAL, **flags):
    tokenizer = AutoTokenizer.from_pretrained(source)
    plain = [AddedToken(word, normalized=number % 2 == 0, **flags) for number, word in enumerate(words)]
    tokenizer.add_tokens(plain)
    tokenizer.add_tokens([AddedToken(word, special=True) for word in special], special_tokens=True)
    if special:
        tokenizer.pad_token = special[0]
    tokenizer.save_pretrained(target)
    return target


def expanded(source, target, pieces=NEW_PIECES):
    """Expands as the script does, without starting a process."""
    opened = open_source(source)
    expansion = opened.expand([Piece(piece, "") for piece in pieces])
    reachability = verify_reachability(expansion.piece_ids, expansion.encoders, expansion.encode_by_merges)
    assert reachability.unreachable == ()
    write_expansion(source, target, expansion, {})
    return expansion


def loaded(directory, family):
    """The tokenizers of a directory: fast and, for sentencepiece, slow."""
    kinds = (True, False) if family == "llama2" else (True,)
    return [AutoTokenizer.from_pretrained(directory, use_fast=fast) for fast in kinds]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pair(family, made_data, tmp_path_factory):
    """A source with added tokens of every kind, and its expansion."""
    work = tmp_path_factory.mktemp("added")
    source = with_added_tokens(made_data / "tokenizers" / family, work / "source")
    expansion = expanded(source, work / "new")
    assert len(expansion.pieces) + len(expansion.known) == len(NEW_PIECES)
    return source, work / "new"


def test_every_old_id_stays_also_after_saving_again(pair, family, tmp_path):
    source, new = pair
    tokenizers = loaded(new, family)
    tokenizers[0].save_pretrained(tmp_path / "again")
    for old, *expansions in zip(loaded(source, family), tokenizers, loaded(tmp_path / "again", family), strict=True):
        vocabulary = old.get_vocab()
        assert set(WORDS + SPECIAL) <= vocabulary.keys()
        for tokenizer in expansions:
            now = tokenizer.get_vocab()
            assert {token: now[token] for token in vocabulary} == vocabulary
            assert len(set(now.values())) == len(now) == len(tokenizer) == max(now.values()) + 1
            assert str(tokenizer.added_tokens_decoder) == str(old.added_tokens_decoder)
            assert tokenizer.pad_token_id == old.pad_token_id == vocabulary["PADTOKEN"]


def random_texts(seed, count=400):
    """Texts of added tokens, parts of them, and what may stand around them, without new pieces."""
    numbers = random.Random(seed)
    parts = [*WORDS, *SPECIAL, "人", "工", "智能", "foobar", "bar", "PAD", "TOKEN", "<<", ">>>", "<", "s", "#"]
    parts += [" ", " ", "  ", "\n", "1", ".", "，", "你", "好", "a", "b", "the cat", "\u0301", "_"]
    return ["".join(numbers.choices(parts, k=numbers.randint(1, 12))) for _ in range(count)]


def test_text_without_new_pieces_is_encoded_as_before(pair, family):
    """By transformers, and as plain text, in which a control token stays text."""
    source, new = pair
    first_new_id = len(load_tokenizer(source))
    for old, now in zip(loaded(source, family), loaded(new, family), strict=True):
        unchanged = 0
        for text in random_texts(1):
            (ids,), (new_ids,) = ids_of(old, [text]), ids_of(now, [text])
            if max(new_ids, default=0) < first_new_id:
                assert new_ids == ids, text
                unchanged += 1
        assert unchanged > 300
    old, now = (TextEncoder(load_tokenizer(directory)) for directory in pair)
    special = set(load_tokenizer(source).all_special_ids)
    for text in random_texts(2):
        for name in ("encode_beginning", "encode_continuation"):
            ids, new_ids = getattr(old, name)([text])[0], getattr(now, name)([text])[0]
            assert not special.intersection(new_ids), text
            if max(new_ids, default=0) < first_new_id:
                assert new_ids == ids, text


@pytest.mark.parametrize("flags", [{"single_word": True}, {"lstrip": True}, {"rstrip": True}])
def test_tokens_with_other_flags(family, made_data, tmp_path, flags):
    words = WORDS
    if "single_word" in flags:  # for those that are left out see the next test
        words = [
            word
            for word in WORDS
            if word not in ("the", "ab", "###", "é") and (family == "llama2" or not word.isascii())
        ]
    source = with_added_tokens(made_data / "tokenizers" / family, tmp_path / "source", words, **flags)
    expanded(source, tmp_path / "new")
    first_new_id = len(load_tokenizer(source))
    for old, now in zip(loaded(source, family), loaded(tmp_path / "new", family), strict=True):
        for text in random_texts(3):
            (ids,), (new_ids,) = ids_of(old, [text]), ids_of(now, [text])
            assert new_ids == ids or max(new_ids) >= first_new_id, text


@pytest.mark.parametrize(
    ("family", "content", "flags"),
    [
        ("llama3-base", "foobarbaz", {"single_word": True}),
        ("llama3-base", "Ġzzz", {}),
        ("llama2", "the", {"single_word": True}),
        ("llama2", "é", {"single_word": True}),
    ],
    indirect=["family"],
)
def test_a_token_that_ordinary_text_would_give_is_refused(made_data, tmp_path, family, content, flags):
    """LLaMA-3 looks up whole words, LLaMA-2's converter makes merges: text would give the entry."""
    source = with_added_tokens(made_data / "tokenizers" / family, tmp_path / "source", [content], [], **flags)
    with pytest.raises(UserError, match=r"cannot keep .*remove "):
        expanded(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_null_character_in_an_added_token_is_one_message(made_data, tmp_path):
    source = with_added_tokens(made_data / "tokenizers" / "llama2", tmp_path / "source", ["a\0b"], [])
    with pytest.raises(UserError, match="contains a null character"):
        open_source(source)


def test_a_second_expansion_keeps_the_first_ones_ids(pair, family, tmp_path):
    _, first = pair
    expanded(first, tmp_path / "twice", ["越来越", "人工", "博物馆里"])
    for old, now in zip(loaded(first, family), loaded(tmp_path / "twice", family), strict=True):
        assert old.get_vocab().items() <= now.get_vocab().items()


def test_ids_with_holes_stay_and_new_pieces_come_after_all_of_them(family, made_data, tmp_path):
    """The fast tokenizer numbers added tokens itself, the slow one takes the ids of the file."""
    source = with_added_tokens(made_data / "tokenizers" / family, tmp_path / "source", ["人工智能", "<x>"], ["<pad>"])
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    size = len(load_tokenizer(made_data / "tokenizers" / family))
    declared = {}
    added = json.loads((source / "tokenizer.json").read_text("utf-8"))["added_tokens"]  # transformers 5: there alone
    in_definition = {token.pop("id"): token for token in added}
    for token_id, token in config.get("added_tokens_decoder", in_definition).items():
        declared[str(int(token_id) + (7 if int(token_id) >= size else 0))] = token
    path.write_text(json.dumps(config | {"added_tokens_decoder": declared}), "utf-8")
    (source / "added_tokens.json").unlink(missing_ok=True)
    assert any("人工智能" in note and str(size + 7) in note for note in open_source(source).notes)
    expansion = expanded(source, tmp_path / "new")
    assert expansion.source_size == size + 7 + 3
    for old, now in zip(loaded(source, family), loaded(tmp_path / "new", family), strict=True):
        assert old.get_vocab().items() <= now.get_vocab().items()
        new_ids = now.convert_tokens_to_ids(now.tokenize("博物馆"))
        assert max(new_ids) >= expansion.source_size
    assert len(load_tokenizer(tmp_path / "new")) == expansion.size


def test_too_many_unused_ids_are_one_message(family, made_data, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(made_data / "tokenizers" / family, source)
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    config["added_tokens_decoder"]["99999999"] = {"content": "<far>", "special": True}
    (source / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match="have no token"):
        expanded(source, tmp_path / "new")


def test_a_changed_id_is_found_before_anything_is_written(pair, family, tmp_path, monkeypatch):
    source, new = pair
    damaged = tmp_path / "damaged"
    shutil.copytree(new, damaged)
    # transformers makes the vocabulary of LLaMA-2 from tokenizer.model.
    path = next(damaged / name for name in ("tokenizer.model", "tokenizer.json") if (damaged / name).exists())
    path.write_bytes(path.read_bytes().replace("人工智能".encode(), "人工智障".encode()))
    with pytest.raises(UserError, match=r"'人工智能' has id \d+ in the source"):
        old_ids.verify_old_ids(source, damaged, has_slow=family == "llama2")
    opened = open_source(source)
    monkeypatch.setattr(old_ids, "_changes", lambda *_: ["an id changed"])
    with pytest.raises(UserError, match=r"nothing was written"):
        write_expansion(source, tmp_path / "out", opened.expand([Piece("意大利", "")]), {})
    assert not (tmp_path / "out").exists()


def test_pieces_that_are_or_contain_an_added_token(pair, project_root, tmp_path):
    source, _ = pair
    pieces = ["人工智能", "人工智能学", "博物馆", "PADTOKEN", "xPADTOKEN", "two words", "▁two words"]
    (tmp_path / "pieces.jsonl").write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces))
    run = expand(project_root, source, tmp_path / "new", tmp_path / "pieces.jsonl")
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "new" / "expansion_report.json").read_text("utf-8"))
    assert (report["already_known"], report["impossible"], report["new"]) == (3, 3, 1)
    reasons = {entry["piece"]: entry["why"] for entry in report["impossible_pieces"]}
    assert "added token '人工智能'" in reasons["人工智能学"]
    assert "control token 'PADTOKEN'" in reasons["xPADTOKEN"]
    assert "added token 'two words'" in reasons[" two words"]
    assert "pieces.jsonl:2: '人工智能学'" in run.stdout
    tokenizer = load_tokenizer(tmp_path / "new")
    assert report["source_vocab_size"] in tokenizer.encode("在博物馆", add_special_tokens=False)
