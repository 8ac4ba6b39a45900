"""Opening a tokenizer without transformers gives, to the byte, what transformers makes of the directory, or is not done."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from colossal_llama.tokenizer.direct_loading import DirectTokenizer, open_directly
from colossal_llama.tokenizer.loading import load_encoding_tokenizer, load_tokenizer, tokenizer_fingerprint
from colossal_llama.utils.errors import UserError

WORDS = "the then there other mother 人民 人工 智能 人工智能 中国 中国人 running runs run ▁ a"
ADDED = {
    "0": {"content": "<unk>", "special": True},
    "1": {"content": "<s>", "special": True},
    "2": {"content": "</s>", "special": True},
}
PLAIN = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "added_tokens_decoder": {
        index: {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **token}
        for index, token in ADDED.items()
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """A sentencepiece BPE model of 320 pieces, two of them control and user-defined tokens."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20), model_prefix=str(directory / "tokenizer"), vocab_size=320,
        model_type="bpe", byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
        control_symbols=["<control>"], user_defined_symbols=["<user>"],
    )  # fmt: skip
    return directory / "tokenizer.model"


def everything(tokenizer) -> dict:
    return {
        "definition": tokenizer.backend_tokenizer.to_str(),
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "special": (tokenizer.bos_token, tokenizer.bos_token_id, tokenizer.eos_token, tokenizer.eos_token_id),
        "size": len(tokenizer),
        "added": {index: repr(token) for index, token in tokenizer.added_tokens_decoder.items()},
        "name": tokenizer.name_or_path,
    }


def outcome(load, directory: Path):
    try:
        return everything(load(directory))
    except UserError as error:
        return error.problems


@pytest.mark.parametrize("name", ["llama2", "llama3-base", "llama3-instruct"])
def test_the_real_tokenizers_are_opened_directly_and_are_the_same(name, shared_data):
    directory = shared_data / "tokenizers" / name
    opened = open_directly(directory)
    assert isinstance(opened, DirectTokenizer)
    assert everything(opened) == everything(AutoTokenizer.from_pretrained(directory))


SWITCHES = ("legacy", "add_prefix_space", "add_bos_token", "add_eos_token")
OTHER_SETTINGS = [
    {}, {"pad_token": "</s>"}, {"pad_token": "<pad>"}, {"pad_token": None}, {"unk_token": None}, {"eos_token": None},
    {"bos_token": "<user>"}, {"bos_token": "the"}, {"eos_token": {"__type": "AddedToken", "content": "</s>"}},
    {"additional_special_tokens": ["<more>"]}, {"additional_special_tokens": []}, {"extra_special_tokens": {"x": "<x>"}},
    {"split_special_tokens": True}, {"from_slow": True}, {"mask_token": "<mask>"}, {"model_max_length": 64},
    {"chat_template": "{{ bos_token }}"}, {"sp_model_kwargs": {"enable_sampling": True}}, {"legacy": "yes"},
    {"tokenizer_class": None}, {"tokenizer_class": "GPT2Tokenizer"}, {"padding_side": "left"},
    {"tokenizer_class": "LlamaTokenizerFast"}, {"tokenizer_class": "PreTrainedTokenizerFast"},
]  # fmt: skip
MORE_TOKENS = [
    {}, {"320": {"content": "<pad>", "special": True}}, {"320": {"content": "<pad>"}}, {"320": "<pad>"},
    {"321": {"content": "<late>", "special": False}}, {"2": {"content": "<other>", "special": True}},
    {"1": {"content": "<s>", "special": False}}, {"1": {"content": "<s>", "lstrip": True, "special": True}},
    {"1": {"content": "</s>", "special": True}, "2": {"content": "<s>", "special": True}},
    {"7": {"content": "the", "special": True}}, {"3": {"content": "<control>", "special": False}},
    {"4": {"content": "<user>", "special": True}},
]  # fmt: skip
FILES = ["model", "both", "json", "neither", "broken model"]


def outcome_is_the_same(directory: Path, model_file: Path, files: str, *changes: dict) -> bool:
    """Checks a directory made with the changes; returns whether it was opened directly."""
    config = {**PLAIN}
    for change in changes:
        config |= change
    write_directory(directory, model_file, config, files)
    assert outcome(load_encoding_tokenizer, directory) == outcome(load_tokenizer, directory)
    return open_directly(directory) is not None


def added(tokens: dict) -> dict:
    return {"added_tokens_decoder": PLAIN["added_tokens_decoder"] | tokens}


def test_each_thing_by_itself_has_the_outcome_of_transformers(model_file, tmp_path):
    """Also the errors; a tokenizer.json beside the model says something else, so that taking the wrong file is seen."""
    changes = [{name: value} for name in SWITCHES for value in (None, True, False)]
    changes += OTHER_SETTINGS + [added(tokens) for tokens in MORE_TOKENS]
    directly = [outcome_is_the_same(tmp_path, model_file, "model", change) for change in changes]
    assert all(directly[: 3 * len(SWITCHES)])  # nothing unusual in a switch
    for files in FILES[1:]:
        for prefix in ({}, {"add_prefix_space": True}):
            outcome_is_the_same(tmp_path, model_file, files, prefix)


def test_all_things_together_have_the_outcome_of_transformers(model_file, tmp_path):
    directly = []

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        switches=st.dictionaries(st.sampled_from(SWITCHES), st.sampled_from([None, True, False])),
        files=st.sampled_from(FILES),
        other=st.just({}) | st.sampled_from(OTHER_SETTINGS),
        more=st.just({}) | st.sampled_from(MORE_TOKENS),
    )
    def check(switches, files, other, more):
        directly.append(outcome_is_the_same(tmp_path, model_file, files, other, switches, added(more)))

    check()
    assert any(directly)
    assert not all(directly)


def write_directory(directory: Path, model_file: Path, config: dict, files: str = "model") -> None:
    for path in directory.iterdir():
        path.unlink()
    if files in ("model", "both"):
        shutil.copy(model_file, directory / "tokenizer.model")
    if files == "broken model":
        (directory / "tokenizer.model").write_bytes(model_file.read_bytes()[:-100])
    if files in ("json", "both"):
        (directory / "tokenizer.json").write_text(other_definition(model_file))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def other_definition(model_file: Path) -> str:
    """The model's tokenizer.json without its last three merges, which builds other ids."""
    directory = model_file.parent / "plain"
    if not directory.exists():
        directory.mkdir()
        write_directory(directory, model_file, PLAIN)
    definition = json.loads(load_tokenizer(directory).backend_tokenizer.to_str())
    del definition["model"]["merges"][-3:]
    return json.dumps(definition)


def test_preparing_imports_neither_transformers_nor_what_datasets_needs(shared_data, tmp_path, project_root):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"source": "", "target": "Some text.", "category": "a"}\n' * 5)
    code = f"""
import sys
from colossal_llama.dataset.prepare.cli import run
sys.argv += ["--data_input_dirs", {str(tmp_path / "in")!r}, "--data_output_dirs", {str(tmp_path / "out")!r},
             "--tokenizer_dir", {str(shared_data / "tokenizers" / "llama2")!r}, "--num_workers", "1"]
run("pretrain")
loaded = set(sys.modules) & {{"transformers", "torch", "pandas", "datasets", "huggingface_hub"}}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=project_root, check=True, capture_output=True, text=True)
