"""Prompts: examples that fit, the middle cut, the tokens of the choices, the published logits."""

import json
import os
from itertools import takewhile

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.evaluation.prompts import PromptEncoder, all_prompt_ids, prompt_ids, prompt_texts
from colossal_llama.evaluation.questions import FIRST_TOKEN, NUMBER, Example, Question, Subject
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError

TOKENIZERS = ("llama2", "llama3-base")
WORDS = "The quick brown fox jumps over the lazy dog, 北京 is far away. "


@pytest.fixture(scope="module", params=TOKENIZERS)
def encoder(request, any_data) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(any_data / "tokenizers" / request.param))


def subject(examples: int, repeats: int = 1, scored_by: str = FIRST_TOKEN, opening: str = "About foxes.") -> Subject:
    shown = tuple(Example(f"Question {n}: {WORDS * repeats}\nAnswer: ", "ABCD"[n % 4]) for n in range(examples))
    questions = (Question(0, f"Question: {WORDS}\nAnswer: ", "B", ("A", "B", "C", "D")),)
    new_tokens = 256 if scored_by == NUMBER else 0
    return Subject("mmlu", "fox", "", "fox.csv", opening, shown, questions, scored_by, new_tokens)


def test_a_prompt_is_opening_examples_and_question_by_blank_lines(encoder):
    given = subject(2)
    (text,) = prompt_texts(given, given.questions, encoder, 2048)
    assert text == (
        f"About foxes.\n\nQuestion 0: {WORDS}\nAnswer: A\n\n"
        f"Question 1: {WORDS}\nAnswer: B\n\nQuestion: {WORDS}\nAnswer: "
    )
    assert prompt_texts(subject(0), given.questions, encoder, 2048) == [f"About foxes.\n\nQuestion: {WORDS}\nAnswer: "]
    assert prompt_texts(subject(0, opening=""), given.questions, encoder, 2048) == [f"Question: {WORDS}\nAnswer: "]
    ids = prompt_ids(given, given.questions[0], encoder, 2048)
    assert ids == encoder.tokenizer(text)["input_ids"]
    assert ids[0] == encoder.tokenizer.bos_token_id


@pytest.mark.parametrize("max_length", [150, 200, 256, 300, 500])
def test_as_many_examples_as_fit_are_used(encoder, max_length):
    given = subject(8)
    (text,) = prompt_texts(given, given.questions, encoder, max_length)
    room = max_length - len(encoder.tokenizer(given.questions[0].text + "B")["input_ids"])
    prefixes = [
        "About foxes.\n\n" + "".join(f"{example.text}{example.answer}\n\n" for example in given.examples[:count])
        for count in range(1, 9)
    ]
    fitting = len(list(takewhile(lambda prefix: len(encoder.tokenizer(prefix)["input_ids"]) <= room, prefixes)))
    assert text == prefixes[max(fitting, 1) - 1] + given.questions[0].text


def test_examples_that_fit_exactly_are_used(encoder):
    given = subject(3)
    question = given.questions[0]
    (whole,) = prompt_texts(given, given.questions, encoder, 2048)
    prefix = whole.removesuffix(question.text)
    tokens = len(encoder.tokenizer(prefix)["input_ids"]) + len(encoder.tokenizer(question.text + "B")["input_ids"])
    assert prompt_texts(given, given.questions, encoder, tokens) == [whole]
    assert "Question 2" not in prompt_texts(given, given.questions, encoder, tokens - 1)[0]


@pytest.mark.parametrize(("scored_by", "reserved"), [(FIRST_TOKEN, 32), (NUMBER, 256)])
def test_the_middle_of_a_prompt_that_is_too_long_is_left_out(encoder, scored_by, reserved):
    given = subject(1, repeats=80, scored_by=scored_by)
    (text,) = prompt_texts(given, given.questions, encoder, 512)
    whole, (kept,) = encoder.encode([text])[0], all_prompt_ids(given, given.questions, encoder, 512)
    limit = 512 - reserved
    assert len(whole) > limit
    assert limit - 8 <= len(kept) <= limit
    half = limit // 2
    begin = slice(9, half - 20)  # a character cut in two adds signs, and tokens of the beginning make room for them
    assert any(kept[begin] == whole[begin.start + added : begin.stop + added] for added in range(9))
    assert kept[-(half - 8) :] == whole[-(half - 8) :]
    assert kept.count(encoder.tokenizer.bos_token_id) == 1
    assert encoder.decode(kept).endswith("\nAnswer: ") or encoder.decode(kept).endswith("\nAnswer:")


def test_a_length_without_room_for_a_prompt_is_refused(encoder):
    given = subject(1, scored_by=NUMBER)
    with pytest.raises(UserError, match=r"--max_length 256 is too short for mmlu, which generates 256 .* at least 288"):
        all_prompt_ids(given, given.questions, encoder, 256)
    assert len(all_prompt_ids(given, given.questions, encoder, 288)[0]) <= 32


@pytest.mark.parametrize("max_length", range(100, 130))
def test_a_character_that_is_cut_in_two_costs_no_end(encoder, max_length):
    question = Question(0, "龘 fox 靐 or 麤 dog " * 40 + "\n答案：", "A", ("A", "B"))
    given = subject(0, opening="")
    ids = prompt_ids(given, question, encoder, max_length)
    assert len(ids) <= max_length - 32
    assert encoder.decode(ids).endswith("\n答案：")
    assert ids[0] == encoder.tokenizer.bos_token_id


def test_a_choice_has_the_last_tokens_of_both_answers(encoder):
    for letter in "ABCDEFGHIJ":
        expected = [
            encoder.tokenizer(text + letter, add_special_tokens=False)["input_ids"][-1]
            for text in ("Answer: ", "答案：")
        ]
        assert list(encoder.choice_token_ids(letter)) == expected
    ids = [token for letter in "ABCD" for token in encoder.choice_token_ids(letter)]
    assert len(set(ids)) == 8


def test_the_real_choices_of_llama_2(shared_data):
    encoder = PromptEncoder(load_tokenizer(shared_data / "tokenizers" / "llama2"))
    assert [encoder.choice_token_ids(letter) for letter in "ABCD"] == [
        (319, 29909),
        (350, 29933),
        (315, 29907),
        (360, 29928),
    ]


@pytest.mark.slow
def test_the_logits_are_those_of_the_published_evaluator(shared_data):
    """The first two questions of each expected subject."""
    directory = os.environ.get("COLOSSAL_LLAMA_SMOLLM2", "")
    if not directory:
        pytest.skip("needs the model of the expected predictions: set COLOSSAL_LLAMA_SMOLLM2 to its directory")
    expected = json.loads((shared_data / "eval" / "expected" / "smollm2.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()
    encoder = PromptEncoder(load_tokenizer(directory))
    for subject in open_tasks(["mmlu", "cmmlu", "agieval", "gaokao"], shared_data / "eval", limit=2):
        folder = "gaokao_bench" if subject.task == "gaokao" else subject.task
        predictions = expected.get(f"{folder}/{subject.name}", [])[:2]
        prompts = all_prompt_ids(subject, subject.questions[: len(predictions)], encoder, 2048)
        for ids, question, prediction in zip(prompts, subject.questions, predictions, strict=False):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
            for letter in question.choices:
                score = max(float(logits[token]) for token in encoder.choice_token_ids(letter))
                assert abs(score - prediction["logits"][letter]) < 0.01, (subject.name, question.index)
