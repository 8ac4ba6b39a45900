"""Input of which no record can be used: the reason is shown by an example, and nothing is left."""

import json

import pytest

from colossal_llama.cleaning.clean_corpus import parse_arguments
from colossal_llama.cleaning.pipeline import clean
from colossal_llama.utils.errors import UserError

CONVERSATION = {
    "messages": [{"from": "human", "content": "What is a ferry?"}, {"from": "assistant", "content": "A boat."}]
}
DOCUMENT = {"source": "", "target": "The ferry leaves at noon.", "category": "en"}


@pytest.mark.parametrize(
    ("lines", "preset", "said"),
    [
        (["", "  "], "web", "(the files are empty)"),
        ([json.dumps(CONVERSATION)], "web", "--preset conversations cleans them"),
        ([json.dumps(DOCUMENT)], "conversations", "another --preset than conversations cleans them"),
        (["{", "[1]", "{"], "web", "broken_json 2, not_an_object 1"),
        (["{", "[1]", "{"], "web", "raw/a.jsonl:2: a JSON object is needed"),
    ],
)
def test_the_reason_is_shown_and_other_files_can_be_given(tmp_path, lines, preset, said):
    raw, output = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "a.jsonl").write_text("\n".join(lines) + "\n")
    command = ["--data_input_dirs", str(raw), "--output_dir", str(output), "--preset", preset, "--num_workers", "1"]
    with pytest.raises(UserError) as raised:
        clean(parse_arguments(command))
    assert said in str(raised.value)
    assert not output.exists()
    (raw / "b.jsonl").write_text(json.dumps(CONVERSATION if preset == "conversations" else DOCUMENT) + "\n")
    assert clean(parse_arguments(command)) is not None
