"""Answers that are there are kept when a file of prompts is interrupted."""

import json

import pytest

from colossal_llama.inference.batch import generate_file
from colossal_llama.inference.generation import Sampling, TextGenerator
from colossal_llama.tokenizer.loading import load_tokenizer

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)


def test_an_interrupted_file_of_answers_is_kept(random_model, llama2, tmp_path, monkeypatch):
    generator = TextGenerator(random_model, load_tokenizer(llama2), {2}, GREEDY, 4)
    answers, generate = iter(range(2)), generator.generate

    def interrupted(prompt_ids):
        if next(answers, None) is None:
            raise KeyboardInterrupt
        return generate(prompt_ids)

    monkeypatch.setattr(generator, "generate", interrupted)
    records = [{"id": number} for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        generate_file(generator, records, [[1, 5, 6]] * 4, tmp_path / "out.jsonl", seed=0)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "out.partial.jsonl"
    assert [json.loads(line)["id"] for line in kept.read_text("utf-8").splitlines()] == [0, 1]
