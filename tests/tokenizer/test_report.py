"""report.py counts what transformers' tokenizers give."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.transformers_version import is_transformers_5
from tests.support.tokenizer_scripts import read_jsonl, run_tokenizer_script

FAMILIES = ["llama2", "llama3-base"]


def test_the_report_counts_what_there_is(project_root, any_data, corpus_directory, tmp_path):
    directories = {name: any_data / "tokenizers" / name for name in FAMILIES}
    named = [f"{name}={directory}" for name, directory in directories.items()]
    options = [
        "--data_input_dirs",
        f"{corpus_directory},{corpus_directory / 'talk'}",
        "--output_file",
        tmp_path / "report.json",
    ]
    run = run_tokenizer_script(project_root, "report.py", "--tokenizers", *named, *options)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    texts = {"notes": [(corpus_directory / "notes" / "a.txt").read_text("utf-8")]}
    for path in corpus_directory.rglob("*.jsonl"):
        for record in read_jsonl(path):
            text = (
                "\n".join(message["content"] for message in record["messages"])
                if "messages" in record
                else record["source"] + record["target"]
            )
            texts.setdefault(record.get("category") or path.parent.name, []).append(text)
    for name, directory in directories.items():
        # transformers 5 counts otherwise itself: it passes over the scores of a tokenizer.model.
        tokenizer = (load_tokenizer if is_transformers_5() else AutoTokenizer.from_pretrained)(directory)
        figures = report["tokenizers"][name]
        assert figures["vocab_size"] == len(tokenizer)
        assert set(figures["categories"]) == set(texts)
        for category, documents in texts.items():
            found = figures["categories"][category]
            encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
            assert found["documents"] == len(documents)
            assert found["characters"] == sum(map(len, documents))
            assert found["tokens"] == sum(map(len, encoded))
            decoded = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in encoded]
            assert found["round_trip_failures"] == sum(
                back != text for back, text in zip(decoded, documents, strict=True)
            )
        total = figures["total"]
        assert total["tokens"] == sum(one["tokens"] for one in figures["categories"].values())
        assert f"{total['tokens']:,}" in run.stdout
        assert total["tokens_per_character"] == pytest.approx(total["tokens"] / total["characters"])
    vocabulary = AutoTokenizer.from_pretrained(directories["llama2"]).get_vocab()
    for category, documents in texts.items():  # LLaMA-2 cuts exactly the characters it lacks; a line break is one byte
        characters = Counter("".join(documents))
        lacking = sum(n for c, n in characters.items() if c not in vocabulary and ord(c) >= 128)
        assert report["tokenizers"]["llama2"]["categories"][category]["characters_in_bytes"] == lacking
    notes = report["tokenizers"]["llama3-base"]["categories"]["notes"]
    assert notes["characters_in_bytes"] == 3 * len("螃蟹𝔊")
