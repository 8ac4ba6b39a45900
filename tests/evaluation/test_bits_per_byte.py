"""Bits of documents: equal to a plain loop with transformers, in any batches and windows."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from colossal_llama.evaluation import bits_per_byte
from colossal_llama.evaluation.bits_per_byte import BitCounter, DocumentEncoder, windows
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.forked import run_forked
from tests.support.made_data import make_qwen
from tests.support.scripts import run_script
from tests.support.tokenizer_scripts import expand

TEXTS = ["One two three four. " * 30, "学而时习之，不亦说乎 " * 20, "x", "", "a\n\nb  c", "Short and long. " * 3]


def plain_loop(model, ids: list[int], max_length: int, stride: int) -> float:
    """Bits as in transformers' guide to perplexity: a forward pass with labels for each window."""
    bits, before = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        labels = inputs.clone()
        labels[:, : max(0, before - begin)] = -100
        if count := int((labels[:, 1:] != -100).sum()):
            with torch.no_grad():
                bits += model(inputs, labels=labels).loss.item() * count / math.log(2)
        before = end
        if end == len(ids):
            break
    return bits


@pytest.mark.parametrize(("length", "max_length", "stride"), [(11, 6, 4), (11, 6, 6), (11, 6, 1), (6, 6, 3), (1, 6, 3)])
def test_each_token_after_the_first_is_scored_once_with_context(length, max_length, stride):
    scored = []
    for begin, end, first in windows(length, max_length, stride):
        assert end - begin <= max_length
        assert begin < first < end  # with a token of context at least
        assert first - begin >= min(max_length - stride, first - 1)
        scored += range(first, end)
    assert scored == list(range(1, length))


def test_windows_overlap_as_the_stride_says():
    assert list(windows(12, max_length=6, stride=4)) == [(0, 6, 1), (4, 10, 6), (8, 12, 10)]
    assert list(windows(12, max_length=6, stride=6)) == [(0, 6, 1), (5, 11, 6), (10, 12, 11)]


@pytest.mark.parametrize(("max_length", "stride"), [(64, 32), (64, 63), (64, 5), (400, 200)])
@pytest.mark.parametrize("tokens_per_batch", [1, 150, 5000])
def test_equal_to_a_plain_loop_for_any_batch(
    random_model, random_model_directory, max_length, stride, tokens_per_batch
):
    documents = [text.ids for text in DocumentEncoder(load_tokenizer(random_model_directory)).encode(TEXTS)]
    counter = BitCounter(random_model, max_length, stride, tokens_per_batch)
    for ids, bits, text in zip(documents, counter.count(documents), TEXTS, strict=True):
        assert bits.tokens == len(ids) - 1
        assert abs(bits.bits - plain_loop(random_model, ids, max_length, stride)) <= 1e-4 * max(1, len(text.encode()))


def test_windows_of_any_length_are_not_given_to_cudnn(random_model, random_model_directory):
    """It builds an execution plan for each shape."""
    documents = [text.ids for text in DocumentEncoder(load_tokenizer(random_model_directory)).encode(TEXTS)]
    seen = []
    hook = random_model.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    list(BitCounter(random_model, 64, 32, 150).count(documents))
    hook.remove()
    assert set(seen) == {False}


def test_logits_are_computed_in_chunks(random_model, random_model_directory, monkeypatch):
    documents = [text.ids for text in DocumentEncoder(load_tokenizer(random_model_directory)).encode(TEXTS)]
    whole = list(BitCounter(random_model, 64, 32, 5000).count(documents))
    sizes = []
    hook = random_model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    monkeypatch.setattr(bits_per_byte, "_CHUNK_LOGITS", 10 * random_model.config.vocab_size)
    in_chunks = list(BitCounter(random_model, 64, 32, 5000).count(documents))
    hook.remove()
    assert max(sizes) <= 10 * random_model.config.vocab_size
    assert [bits.bits for bits in in_chunks] == pytest.approx([bits.bits for bits in whole], rel=1e-6)


def test_batches_shrink_where_memory_does_not_suffice(random_model, random_model_directory, monkeypatch):
    documents = [text.ids for text in DocumentEncoder(load_tokenizer(random_model_directory)).encode(TEXTS)]
    whole = list(BitCounter(random_model, 64, 32, 5000).count(documents))
    forward, limit_tokens = random_model.model.forward, 200

    def limited(input_ids, **settings):
        if input_ids.numel() > limit_tokens:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **settings)

    monkeypatch.setattr(random_model.model, "forward", limited)
    found = list(BitCounter(random_model, 64, 32, 5000).count(documents))
    assert [bits.bits for bits in found] == pytest.approx([bits.bits for bits in whole], rel=1e-6)
    limit_tokens = 60
    with pytest.raises(UserError, match="does not suffice for one prompt of 64 tokens"):
        list(BitCounter(random_model, 64, 32, 5000).count(documents))


def test_other_architectures_are_scored_by_their_own_logits():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()
    ids = [0, *torch.randint(0, 50, (100,)).tolist()]
    (bits,) = BitCounter(model, 32, 16, 100).count([ids])
    assert bits.bits == pytest.approx(plain_loop(model, ids, 32, 16), rel=1e-5)


def test_documents_begin_with_bos_or_else_with_eos(llama2, tmp_path):
    llama, qwen = load_tokenizer(llama2), load_tokenizer(make_qwen(tmp_path / "qwen"))
    assert qwen.bos_token_id is None
    assert DocumentEncoder(llama).encode(["ab"])[0].ids[0] == llama.bos_token_id
    assert DocumentEncoder(qwen).encode(["ab"])[0].ids[0] == qwen.eos_token_id


def test_texts_that_a_tokenizer_loses_are_found(llama2):
    tokenizer = load_tokenizer(llama2)
    found = DocumentEncoder(tokenizer).encode(["as it is: 𠀀 <s>", "two  spaces", "a\u2581b"])
    assert [text.is_lossless for text in found] == [True, True, False]  # ▁ becomes a space
    tokenizer.backend_tokenizer.model.byte_fallback = False
    found = DocumentEncoder(tokenizer).encode(["as it is", "\U0001f999"])
    assert [text.is_lossless for text in found] == [True, False]
    assert found[1].unknown_tokens >= 1


@pytest.fixture(scope="module")
def expanded(random_model_directory, project_root, tmp_path_factory):
    """The random model after an expansion of its tokenizer by pieces that no text here has."""
    directory = tmp_path_factory.mktemp("expanded")
    pieces = directory / "pieces.jsonl"
    pieces.write_text('{"piece": "鑫鑫"}\n{"piece": "淼淼淼"}\n', "utf-8")
    done = expand(project_root, random_model_directory, directory / "tokenizer", pieces)
    assert done.returncode == 0, done.stderr
    done = run_script(
        project_root, "colossal_llama/model/init_model.py", "--source_model_and_tokenizer_path", random_model_directory,
        "--target_tokenizer_path", directory / "tokenizer", "--target_model_path", directory / "model",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory / "model"


def test_an_expanded_model_has_the_bits_of_its_base_where_no_new_piece_occurs(
    random_model, random_model_directory, expanded
):
    """But for the probability of the new tokens, which `new_token_bits` tells exactly."""
    tokenizer, before = load_tokenizer(expanded), load_tokenizer(random_model_directory)
    assert len(tokenizer) > len(before)
    texts = [text.ids for text in DocumentEncoder(tokenizer).encode(TEXTS)]
    assert texts == [text.ids for text in DocumentEncoder(before).encode(TEXTS)]
    model = AutoModelForCausalLM.from_pretrained(expanded).eval()
    with torch.no_grad():
        model.lm_head.weight[len(before) :] *= 4  # so that each new token takes a part that shows
    base = list(BitCounter(random_model, 64, 32, 500).count(texts))
    of_expanded = list(BitCounter(model, 64, 32, 500, known_tokens=len(before)).count(texts))
    for mine, theirs in zip(of_expanded, base, strict=True):
        assert mine.tokens == theirs.tokens
        assert mine.bits - mine.new_token_bits == pytest.approx(theirs.bits, rel=1e-5, abs=1e-4)
        assert mine.new_token_bits > 0 or not mine.tokens


def test_the_command_tells_what_new_tokens_cost(project_root, random_model_directory, expanded, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS if text), "utf-8")
    out = tmp_path / "out"
    done = run_forked(
        project_root, "evaluate.py", "--model_path", expanded, "--compare", random_model_directory, "--device", "cpu",
        "--texts", tmp_path / "texts.jsonl", "--max_length", 200, "--output_dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total = json.loads((out / "texts.json").read_text("utf-8"))["total"]
    of_new = total["models"]["model"]["new_token_bits_per_byte"]
    assert of_new == pytest.approx(total["differences"]["random"]["value"], rel=1e-3)
    assert of_new > 0
    assert total["models"]["random"]["new_token_bits_per_byte"] is None
    assert "bits/byte for new tokens" in (out / "texts.md").read_text("utf-8")
