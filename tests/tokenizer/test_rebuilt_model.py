"""A tokenizer.json of LLaMA-2's kind alone is expanded as with its tokenizer.model."""

import json

import pytest

from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.source import open_source
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.rebuilt_model import rebuild_model
from colossal_llama.tokenizer.sentencepiece_model import PieceType, merges_by_score, read_model
from colossal_llama.utils.errors import UserError
from tests.support.files_of_5 import as_transformers_5

PIECES = [Piece(text, "") for text in ("人工智能", "博物馆", " 你好", "越来越")]


@pytest.fixture(scope="module")
def llama2(any_data):
    return any_data / "tokenizers" / "llama2"


@pytest.fixture(scope="module")
def alone(llama2, tmp_path_factory):
    return as_transformers_5(llama2, tmp_path_factory.mktemp("alone") / "five", "LlamaTokenizer")


def change(path, function):
    definition = json.loads(path.read_text("utf-8"))
    function(definition)
    path.write_text(json.dumps(definition), "utf-8")


def test_the_rebuilt_model_has_the_pieces_and_merges_of_the_real_one(llama2, alone):
    real, rebuilt = read_model(llama2 / "tokenizer.model"), rebuild_model(alone / "tokenizer.json")
    assert [piece.piece for piece in rebuilt.pieces] == [piece.piece for piece in real.pieces]
    assert [piece.type for piece in rebuilt.pieces] == [piece.type for piece in real.pieces]
    assert merges_by_score(rebuilt) == merges_by_score(real)


def test_the_expansion_is_the_same_without_a_tokenizer_model_in_its_files(llama2, alone):
    with_model, without = (open_source(directory).expand(PIECES) for directory in (llama2, alone))
    assert set(with_model.files) - set(without.files) == {"tokenizer.model"}
    assert without.files["tokenizer.json"] == with_model.files["tokenizer.json"]
    texts = ["你好，人工智能  博物馆", "a  b   越来越"]
    sentencepiece, fast = without.encoders
    assert [list(ids) for ids in sentencepiece(texts)] == [list(ids) for ids in fast(texts)]


def test_merges_by_id_are_expanded_as_they_are(llama2, tmp_path):
    """transformers 5 ranks them so, of a tokenizer.model alone: runs of spaces are made first."""

    def rank_by_id(definition):
        vocabulary = definition["model"]["vocab"]
        definition["model"]["merges"].sort(key=lambda pair: (vocabulary["".join(pair)], len(pair[0])))
        definition["model"]["unk_token"] = None

    directory = as_transformers_5(llama2, tmp_path / "five", "LlamaTokenizer")
    change(directory / "tokenizer.json", rank_by_id)
    before = load_tokenizer(directory)
    sentencepiece, fast = open_source(directory).expand(PIECES).encoders
    for text in ("a  the", "x        y", "def f():\n    return x"):
        (ids,) = fast([text])
        assert ids == list(sentencepiece([text])[0]) == before(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda definition: definition["model"]["merges"].pop(), "its merges are not those"),
        (lambda definition: definition["model"]["vocab"].pop("<0x41>"), "without a token for each byte"),
        (lambda definition: definition["model"].update(byte_fallback=False), "without a token for each byte"),
        (lambda definition: definition["model"].update(unk_token="<none>"), "no token for unknown text"),
        (lambda definition: definition["model"]["vocab"].update({"a gap": 10**6}), "its ids are not 0, 1, 2"),
        (lambda definition: definition.update(normalizer={"type": "Lowercase"}), r"otherwise \(Lowercase\)"),
        (lambda definition: definition["model"].update(merges=[1, 2]), "no tokenizer definition"),
    ],
)
def test_other_tokenizers_are_refused(alone, tmp_path, damage, said):
    path = tmp_path / "tokenizer.json"
    path.write_bytes((alone / "tokenizer.json").read_bytes())
    change(path, damage)
    with pytest.raises(UserError, match=said):
        rebuild_model(path)


def test_special_tokens_keep_their_types(alone):
    types = {piece.piece: piece.type for piece in rebuild_model(alone / "tokenizer.json").pieces[:4]}
    assert list(types.values()) == [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL, PieceType.BYTE]
