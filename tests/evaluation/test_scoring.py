"""Scores of many prompts at once are those of one prompt at a time through transformers."""

import random

import pytest
import torch

from colossal_llama.evaluation import scoring
from colossal_llama.evaluation.packed_model import PackedModel
from colossal_llama.evaluation.scoring import Scorer
from colossal_llama.utils.errors import UserError
from tests.support.architectures import VARIANTS, config_of, random_model

VOCABULARY = 199
WANTED = [3, 7, 9, 100]


def made_model(variant: str = "llama", **settings):
    given = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "initializer_range": 0.2, **settings}
    return random_model(config_of(variant, **given)).eval()


def made_prompts(count: int = 40, prefix_tokens: int = 150) -> list[list[int]]:
    """Prompts behind a prefix, its beginning, and none; one is the prefix, one comes twice."""
    source = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(number)]

    prefix = tokens(prefix_tokens)
    prompts = [prefix[: source.choice([prefix_tokens, prefix_tokens, 60, 0])] + tokens(source.randint(1, 40))
               for _ in range(count)]  # fmt: skip
    prompts += [prefix, prompts[0]]
    source.shuffle(prompts)
    return prompts


@torch.no_grad()
def plain_logits(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()


def largest_difference(model, prompts, found: dict[int, list[float]]) -> float:
    assert sorted(found) == list(range(len(prompts)))
    expected = {index: plain_logits(model, prompt)[-1, WANTED].tolist() for index, prompt in enumerate(prompts)}
    return max(abs(a - b) for index in found for a, b in zip(found[index], expected[index], strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_one_prompt_at_a_time(variant):
    model, prompts = made_model(variant), made_prompts()
    attention = model.config._attn_implementation
    assert largest_difference(model, prompts, dict(Scorer(model).next_token_logits(prompts, WANTED))) < 2e-5
    assert model.config._attn_implementation == attention


def test_prompts_of_any_length_are_not_given_to_cudnn():
    """It builds an execution plan for each shape; packed prompts and single ones alike."""
    model, seen = made_model(), []
    model.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    list(Scorer(model).next_token_logits(made_prompts(), WANTED))
    PackedModel(model).forward_alone([1, 2, 3], 1)
    assert set(seen) == {False}


@pytest.mark.parametrize("tokens_per_batch", [1, 50, 100_000])
def test_batches_of_any_size_give_the_same_answers(tokens_per_batch):
    model, prompts = made_model(), made_prompts()
    found = dict(Scorer(model, tokens_per_batch).next_token_logits(prompts, WANTED))
    assert largest_difference(model, prompts, found) < 2e-5
    alone = {index: next(Scorer(model).next_token_logits([prompt], WANTED))[1] for index, prompt in enumerate(prompts)}
    assert [max(found[index]) == found[index][row.index(max(row))] for index, row in alone.items()] == [True] * len(
        found
    )


def test_a_shared_prefix_is_computed_once(monkeypatch):
    computed = []
    forward = PackedModel.forward

    def counted(self, sequences, *arguments):
        computed.append(sum(map(len, sequences)))
        return forward(self, sequences, *arguments)

    monkeypatch.setattr(PackedModel, "forward", counted)
    prefix = list(range(100))
    prompts = [[*prefix, 150 + number, 3] for number in range(30)]
    list(Scorer(made_model(), tokens_per_batch=20).next_token_logits(prompts, WANTED))
    assert computed == [100, 20, 20, 20]


def test_long_prompts_have_the_frequencies_of_their_own_length():
    factors = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    rope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 100, **factors}
    model, prompts = made_model(rope_scaling=rope, original_max_position_embeddings=100), made_prompts()
    assert min(map(len, prompts)) < 100 < max(map(len, prompts))
    assert largest_difference(model, prompts, dict(Scorer(model).next_token_logits(prompts, WANTED))) < 2e-5


def test_a_prompt_longer_than_the_model_is_refused_with_what_to_give():
    with pytest.raises(UserError, match=r"513 tokens, and the model 512 positions.*--max_length 512"):
        list(Scorer(made_model()).next_token_logits([[1], [1] * 513], WANTED))
    with pytest.raises(UserError, match="no token"):
        list(Scorer(made_model()).next_token_logits([[]], WANTED))


def test_batches_are_halved_where_memory_does_not_suffice(monkeypatch, capsys):
    model, prompts = made_model(), made_prompts()
    forward = PackedModel.forward

    def limited(self, sequences, *arguments):
        if len(sequences) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, sequences, *arguments)

    monkeypatch.setattr(PackedModel, "forward", limited)
    assert largest_difference(model, prompts, dict(Scorer(model).next_token_logits(prompts, WANTED))) < 2e-5
    assert "memory does not suffice: batches of" in capsys.readouterr().out

    monkeypatch.setattr(PackedModel, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="does not suffice for one prompt"):
        list(Scorer(model).next_token_logits(prompts, WANTED))


def test_log_likelihoods_are_sums_over_the_continuations_tokens():
    model, prompts = made_model(), made_prompts(20)
    source = random.Random(1)
    continuations = [[source.randrange(VOCABULARY) for _ in range(source.randint(1, 4))] for _ in prompts]
    greedy = int(plain_logits(model, prompts[0])[-1].argmax())
    prompts, continuations = [*prompts, prompts[0], prompts[0]], [*continuations, [greedy], [(greedy + 1) % VOCABULARY]]
    found = list(Scorer(model, 100).log_likelihoods(prompts, continuations))
    assert sorted(result.index for result in found) == list(range(len(prompts)))
    for result in found:
        continuation = continuations[result.index]
        logits = plain_logits(model, prompts[result.index] + continuation)[-len(continuation) - 1 : -1]
        rows = zip(logits.log_softmax(-1), continuation, strict=True)
        assert result.total == pytest.approx(sum(float(row[token]) for row, token in rows), abs=1e-4)
        assert result.is_greedy == (logits.argmax(-1).tolist() == continuation)
        assert result.tokens == len(continuation)
    assert [result.is_greedy for result in sorted(found, key=lambda result: result.index)][-2:] == [True, False]


def test_continuations_of_one_token_share_a_pass(monkeypatch):
    passes = []
    forward = PackedModel.forward
    monkeypatch.setattr(PackedModel, "forward", lambda *given: passes.append(given[1]) or forward(*given))
    list(Scorer(made_model()).log_likelihoods([[1, 2, 3]] * 4, [[5], [6], [7], [8]]))
    assert passes == [[[1, 2, 3]]]


def test_a_model_of_another_architecture_is_scored_one_prompt_at_a_time():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=256)).eval()
    prompts = made_prompts(10)
    assert largest_difference(model, prompts, dict(Scorer(model).next_token_logits(prompts, WANTED))) < 2e-5


def test_an_adapter_is_scored_with_its_base():
    from peft import LoraConfig, get_peft_model

    base, prompts = made_model(), made_prompts(10)
    before = dict(Scorer(base).next_token_logits(prompts, WANTED))
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(base, settings).eval()
    found = dict(Scorer(model).next_token_logits(prompts, WANTED))
    assert largest_difference(model, prompts, found) < 2e-5
    assert found != before


def test_the_defaults_are_of_the_device():
    assert Scorer(made_model()).tokens_per_batch == scoring.CPU_TOKENS_PER_BATCH


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("variant", ["llama", "smollm", "qwen3"])
def test_logits_on_a_gpu_are_those_of_one_prompt_at_a_time(variant, dtype):
    # Heads of 64, as the kernels have; the model's own rounding is what half precision allows.
    model = made_model(variant, hidden_size=256, head_dim=64, initializer_range=0.05).to("cuda", dtype)
    prompts = made_prompts(200)
    found = dict(Scorer(model).next_token_logits(prompts, WANTED))
    assert largest_difference(model, prompts, found) < (1e-3 if dtype == torch.float32 else 0.05)
    again = dict(Scorer(model, 300).next_token_logits(prompts, WANTED))
    assert largest_difference(model, prompts, again) < (1e-3 if dtype == torch.float32 else 0.05)
