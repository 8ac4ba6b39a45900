"""Answers in batches are those of one prompt at a time, whatever the batch."""

import random

import pytest
import torch
from transformers import AutoTokenizer

from colossal_llama.evaluation.generation import AnswerGenerator, GeneratedAnswer
from colossal_llama.evaluation.packed_model import PackedModel
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.utils.errors import UserError
from tests.support.architectures import VARIANTS, config_of, random_model

NEW_TOKENS = 21
WANTED = [3, 7]


@pytest.fixture(scope="module")
def tokenizer(llama2):
    return AutoTokenizer.from_pretrained(llama2)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Groups of few prompts, as many have in real tasks."""
    monkeypatch.setattr(PackedModel, "min_saved_tokens", lambda *_: 100)


def made_model(tokenizer, variant: str = "llama", **settings):
    given = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.2, **settings}
    return random_model(config_of(variant, **given)).eval()


def made_prompts(tokenizer, count: int = 14) -> list[list[int]]:
    source = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [source.randrange(3, len(tokenizer)) for _ in range(number)]

    prefix = tokens(80)
    prompts = [prefix[: source.choice([80, 80, 40, 0])] + tokens(source.randint(1, 30)) for _ in range(count)]
    return [*prompts, prefix, prompts[0]]


def one_at_a_time(model, tokenizer, prompts, stop_ids) -> list[list[int]]:
    generator = TextGenerator(model, tokenizer)
    sampling = Sampling(do_sample=False, max_new_tokens=NEW_TOKENS)
    found = [generator.answer(prompt, stop_ids, sampling).finish().token_ids for prompt in prompts]
    return [ids[:-1] if ids[-1] in stop_ids else ids for ids in found]


def by_index(answers) -> list[GeneratedAnswer]:
    ordered = sorted(answers, key=lambda answer: answer.index)
    assert [answer.index for answer in ordered] == list(range(len(ordered)))
    return ordered


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_those_of_one_prompt_at_a_time(variant, tokenizer):
    model, prompts = made_model(tokenizer, variant), made_prompts(tokenizer)
    generator = AnswerGenerator(model, tokenizer)
    # Tokens that end some answers early, so that rows leave the batch at different times.
    often = [ids[5] for ids in one_at_a_time(model, tokenizer, prompts, set())][:6]
    generator._stop_ids = frozenset(often)
    expected = one_at_a_time(model, tokenizer, prompts, generator._stop_ids)
    assert len({len(ids) for ids in expected}) > 1
    answers = by_index(generator.answers(prompts, NEW_TOKENS, (), WANTED))
    assert [answer.text for answer in answers] == [generator._encoder.decode(ids).strip() for ids in expected]
    assert [answer.tokens for answer in answers] == [len(ids) for ids in expected]
    for answer, prompt in zip(answers, prompts, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0, -1, WANTED]
        assert answer.logits == pytest.approx(logits.tolist(), abs=2e-5)


def test_batches_of_any_size_give_the_same_answers(tokenizer, monkeypatch):
    model, prompts = made_model(tokenizer), made_prompts(tokenizer)
    expected = by_index(AnswerGenerator(model, tokenizer).answers(prompts, NEW_TOKENS))
    for tokens, rows in ((1, 256), (50, 256), (10_000, 1), (60, 4)):
        generator = AnswerGenerator(model, tokenizer, tokens)
        generator._most_rows = rows
        assert by_index(generator.answers(prompts, NEW_TOKENS)) == expected
    for count in (1, 8, 9):
        found = by_index(AnswerGenerator(model, tokenizer).answers(prompts, count))
        assert [answer.tokens for answer in found] == [min(count, answer.tokens) for answer in expected]


def test_answers_end_before_a_stop_text(tokenizer):
    model, prompts = made_model(tokenizer), made_prompts(tokenizer)
    texts = [answer.text for answer in by_index(AnswerGenerator(model, tokenizer).answers(prompts, NEW_TOKENS))]
    stops = (texts[0][3:5], texts[5][6:9])
    found = by_index(AnswerGenerator(model, tokenizer).answers(prompts, NEW_TOKENS, stops))
    for answer, text in zip(found, texts, strict=True):
        expected = text
        for stop in stops:
            expected = expected.split(stop)[0]
        assert answer.text == expected.rstrip()
    assert any(answer.text != text for answer, text in zip(found, texts, strict=True))


def test_rows_that_have_ended_leave_the_batch(tokenizer, monkeypatch):
    rows = []
    decode = PackedModel.decode
    monkeypatch.setattr(PackedModel, "decode", lambda *given: rows.append(given[1].shape[0]) or decode(*given))
    model, prompts = made_model(tokenizer), [[number, 5] for number in range(3, 33)]
    generator = AnswerGenerator(model, tokenizer)
    first = one_at_a_time(model, tokenizer, prompts, set())
    generator._stop_ids = frozenset(ids[1] for ids in first[:5])
    list(generator.answers(prompts, NEW_TOKENS))
    assert rows[0] == len(prompts) > rows[-1]


def test_the_last_positions_of_the_model_are_used_and_no_more(tokenizer):
    model = made_model(tokenizer, max_position_embeddings=60)
    prompts = [[5] * 50, [6] * 59, [7] * 20]
    answers = by_index(AnswerGenerator(model, tokenizer).answers(prompts, 30))
    expected = TextGenerator(model, tokenizer)
    for answer, prompt in zip(answers, prompts, strict=True):
        sampling = Sampling(do_sample=False, max_new_tokens=30)
        assert answer.tokens == len(expected.answer(prompt, (2,), sampling).finish().token_ids)
    with pytest.raises(UserError, match="max_length"):
        list(AnswerGenerator(model, tokenizer).answers([[5] * 60], 30))
    with pytest.raises(UserError, match="a prompt has no token"):
        list(AnswerGenerator(model, tokenizer).answers([[5], []], 30))


def test_smaller_batches_are_tried_where_memory_does_not_suffice(tokenizer, monkeypatch, capsys):
    model, prompts = made_model(tokenizer), made_prompts(tokenizer)
    expected = by_index(AnswerGenerator(model, tokenizer).answers(prompts, NEW_TOKENS))
    decode = PackedModel.decode

    def limited(self, ids, *arguments):
        if ids.shape[0] > 5:
            raise torch.OutOfMemoryError("out of memory")
        return decode(self, ids, *arguments)

    monkeypatch.setattr(PackedModel, "decode", limited)
    assert by_index(AnswerGenerator(model, tokenizer).answers(prompts, NEW_TOKENS)) == expected
    assert "memory does not suffice: batches of" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_on_a_gpu_are_those_of_one_prompt_at_a_time(tokenizer, dtype):
    model = made_model(tokenizer, hidden_size=256, head_dim=64, initializer_range=0.05).to("cuda", dtype)
    prompts = made_prompts(tokenizer, 100)
    generator = AnswerGenerator(model, tokenizer)
    answers = by_index(generator.answers(prompts, NEW_TOKENS, (), WANTED))
    if dtype == torch.float32:
        expected = one_at_a_time(model, tokenizer, prompts, generator._stop_ids)
        assert [answer.text for answer in answers] == [generator._encoder.decode(ids).strip() for ids in expected]
    # In bf16 a random model's answers part: its best tokens are nearer to each other than rounding.
    with torch.inference_mode():
        alone = [model(torch.tensor([ids], device="cuda")).logits[0, -1, WANTED].float() for ids in prompts]
    found = torch.tensor([answer.logits for answer in answers])
    torch.testing.assert_close(found, torch.stack(alone).cpu(), rtol=0, atol=1e-3 if dtype == torch.float32 else 0.05)
