"""Answers that are there are kept when a file of prompts is interrupted."""

import json

import pytest

from colossal_llama.inference.api import open_model
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.batch import generate_file


def test_an_interrupted_file_of_answers_is_kept(random_model_directory, tmp_path, monkeypatch):
    model = open_model(random_model_directory, device="cpu")
    answers = model.answers

    def interrupted(prompts, sampling):
        for number, completion in enumerate(answers(prompts, sampling)):
            if number == 2:
                raise KeyboardInterrupt
            yield completion

    monkeypatch.setattr(model, "answers", interrupted)
    records = [{"id": number} for number in range(4)]
    sampling = Sampling(do_sample=False, max_new_tokens=4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        generate_file(model, sampling, records, ["a"] * 4, tmp_path / "out.jsonl")
    (kept,) = tmp_path.iterdir()
    assert kept.name == "out.partial.jsonl"
    assert [json.loads(line)["id"] for line in kept.read_text("utf-8").splitlines()] == [0, 1]
