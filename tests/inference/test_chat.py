"""A chat goes on after a question that cannot be answered."""

import io
import sys

from colossal_llama.inference.api import open_model
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.chat import chat


def test_a_question_that_is_too_long_leaves_the_conversation_as_it_was(random_model_directory, monkeypatch):
    model = open_model(random_model_directory, device="cpu", prompt_style="sft")
    sampling = Sampling(do_sample=False, max_new_tokens=4)
    too_long = "word " * 400
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"first\n{too_long}\nthird\n"))
    said: list[str] = []
    shown: list[str] = []
    first, third = chat(model, sampling, shown.append, said.append)
    assert any("positions" in text for text in said)
    known = model.chat("first", sampling=sampling)
    known.finish()
    assert third.text == model.chat("third", known.history, sampling).finish().text
    assert "".join(shown) == f"Assistant: {first.text}\nAssistant: {third.text}\n"


def test_an_interrupted_answer_is_not_in_the_history(random_model_directory, monkeypatch):
    model = open_model(random_model_directory, device="cpu", prompt_style="sft")
    sampling = Sampling(do_sample=False, max_new_tokens=4)
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\nsecond\n"))
    said: list[str] = []
    interrupts = iter((KeyboardInterrupt(),))

    def show(text: str) -> None:
        if not text.startswith("Assistant") and (interrupt := next(interrupts, None)):
            raise interrupt

    (answer,) = chat(model, sampling, show, said.append)
    assert "interrupted" in said
    assert answer.text == model.chat("second", sampling=sampling).finish().text
