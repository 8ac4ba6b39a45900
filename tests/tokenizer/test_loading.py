"""Opening a tokenizer: fingerprints stay, damage is named, preparation's processes stay small."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.transformers_version import is_transformers_5

FINGERPRINTS = {
    "llama2": "ba9161553283686f73c04fdb8e87ada6675d00235018e9a155963520fbd9b249",
    "llama3-base": "a4556cb3e0c5e42f166b44d1c8e84bf7c03f94a9b135e509ee44afe2be352629",
    "llama3-instruct": "4a8181f5ff0c9ee530d83170cb04ef0f6ab127374b3dc61bd42605c6432fb0e7",
}
TEXTS = ["", " ", "The cat sat.", "  two spaces\n\nand 人工智能，龘 😀", "<s> and <|eot_id|>", "don't 1234567"]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_fingerprint_is_the_one_in_existing_manifests(name, shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    assert tokenizer_fingerprint(tokenizer) == FINGERPRINTS[name]
    assert tokenizer_fingerprint(tokenizer, tokenizer.backend_tokenizer.to_str()) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_ids_are_those_of_transformers_where_it_takes_control_tokens_as_text(name, any_data):
    tokenizer = load_tokenizer(any_data / "tokenizers" / name)
    encoder = pickle.loads(pickle.dumps(TextEncoder(tokenizer)))  # as a worker process gets it
    expected = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS]
    assert encoder.encode_beginning(TEXTS) == expected


def llama2_copy(made_data: Path, directory: Path, **settings) -> Path:
    """A copy of the LLaMA-2 tokenizer with other settings in its tokenizer_config.json."""
    shutil.copytree(made_data / "tokenizers" / "llama2", directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda directory: [path.unlink() for path in directory.glob("tokenizer.*")], "holds no tokenizer"),
        (
            lambda directory: (directory / "tokenizer.model").write_bytes(b"\x00damaged"),
            "cannot be loaded|is not a sentence",
        ),
    ],
)
def test_a_damaged_directory_is_named(made_data, tmp_path, damage, message):
    directory = llama2_copy(made_data, tmp_path / "copy")
    damage(directory)
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer(directory)
    assert str(directory) in str(raised.value)


def test_a_tokenizer_without_eos_is_refused(made_data, tmp_path):
    directory = llama2_copy(made_data, tmp_path / "copy", eos_token=None)
    (directory / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no eos_token"):
        load_tokenizer(directory)


def imported_modules(root: Path, code: str, *arguments) -> set[str]:
    """Runs Python code in a new process; gives the modules that it has imported at its end."""
    code += "\nimport sys\nprint(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_a_worker_imports_neither_transformers_nor_torch(made_data, tmp_path, project_root):
    """What the workers' fork server imports, and what unpickling the encoder imports."""
    encoder = TextEncoder(load_tokenizer(made_data / "tokenizers" / "llama2"))
    (tmp_path / "encoder").write_bytes(pickle.dumps(encoder))
    code = """
import pickle, sys
from colossal_llama.dataset.prepare import worker_pool
for name in worker_pool._PRELOADED:
    __import__(name)
encoder = pickle.load(open(sys.argv[1], "rb"))
assert encoder.encode_beginning(["Some text."])[0]"""
    loaded = imported_modules(project_root, code, tmp_path / "encoder")
    assert not loaded & {"transformers", "torch", "pandas", "datasets", "huggingface_hub"}


@pytest.mark.skipif(is_transformers_5(), reason="transformers 5 imports PyTorch for any tokenizer")
def test_preparing_imports_no_torch(made_data, tmp_path, project_root):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"source": "", "target": "Some text.", "category": "a"}\n' * 5)
    code = f"""
import runpy, sys
sys.argv += ["--data_input_dirs", {str(tmp_path / "in")!r}, "--data_output_dirs", {str(tmp_path / "out")!r},
             "--tokenizer_dir", {str(made_data / "tokenizers" / "llama2")!r}, "--num_workers", "1"]
runpy.run_path("prepare_pretrain_dataset.py", run_name="__main__")"""
    loaded = imported_modules(project_root, code)
    assert not loaded & {"torch", "pandas", "datasets"}
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": ["code.Slow", "code.Fast"]}, {"AutoConfig": "code.C"}, ["code.Slow", None], "code.X"]
)
def test_code_of_a_directory_never_runs_and_nothing_is_asked(made_data, tmp_path, monkeypatch, file, auto_map):
    directory = llama2_copy(made_data, tmp_path / "copy")
    (directory / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    settings = json.loads((directory / file).read_text()) if (directory / file).exists() else {"model_type": "other"}
    (directory / file).write_text(json.dumps(settings | {"auto_map": auto_map}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"auto_map.*never run"):
        load_tokenizer(directory)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'{"a": ', b"\xff\xfe", b"[" * 100_000, b""])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_configuration_that_is_no_json_object_is_named(made_data, tmp_path, file, content):
    directory = llama2_copy(made_data, tmp_path / "copy")
    (directory / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        load_tokenizer(directory)


def test_one_id_for_two_tokens_is_refused(made_data, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(made_data / "tokenizers" / "llama3-base", directory)
    definition = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    definition["model"]["vocab"]["zzz"] = 300
    (directory / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    with pytest.raises(UserError, match=r"one id for several tokens.*300 is .*'zzz'"):
        load_tokenizer(directory)
