"""Prompts as in preparation, whole characters, a cache that changes nothing, long chats."""

import functools
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import Completion, StreamingDecoder, TextGenerator
from colossal_llama.inference.prompts import (
    PretrainedPrompt,
    pretrained_prompt,
)
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

GREEDY = Sampling(do_sample=False, max_new_tokens=8)
FAMILIES = ("llama2", "llama3-base")
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("你好人工智能 ，龘😀👩‍👩‍👧 ▁é\n")), max_size=30)

cached_tokenizer = functools.cache(load_tokenizer)
cached_encoder = functools.cache(lambda directory: TextEncoder(cached_tokenizer(directory)))


def greedy(generator: TextGenerator, prompt_ids: list[int], stop_ids=(2,), max_new_tokens: int = 8) -> Completion:
    return generator.answer(prompt_ids, stop_ids, replace(GREEDY, max_new_tokens=max_new_tokens)).finish()


# streaming


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_is_the_text_in_whole_characters(any_data, family):
    tokenizer = cached_tokenizer(any_data / "tokenizers" / family)
    encoder = cached_encoder(any_data / "tokenizers" / family)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    @example("a▁")
    def holds(text: str) -> None:
        decoder = StreamingDecoder(tokenizer)
        pieces = [decoder.push(i) for i in encoder.encode_continuation([text])[0]]
        if family == "llama2":  # which writes a space as ▁: a ▁ in the text comes back as a space
            text = text.replace("▁", " ")
        # A replacement character of the text's own may be held back at its end, like bytes that are
        # not whole yet.
        assert "".join(pieces) == text.rstrip("\ufffd") or "".join(pieces) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)

    holds()


def test_a_character_is_shown_when_its_last_byte_is_there(llama2):
    tokenizer = cached_tokenizer(llama2)
    ids = tokenizer.convert_tokens_to_ids(
        ["好", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xE9>", "<0xBE>", "▁", "▁the"]
    )
    decoder = StreamingDecoder(tokenizer)
    assert [decoder.push(i) for i in ids[:7]] == ["好", "", "", "", "😀", "", ""]
    assert decoder.push(ids[7]).endswith(" ")  # the two bytes will never be a character, and do not block what follows
    assert decoder.push(ids[8]) == " the"


# generation, cache


def test_answers_equal_plain_generation(random_model, llama2):
    tokenizer = cached_tokenizer(llama2)
    generator = TextGenerator(random_model, tokenizer)
    prompt = PretrainedPrompt(tokenizer).ids(pretrained_prompt("明月松间照，"))
    stream = generator.answer(prompt, {tokenizer.eos_token_id}, replace(GREEDY, max_new_tokens=40))
    shown, answer = list(stream), stream.completion
    plain = random_model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
    assert answer.token_ids == plain
    assert "".join(shown) == answer.text
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 40)


def test_only_the_command_line_decides_how_tokens_are_chosen(random_model, llama2, monkeypatch):
    prompt = PretrainedPrompt(cached_tokenizer(llama2)).ids("x")
    generator = TextGenerator(random_model, cached_tokenizer(llama2))
    expected = greedy(generator, prompt).token_ids
    forbidden = [[token] for token in expected]
    monkeypatch.setattr(random_model.generation_config, "bad_words_ids", forbidden)
    assert greedy(generator, prompt).token_ids == expected
    assert not set(expected) & set(
        random_model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :].tolist()
    )


def test_the_cache_is_reused_and_changes_nothing(random_model, llama2):
    """Turns of a chat: prompts that continue the one before; then one that shares the beginning."""
    tokenizer = cached_tokenizer(llama2)
    template = ConversationTemplate.for_llama(tokenizer, 2)
    stop_ids = {tokenizer.eos_token_id, template.turn_end_id}
    kept = TextGenerator(random_model, tokenizer)
    messages: list[Message] = []
    for question in ("你好，你是谁？", "And what can you do?", "谢谢"):
        messages.append(Message("human", question))
        prompt = template.prompt_ids(messages)
        answer = greedy(kept, prompt, stop_ids, 12)
        fresh = greedy(TextGenerator(random_model, tokenizer), prompt, stop_ids, 12)
        assert answer.token_ids == fresh.token_ids
        assert fresh.reused_tokens == 0
        if len(messages) > 1:
            assert answer.reused_tokens >= len(template.prompt_ids(messages[:-2]))
        messages.append(Message("assistant", answer.text))
    other = template.prompt_ids([Message("human", "something else")])
    answer = greedy(kept, other, stop_ids, 12)
    assert 0 < answer.reused_tokens < len(other)
    assert answer.token_ids == greedy(TextGenerator(random_model, tokenizer), other, stop_ids, 12).token_ids
    again = greedy(kept, other, stop_ids, 12)
    assert again.reused_tokens == len(other) - 1
    assert again.token_ids == answer.token_ids


def test_a_stop_token_ends_the_answer_and_is_not_shown(random_model, llama2):
    tokenizer = cached_tokenizer(llama2)
    prompt = PretrainedPrompt(tokenizer).ids("x")
    free = greedy(TextGenerator(random_model, tokenizer), prompt)
    stop = free.token_ids[3]
    first = free.token_ids.index(stop)
    stopped = greedy(TextGenerator(random_model, tokenizer), prompt, {stop})
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.finish_reason == "end"
    assert free.text.startswith(stopped.text)


def test_an_interrupted_answer_leaves_no_trace(random_model, llama2):
    tokenizer = cached_tokenizer(llama2)
    prompt, other = (PretrainedPrompt(tokenizer).ids(text) for text in ("x y z", "x y and something else"))
    generator = TextGenerator(random_model, tokenizer)
    expected = greedy(generator, other).token_ids
    greedy(generator, prompt)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = random_model.model.layers[1].register_forward_hook(interrupt)  # the first layer's keys are there
    with pytest.raises(KeyboardInterrupt):
        greedy(generator, prompt[:3] + other)
    handle.remove()
    again = greedy(generator, other)
    assert again.token_ids == expected
    assert again.reused_tokens > 0


def test_a_prompt_beyond_the_models_positions_is_refused(random_model, llama2):
    generator = TextGenerator(random_model, cached_tokenizer(llama2))
    with pytest.raises(UserError, match="400 positions"):
        greedy(generator, [1] * 400)
    with pytest.raises(UserError, match="no token"):
        greedy(generator, [])
    assert len(greedy(generator, [1] * 398).token_ids) == 2


def test_keys_of_another_length_are_not_reused(random_model, llama2):
    """With longrope, a prefix of a longer prompt has been rotated by other frequencies."""
    config = random_model.config
    factors = [1.0] * (config.head_dim // 2)
    config.rope_scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    config.original_max_position_embeddings = 100
    try:
        generator = TextGenerator(random_model, cached_tokenizer(llama2))
        assert [greedy(generator, [1, 5, 6, 7]).reused_tokens for _ in range(2)] == [0, 0]
    finally:
        config.rope_scaling = None
        del config.original_max_position_embeddings
    generator = TextGenerator(random_model, cached_tokenizer(llama2))
    assert [greedy(generator, [1, 5, 6, 7]).reused_tokens for _ in range(2)] == [0, 3]


# what a stream leaves behind


def stream_of(model, tokenizer, sampling: Sampling = GREEDY):
    generator = TextGenerator(model, tokenizer)
    return generator, generator.answer(PretrainedPrompt(tokenizer).ids("x"), {2}, sampling)


def test_sampling_is_that_of_transformers(random_model, llama2):
    tokenizer = cached_tokenizer(llama2)
    prompt = PretrainedPrompt(tokenizer).ids("x")
    for chosen in ({"temperature": 1.7}, {"top_k": 0, "top_p": 1.0}, {"top_p": 0.5, "temperature": 1.0}, {"top_k": 3}):
        sampling = Sampling(seed=3, max_new_tokens=12, **chosen)
        answer = TextGenerator(random_model, tokenizer).answer(prompt, {2}, sampling).finish()
        torch.manual_seed(3)
        given = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        plain = random_model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=True, **given)
        assert answer.token_ids == plain[0, len(prompt) :].tolist()


def test_a_stream_leaves_the_random_state_and_the_gradient_mode_alone(random_model, llama2):
    before = torch.get_rng_state()
    _, stream = stream_of(random_model, cached_tokenizer(llama2), Sampling(max_new_tokens=8))
    for _ in stream:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_that_is_left_frees_its_keys_and_values(random_model, llama2):
    def caches() -> list:
        return [value for value in gc.get_objects() if type(value).__name__ == "DynamicCache"]

    gc.collect()
    before = len(caches())
    gc.disable()
    try:
        generator, stream = stream_of(random_model, cached_tokenizer(llama2))
        left = weakref.ref(stream)
        for _ in stream:
            break
        del stream  # as the loop itself does with `for piece in model.stream(text)`
        assert left() is None
        assert len(caches()) == before
        _, stream = stream_of(random_model, cached_tokenizer(llama2))
        next(stream)
        assert len(caches()) == before + 1
        stream.close()
        assert len(caches()) == before
        assert stream.completion.finish_reason is None
        assert list(stream) == []
    finally:
        gc.enable()
    expected = greedy(TextGenerator(random_model, cached_tokenizer(llama2)), [1, 5, 6]).token_ids
    assert greedy(generator, [1, 5, 6]).token_ids == expected


def test_streams_that_run_by_turns_do_not_mix(random_model, llama2):
    tokenizer = cached_tokenizer(llama2)
    generator = TextGenerator(random_model, tokenizer)
    prompts = [PretrainedPrompt(tokenizer).ids(text) for text in ("one and the same", "one and another", "one")]
    alone = [greedy(TextGenerator(random_model, tokenizer), prompt).text for prompt in prompts]
    greedy(generator, prompts[0])
    streams = [generator.answer(prompt, (2,), GREEDY) for prompt in prompts]
    for _ in range(12):
        for stream in streams:
            next(stream, None)
    assert [stream.finish().text for stream in streams] == alone
