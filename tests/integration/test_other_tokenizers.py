"""Tokenizers of Qwen's and of Mistral's kind: expanded, given rows, prepared and prompted with.

Qwen's has NFC, single digits, no BOS, and a model with more rows than tokens; Mistral v0.3's has
control tokens in its sentencepiece model.
"""

import json
import unicodedata

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.inference.prompts import PretrainedPrompt
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.architectures import make_model
from tests.support.made_data import make_mistral, make_pieces, make_qwen
from tests.support.preparations import preparation
from tests.support.scripts import run_script
from tests.support.tokenizer_scripts import expand, ids_of

FAMILIES = {"qwen3": make_qwen, "mistral-nemo": make_mistral}
PADDING_ROWS = 55
DECOMPOSED = "e\u0301a\u0300 na\u0131\u0308ve"
TEXTS = [
    "你好，越来越多的人在学习人工智能。",
    "12345 tokens, and <|endoftext|> or [INST] as text",
    " é \n\n ü",
    DECOMPOSED,
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def directories(family, project_root, tmp_path_factory):
    """Base tokenizer and model, expanded tokenizer, and model with rows for it."""
    root = tmp_path_factory.mktemp(family)
    tokenizer = FAMILIES[family](root / "tokenizer")
    rows = len(AutoTokenizer.from_pretrained(tokenizer)) + PADDING_ROWS
    base = make_model(root / "base", family, tokenizer, vocab_size=rows, initializer_range=0.2)
    pieces = make_pieces(root, 4)
    done = expand(project_root, tokenizer, root / "expanded", pieces)
    assert done.returncode == 0, done.stderr
    script = "colossal_llama/model/init_model.py"
    paths = ["--source_model_and_tokenizer_path", base, "--target_tokenizer_path", root / "expanded"]
    done = run_script(project_root, script, *paths, "--target_model_path", root / "model")
    assert done.returncode == 0, done.stderr
    assert f"{PADDING_ROWS} padding rows of the source (beyond its tokenizer) are dropped" in done.stdout
    return root


def test_every_piece_is_reachable_and_old_ids_stay(directories):
    report = json.loads((directories / "expanded" / "expansion_report.json").read_text())
    assert report["unreachable"] == 0
    assert report["new"] > 500
    old, new = (load_tokenizer(directories / name) for name in ("tokenizer", "expanded"))
    assert all(new.get_vocab()[token] == token_id for token, token_id in old.get_vocab().items())


def test_old_rows_stay_and_new_ones_are_means(directories):
    source, target = (load_tokenizer(directories / name) for name in ("tokenizer", "model"))
    before, after = (AutoModelForCausalLM.from_pretrained(directories / name) for name in ("base", "model"))
    rows = after.get_input_embeddings().weight
    assert len(rows) == len(target)  # the source's padding is gone; a new token has its row
    known = before.get_input_embeddings().weight[: len(source)]
    assert torch.equal(rows[: len(source)], known)
    for token_id in range(len(source), len(target), 97):
        text = target.decode([token_id])
        if "\ufffd" in text or text.startswith(" "):
            continue
        model = source.backend_tokenizer.model
        piece = target.convert_ids_to_tokens(token_id)
        ids = [token.id for token in model.tokenize(piece)]
        torch.testing.assert_close(rows[token_id], known[ids].mean(dim=0), rtol=1e-5, atol=1e-6)


def test_ids_are_those_of_transformers_and_decode_to_the_normal_form(directories, family):
    opened = OpenTokenizer(directories / "model")
    theirs = AutoTokenizer.from_pretrained(directories / "model")
    plain = [text for text in TEXTS if "[INST]" not in text]
    assert opened.text_encoder.encode_beginning(plain) == ids_of(theirs, plain)
    ids, lengths = opened.encoder.encode(TEXTS, [True] * len(TEXTS))
    for text, part in zip(TEXTS, torch.tensor(ids).split(lengths.tolist()), strict=True):
        expected = unicodedata.normalize("NFC", text) if family == "qwen3" else text
        assert theirs.decode(part, clean_up_tokenization_spaces=False).removeprefix(" ") == expected.removeprefix(" ")


def test_documents_begin_as_the_family_was_trained(directories, family, tmp_path):
    """Qwen's with their text, Mistral's with BOS; all end with EOS, and lose no token."""
    records = [{"source": "问：", "target": text, "category": "a"} for text in TEXTS]
    records += [{"source": "", "target": TEXTS[0] * 40, "category": "a"}]  # longer than a row
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    opened = OpenTokenizer(directories / "model")
    options = {"max_length": 64, "num_spliced_dataset_bins": 1}
    prepare(preparation("pretrain", (tmp_path / "in",), directories / "model", tmp_path / "out", **options), opened)
    found = []
    for row in load_from_disk(str(tmp_path / "out" / "arrow" / "part-00000")):
        ends = torch.tensor(row["document_lengths"]).cumsum(0).tolist()
        found += [row["input_ids"][begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        assert all(row["labels"][begin] == -100 for begin in [0, *ends[:-1]])
    tokenizer, encoder = opened.tokenizer, opened.text_encoder
    bos = [] if family == "qwen3" else [tokenizer.bos_token_id]
    expected = [
        [
            *bos,
            *encoder.encode_beginning([record["source"]])[0],
            *(encoder.encode_continuation if record["source"] else encoder.encode_beginning)([record["target"]])[0],
            tokenizer.eos_token_id,
        ]
        for record in records
    ]
    assert all(document in found for document in expected[:-1])
    assert sum(map(len, found)) == sum(map(len, expected))
    assert max(map(len, found)) <= 64


def test_prompts_begin_as_documents_do(directories, family):
    tokenizer = load_tokenizer(directories / "model")
    prompt, text_ids = PretrainedPrompt(tokenizer), ids_of(tokenizer, ["你好"])[0]
    assert prompt.ids("你好") == (text_ids if family == "qwen3" else [tokenizer.bos_token_id, *text_ids])


def test_a_lost_bos_is_not_taken_for_none(directories, family, tmp_path):
    """Only null says that there is none; a key that is gone, as in a damaged LLaMA's, does not."""
    target = FAMILIES[family](tmp_path / "copy")
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["bos_token"]
    for other in ("special_tokens_map.json", "added_tokens.json"):
        (target / other).unlink(missing_ok=True)
    path.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    if family == "qwen3":
        with pytest.raises(UserError, match="no bos_token"):
            load_tokenizer(target)
