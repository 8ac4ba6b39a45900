"""Models by name: real clients against a server of this host that speaks the hub's protocol.

Each command is a process of its own, as the clients read their variables when they are imported.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colossal_llama.utils.hub.names import ModelName, directory_or_name, missing_directory_problem, path_or_name
from tests.support.client_environments import environment_or_skip
from tests.support.hub_server import TOKEN, HubServer

CONFIG = {"model_type": "llama", "vocab_size": 8}
MODEL = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "generation_config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4000,
}
UNWANTED = {
    "pytorch_model.bin": b"x",
    "consolidated.safetensors": b"x" * 9,
    "modeling_custom.py": b"raise SystemExit",
    "model.gguf": b"x",
    "model.onnx": b"x",
    "original/consolidated.00.pth": b"x",
    "README.md": b"# card",
}
SHARDED = {
    **{name: data for name, data in MODEL.items() if name != "model.safetensors"},
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    ).encode(),
    "m-1.safetensors": b"1" * 100_000,
    "m-2.safetensors": b"2" * 100_000,
    "m-3.safetensors": b"of another program",
}


@pytest.fixture(name="hub")
def running_hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


def get_model(project_root: Path, hub: HubServer, home: Path, *arguments: object, **variables: str):
    command = [sys.executable, "-m", "colossal_llama", "get_model", *map(str, arguments)]
    environment = {**hub.environment(home, **variables), "PYTHONPATH": str(project_root)}
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)


def snapshot(home: Path, name: str, commit: str) -> Path:
    return home / "hf" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / commit


def visible(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.startswith(".")}


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("meta-llama/Llama-3.1-8B", ModelName("meta-llama/Llama-3.1-8B")),
        ("org/name@v1.0", ModelName("org/name", "v1.0")),
        ("org/name@refs/pr/3", ModelName("org/name", "refs/pr/3")),
        ("modelscope:LLM-Research/Meta-Llama-3-8B", ModelName("LLM-Research/Meta-Llama-3-8B", None, "modelscope")),
        ("modelscope:org/name@v2", ModelName("org/name", "v2", "modelscope")),
    ],
)
def test_names_of_repositories(text, found):
    assert path_or_name(text) == found
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "./org/name",
        "/org/name",
        "~/name",
        "gpt2",
        "a/b/c",
        "org/",
        "/name",
        "org/name@",
        "org/na me",
        "org/../name",
        "org/-name",
        "https://huggingface.co/org/name",
        "modelscope:gpt2",
        "org/a--b",
        "org\\name",
        "org/name\n",
        ".",
        "",
    ],
)
def test_what_is_no_name_stays_a_path(text):
    assert path_or_name(text) == Path(text)


def test_a_directory_wins_and_so_does_its_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_or_name("models/llama") == ModelName("models/llama")
    (tmp_path / "models" / "Llama-2").mkdir(parents=True)
    assert path_or_name("models/Llama-2") == Path("models/Llama-2")
    problem = missing_directory_problem(Path("models/llama2"))
    assert problem is not None
    assert "did you mean the directory models/Llama-2?" in problem
    assert "models/llama2@main" in problem
    assert directory_or_name("models/llama2@main") == ModelName("models/llama2", "main")
    assert "ORG/gpt2" in str(missing_directory_problem(Path("gpt2")))
    assert "modelscope:ORG/NAME" in str(missing_directory_problem(Path("modelscope:gpt2")))


# -------------------------------------------------------------------------------------- downloads


def test_only_what_a_model_needs_is_downloaded_and_used_again_offline(project_root, hub, tmp_path):
    commit = hub.add("org/model", {**MODEL, **UNWANTED})
    done = get_model(project_root, hub, tmp_path, "org/model", "--tokenizer_only")
    assert done.returncode == 0, done.stderr
    assert visible(snapshot(tmp_path, "org/model", commit)) == {
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    }
    done = get_model(project_root, hub, tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    for said in ("HF_HUB_OFFLINE=1 is set", "is not whole", str(tmp_path / "hf" / "hub"), "get_model org/model"):
        assert said in done.stderr
    done = get_model(project_root, hub, tmp_path, "org/model")
    assert done.returncode == 0, done.stderr
    assert f"org/model at revision {commit}, from {snapshot(tmp_path, 'org/model', commit)}" in done.stdout
    assert visible(snapshot(tmp_path, "org/model", commit)) == set(MODEL)
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = get_model(project_root, hub, tmp_path, "org/model", **offline)
        assert done.returncode == 0, done.stderr
        assert "the copy in the cache is used" in done.stdout
    hub.requests.clear()
    assert get_model(project_root, hub, tmp_path, f"org/model@{commit}").returncode == 0
    assert hub.requests == []  # a commit always means the same files


def test_shards_are_those_of_the_index(project_root, hub, tmp_path):
    commit = hub.add("org/sharded", SHARDED)
    done = get_model(project_root, hub, tmp_path, "org/sharded")
    assert done.returncode == 0, done.stderr
    directory = snapshot(tmp_path, "org/sharded", commit)
    assert visible(directory) == set(SHARDED) - {"m-3.safetensors"}
    (directory / "m-2.safetensors").unlink()
    done = get_model(project_root, hub, tmp_path, "org/sharded", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "m-2.safetensors is missing" in done.stderr
    (directory / ".hub_source.json").unlink()  # as another program's download
    done = get_model(project_root, hub, tmp_path, "org/sharded", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "m-2.safetensors is missing" in done.stderr
    assert get_model(project_root, hub, tmp_path, "org/sharded").returncode == 0


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../../m-1.safetensors"}}, "names '../../m-1.safetensors'"),
        ({"weight_map": {"a": "m-9.safetensors"}}, "names 'm-9.safetensors'"),
        ({"weight_map": []}, "names no file"),
        ([], "is not a JSON object"),
    ],
)
def test_an_index_of_other_files_is_refused(project_root, hub, tmp_path, index, said):
    hub.add("org/sharded", {**SHARDED, "model.safetensors.index.json": json.dumps(index).encode()})
    done = get_model(project_root, hub, tmp_path, "org/sharded")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_that_breaks_off_goes_on_where_it_stopped(project_root, hub, tmp_path):
    commit = hub.add("org/model", MODEL)
    hub.break_off_after["model.safetensors"] = 300_000
    done = get_model(project_root, hub, tmp_path, "org/model")
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path, "org/model", commit) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_pickled_weights_are_refused_before_anything_is_downloaded(project_root, hub, tmp_path):
    hub.add("org/pickled", {**{n: d for n, d in MODEL.items() if n != "model.safetensors"}, **UNWANTED})
    done = get_model(project_root, hub, tmp_path, "org/pickled")
    assert done.returncode == 2
    assert "has no safetensors, only model.gguf, model.onnx, pytorch_model.bin" in done.stderr
    assert hub.downloads() == []


def test_code_is_refused_before_the_weights_are_downloaded(project_root, hub, tmp_path):
    custom = json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling_custom.Model"}}).encode()
    hub.add("org/custom", {**MODEL, **UNWANTED, "config.json": custom})
    done = get_model(project_root, hub, tmp_path, "org/custom")
    assert done.returncode == 2
    assert "names custom code (auto_map)" in done.stderr
    assert not {"model.safetensors", "modeling_custom.py"} & set(hub.downloads())
    done = get_model(project_root, hub, tmp_path, "org/custom", "--output_dir", tmp_path / "copy")  # to edit it
    assert done.returncode == 0, done.stderr
    assert "warning: " in done.stdout
    assert "auto_map" in done.stdout


def test_refusals_of_the_hub_say_what_to_do(project_root, hub, tmp_path):
    hub.add("org/model", MODEL)
    hub.add("org/gated", MODEL, gated=True)
    hub.add("org/private", MODEL, private=True)
    cases = {
        "org/gated": ("is gated: accept its terms on", "HF_TOKEN"),
        "org/private": ("or it is private", "HF_TOKEN"),
        "org/nothing": ("has no model org/nothing",),
        "org/model@v9": ("has no revision v9",),
    }
    for name, said in cases.items():
        done = get_model(project_root, hub, tmp_path, name)
        assert done.returncode == 2
        assert all(text in done.stderr for text in said), done.stderr
        assert "Traceback" not in done.stderr
    for name in ("org/gated", "org/private"):
        assert get_model(project_root, hub, tmp_path, name, HF_TOKEN=TOKEN).returncode == 0


def test_a_hub_that_fails_or_keeps_silent_is_given_up_soon(project_root, hub, tmp_path):
    hub.add("org/model", MODEL)
    hub.status = 503
    done = get_model(project_root, hub, tmp_path, "org/model")
    assert done.returncode == 2
    assert "HTTP 503" in done.stderr
    hub.status, hub.silent_s = None, 60
    started = time.monotonic()
    done = get_model(project_root, hub, tmp_path, "org/model")
    assert done.returncode == 2
    assert "no answer in time" in done.stderr
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------------------ plain directories


def test_get_model_makes_a_plain_directory_and_goes_on_after_an_interruption(project_root, hub, tmp_path):
    commit = hub.add("org/sharded", {**SHARDED, **UNWANTED})
    target = tmp_path / "copy"
    hub.break_off_after["m-2.safetensors"] = 10_000
    hub.always_breaks = True
    done = get_model(project_root, hub, tmp_path, "org/sharded", "--output_dir", target)
    assert done.returncode == 2
    assert "goes on where it stopped" in done.stderr
    assert not target.exists()
    hub.break_off_after.clear()
    hub.requests.clear()
    done = get_model(project_root, hub, tmp_path, "org/sharded", "--output_dir", target)
    assert done.returncode == 0, done.stderr
    assert not any("m-1.safetensors" in request for request in hub.requests if request.startswith("GET /cdn"))
    assert visible(target) == set(SHARDED) - {"m-3.safetensors"}
    assert f"at revision {commit} → {target}" in done.stdout
    assert f"train.py --pretrained {target}" in done.stdout
    assert [path.name for path in target.iterdir() if path.name.startswith(".")] == [".hub_source.json"]
    assert not any(path.is_symlink() for path in target.iterdir())
    done = get_model(project_root, hub, tmp_path, "org/sharded", "--output_dir", target)
    assert "is whole already" in done.stdout
    hub.add("org/sharded", {**SHARDED, "m-1.safetensors": b"new"})
    done = get_model(project_root, hub, tmp_path, "org/sharded", "--output_dir", target)
    assert done.returncode == 2
    assert "give a new name" in done.stderr
    assert (target / "m-1.safetensors").read_bytes() == SHARDED["m-1.safetensors"]


def test_content_that_is_not_the_hubs_is_not_kept(project_root, hub, tmp_path):
    """The server's checksums are of other bytes of the same length than those that it sends."""
    commit = hub.add("org/model", MODEL)
    wrong = bytes(len(MODEL["model.safetensors"]))
    hub.served_instead["model.safetensors"] = wrong
    done = get_model(project_root, hub, tmp_path, "org/model", "--output_dir", tmp_path / "copy")
    assert done.returncode == 2
    assert "its checksum differs" in done.stderr
    assert not (tmp_path / "copy").exists()
    hub.served_instead.clear()
    shutil.rmtree(snapshot(tmp_path, "org/model", commit), ignore_errors=True)
    done = get_model(project_root, hub, tmp_path, "org/model", "--output_dir", tmp_path / "copy")
    assert done.returncode == 0, done.stderr


def test_a_foreign_directory_is_left_untouched(project_root, hub, tmp_path):
    (tmp_path / "mine").mkdir()
    done = get_model(project_root, hub, tmp_path, "org/model", "--output_dir", tmp_path / "mine")
    assert done.returncode == 2
    assert "exists already and is left untouched" in done.stderr
    assert hub.requests == []
    assert os.listdir(tmp_path / "mine") == []  # noqa: PTH208


# ------------------------------------------------------------------------------------ ModelScope


@pytest.mark.slow
def test_modelscopes_client_downloads_the_same_files(project_root, hub, tmp_path):
    python = environment_or_skip("modelscope", ["modelscope==1.40.2"])
    hub.add("org/model", {**MODEL, **UNWANTED})
    environment = {**hub.environment(tmp_path), "PYTHONPATH": str(project_root)}

    def get(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
        command = [str(python), "-m", "colossal_llama", "get_model", *map(str, arguments)]
        return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)

    done = get("modelscope:org/model", "--output_dir", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "copy" / name).read_bytes() == data for name, data in MODEL.items())
    assert visible(tmp_path / "copy") == set(MODEL)
    assert get("modelscope:org/model").returncode == 0
    done = get("modelscope:org/model", MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "the copy in the cache is used" in done.stdout
    done = get("modelscope:org/none")
    assert done.returncode == 2
    assert "MODELSCOPE_API_TOKEN" in done.stderr


def test_the_package_of_modelscope_is_named_where_it_is_missing(project_root, hub, tmp_path):
    if importlib.util.find_spec("modelscope_hub") is not None:
        pytest.skip("it is installed here")
    done = get_model(project_root, hub, tmp_path, "modelscope:org/model")
    assert done.returncode == 2
    assert "pip install 'modelscope" in done.stderr
