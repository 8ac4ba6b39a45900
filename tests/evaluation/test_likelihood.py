"""The harness' protocol: letters by log-likelihood, in its wording."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from colossal_llama.evaluation.likelihood import predictions
from colossal_llama.evaluation.prompts import PromptEncoder
from colossal_llama.evaluation.questions import FIRST_TOKEN, Example, Question, Subject
from colossal_llama.evaluation.scoring import Scorer

MMLU = Subject(
    task="mmlu",
    name="high_school_us_history_test",
    group="Humanities",
    file="high_school_us_history_test.csv",
    opening="The following are multiple choice questions (with answers) about High School US History.",
    examples=(Example("Question: First?\nA. a\nB. b\nC. c\nD. d\nAnswer: ", "B"),),
    questions=(
        Question(0, "Question: Second? \nA. a\nB. b\nC. c\nD. d\nAnswer: ", "C", ("A", "B", "C", "D")),
        Question(1, "Question: Third\nA. e\nB. f\nC. g\nD. h\nAnswer: ", "A", ("A", "B", "C", "D")),
        Question(2, "Question: Empty\nA. \nB. f\nC. g\nD. h\nAnswer: ", "", ("A", "B", "C", "D"), is_scored=False),
    ),
    scored_by=FIRST_TOKEN,
)
PREFIX = (
    "The following are multiple choice questions (with answers) about high school us history.\n\n"
    "First?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n"
)
CMMLU = replace(
    MMLU,
    task="cmmlu",
    opening="以下是关于农学的单项选择题，请直接给出正确答案的选项。",
    examples=(Example("题目：一\nA. a\nB. b\nC. c\nD. d\n答案：", "B"),),
    questions=(Question(0, "题目：二\nA. a\nB. b\nC. c\nD. d\n答案：", "C", ("A", "B", "C", "D")),),
)


@pytest.fixture(scope="module")
def encoder(random_model_directory):
    return PromptEncoder(AutoTokenizer.from_pretrained(random_model_directory))


def plain_log_likelihood(model, encoder, context: str, continuation: str, max_length: int) -> float:
    whole, begin = encoder.encode([context + continuation])[0], len(encoder.encode([context])[0])
    cut = max(0, len(whole) - max_length - 1)
    with torch.no_grad():
        logits = model(torch.tensor([whole[cut:-1]])).logits[0].log_softmax(-1)
    return sum(float(logits[at - 1 - cut, whole[at]]) for at in range(begin, len(whole)))


@pytest.mark.parametrize("max_length", [380, 40])
def test_letters_are_scored_behind_the_harness_prompt(max_length, random_model, encoder):
    found = {each.index: each for each in predictions(MMLU, Scorer(random_model), encoder, max_length)}
    assert sorted(found) == [0, 1]
    for index, question in enumerate(
        ("Second?\nA. a\nB. b\nC. c\nD. d\nAnswer:", "Third\nA. e\nB. f\nC. g\nD. h\nAnswer:")
    ):
        expected = {
            letter: plain_log_likelihood(random_model, encoder, PREFIX + question, f" {letter}", max_length)
            for letter in "ABCD"
        }
        assert found[index].logits == pytest.approx(expected, abs=1e-3)
        assert found[index].prediction == max(expected, key=expected.__getitem__)


def test_chinese_questions_have_a_space_before_the_letter(random_model, encoder):
    (found,) = predictions(CMMLU, Scorer(random_model), encoder, 380)
    context = f"{CMMLU.opening}\n\n一\nA. a\nB. b\nC. c\nD. d\n答案： B\n\n二\nA. a\nB. b\nC. c\nD. d\n答案："
    expected = {letter: plain_log_likelihood(random_model, encoder, context, f" {letter}", 380) for letter in "ABCD"}
    assert found.logits == pytest.approx(expected, abs=1e-3)
