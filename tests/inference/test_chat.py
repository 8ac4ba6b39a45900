"""A chat goes on after a question that cannot be answered."""

import io
import sys

from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.inference.chat import chat
from colossal_llama.inference.generation import Sampling, TextGenerator
from colossal_llama.inference.prompts import (
    conversation_prompt_ids,
)
from colossal_llama.tokenizer.loading import load_tokenizer

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)


def test_a_question_that_is_too_long_leaves_the_conversation_as_it_was(random_model, llama2, monkeypatch):
    template = ConversationTemplate.for_llama(load_tokenizer(llama2), 2)
    generator = TextGenerator(random_model, load_tokenizer(llama2), {2}, GREEDY, 4)
    prompts = []
    generate = generator.generate
    monkeypatch.setattr(generator, "generate", lambda ids, show: (prompts.append(ids), generate(ids, show))[1])
    too_long = "word " * generator.max_positions
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"first\n{too_long}\nthird\n"))
    said = []
    first, _ = chat(generator, template, None, lambda text: None, said.append)
    assert any("positions" in text for text in said)
    messages = [Message("human", "first"), Message("assistant", first.text), Message("human", "third")]
    assert prompts[-1] == conversation_prompt_ids(template, messages)
