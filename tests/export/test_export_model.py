"""Export: the same tensors bit for bit, a complete directory, or a sentence and nothing written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.export.arguments import parse_arguments
from colossal_llama.export.directory import export
from colossal_llama.model.pretrained import load_for_inference
from colossal_llama.tokenizer.settings_file import settings_contents
from colossal_llama.utils.checksums import differences, read_checksums
from colossal_llama.utils.errors import UserError
from tests.support.bin_weights import convert_to_bin
from tests.support.scripts import run_script

SCRIPT = "colossal_llama/export/export_model.py"


def run(source: Path, target: Path, *options: object) -> Path:
    export(parse_arguments(["--model_path", str(source), "--output_dir", str(target), *map(str, options)]))
    return target


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        inside = load_file(path)
        assert not found.keys() & inside.keys()
        found |= inside
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def tied(llama2, tmp_path_factory) -> Path:
    """A random model with tied embeddings, in bf16."""
    directory = tmp_path_factory.mktemp("tied") / "model"
    tokenizer = AutoTokenizer.from_pretrained(llama2)
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 11, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=128, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter(random_model_directory, tmp_path_factory) -> Path:
    return make_adapter(random_model_directory, tmp_path_factory.mktemp("adapter") / "zh")


def make_adapter(base: Path, directory: Path, **settings: object) -> Path:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype="auto")
    given = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "up_proj"], **settings}
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data += torch.randn_like(parameter) / 10
    adapted.save_pretrained(directory)
    change_json(directory / "adapter_config.json", base_model_name_or_path=str(base))
    return directory


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "sharded bin"])
def test_every_layout_gives_the_same_tensors_bit_for_bit(random_model_directory, layout, tmp_path):
    model = LlamaForCausalLM.from_pretrained(random_model_directory)
    size = "100KB" if "sharded" in layout else "5GB"
    shutil.copytree(random_model_directory, tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "source", max_shard_size=size)
    if "bin" in layout:
        convert_to_bin(tmp_path / "source")
    expected = model.state_dict()
    one = run(tmp_path / "source", tmp_path / "one")
    assert [path.name for path in one.glob("*.safetensors*")] == ["model.safetensors"]
    assert_equal(tensors_of(one), expected)
    many = run(tmp_path / "source", tmp_path / "many", "--max_shard_size", "100KB")
    assert_equal(tensors_of(many), expected)
    index = json.loads((many / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    sizes = [path.stat().st_size for path in many.glob("*.safetensors")]
    assert len(sizes) > 3
    loaded = AutoModelForCausalLM.from_pretrained(many, torch_dtype="auto")
    assert_equal(loaded.state_dict(), expected)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_dtype_is_rounded_as_pytorch_rounds(random_model_directory, stored, dtype, tmp_path):
    model = LlamaForCausalLM.from_pretrained(random_model_directory, torch_dtype=getattr(torch, stored))
    shutil.copytree(random_model_directory, tmp_path / "source")
    model.save_pretrained(tmp_path / "source")
    done = run(tmp_path / "source", tmp_path / "done", "--dtype", dtype)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    assert_equal(tensors_of(done), expected)
    assert json.loads((done / "config.json").read_text())["torch_dtype"] == dtype
    assert "dtype" not in json.loads((done / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(done, torch_dtype="auto").dtype == getattr(torch, dtype)


def test_values_that_a_dtype_cannot_hold_are_refused_or_counted(random_model_directory, tmp_path):
    shutil.copytree(random_model_directory, tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.norm.weight"][:3] = torch.tensor([1e-9, -1e-9, 6e4])
    save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    done = run(tmp_path / "source", tmp_path / "done", "--dtype", "float16")
    assert json.loads((done / "export.json").read_text())["values_that_became_zero"] == 2
    for value, problem in (
        (7e4, r"model\.norm\.weight has 1 values beyond the range of float16 .*70000.*--dtype bfloat16"),
        (float("nan"), r"model\.norm\.weight has NaN or Inf"),
        (float("-inf"), r"model\.norm\.weight has NaN or Inf"),
    ):
        tensors["model.norm.weight"][5] = value
        save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=problem):
            run(tmp_path / "source", tmp_path / "refused", "--dtype", "float16")
        assert not [path for path in tmp_path.iterdir() if "refused" in path.name]


def test_tied_embeddings_are_stored_once(tied, tmp_path):
    tensors = load_file(tied / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert_equal(tensors_of(run(tied, tmp_path / "as_it_is")), tensors)
    shutil.copytree(tied, tmp_path / "twice")
    both = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(both, tmp_path / "twice" / "model.safetensors", {"format": "pt"})
    assert_equal(tensors_of(run(tmp_path / "twice", tmp_path / "once")), tensors)
    both["lm_head.weight"][0, 0] += 1
    save_file(both, tmp_path / "twice" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"config\.json ties lm_head\.weight .* and the weight files hold both"):
        run(tmp_path / "twice", tmp_path / "refused")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["lora", "rslora", "dora", "embeddings", "modules_to_save"],
)
def test_merged_is_what_peft_merges_bit_for_bit(random_model_directory, settings, tmp_path):
    adapter = make_adapter(random_model_directory, tmp_path / "adapter", **settings)
    base = AutoModelForCausalLM.from_pretrained(random_model_directory, torch_dtype="auto")
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    merged = run(adapter, tmp_path / "merged", "--merge", "--max_shard_size", "200KB")
    assert_equal(tensors_of(merged), expected)
    assert not (merged / "adapter_config.json").exists()
    assert json.loads((merged / "export.json").read_text())["base"] == "random"
    loaded, _ = load_for_inference(merged, "auto", torch.device("cpu"))
    assert_equal(loaded.state_dict(), expected)


def test_an_adapter_that_replaces_a_tied_matrix_is_merged_to_what_it_computed(tied, tmp_path):
    adapter = make_adapter(tied, tmp_path / "adapter", modules_to_save=["lm_head"])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied, torch_dtype="auto"), adapter)
    merged = run(adapter, tmp_path / "merged", "--merge")
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    ids = torch.arange(5, 40).unsqueeze(0)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(merged, torch_dtype=torch.float32)(ids).logits
        expected = adapted.float()(ids).logits
    assert torch.allclose(found, expected, atol=0.05)
    make_adapter(tied, tmp_path / "factors", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UserError, match=r"LoRA factors on embed_tokens, and its base ties the two embeddings"):
        run(tmp_path / "factors", tmp_path / "refused", "--merge")


def test_an_adapter_is_exported_complete_and_opens_as_one(adapter, random_model_directory, tmp_path, capsys):
    done = run(adapter, tmp_path / "done", "--base_model", "ORG/NAME", "--dtype", "bfloat16")
    assert_equal(
        load_file(done / "adapter_model.safetensors"),
        {name: tensor.bfloat16() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()},
    )
    settings = json.loads((done / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "ORG/NAME"
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(names_in(done))
    assert not (done / "config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(random_model_directory)
    assert PeftModel.from_pretrained(base, done)
    capsys.readouterr()
    kept = run(adapter, tmp_path / "kept")
    assert f"names its base by its path here, {random_model_directory}" in capsys.readouterr().out
    load_for_inference(kept, "auto", torch.device("cpu"))
    for options, problem in ((["--gguf", "f16"], "--gguf holds a whole model"),):
        with pytest.raises(UserError, match=problem):
            run(adapter, tmp_path / "refused", *options)


def test_the_directory_is_complete(random_model_directory, tmp_path):
    shutil.copytree(random_model_directory, tmp_path / "run" / "epoch-0_step-3" / "modelling")
    source = tmp_path / "run" / "epoch-0_step-3" / "modelling"
    (tmp_path / "run" / "epoch-0_step-3" / "optimizer").mkdir()
    texts = {"LICENSE.txt": "free", "NOTICE": "by", "USE_POLICY.md": "well", "chat_template.jinja": "{{ 1 }}"}
    texts |= {"notes.txt": "mine", "merges.txt": "a b"}
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / "optimizer.pt").write_bytes(b"states")
    change_json(source / "config.json", _name_or_path="/home/me/model", dtype="float32", architectures=None)
    target = tmp_path / "empty"
    target.mkdir()
    run(tmp_path / "run" / "epoch-0_step-3", target)
    copied = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", *texts}
    portable = settings_contents(source)  # as they are, unless transformers 5 has written them
    for name in names_in(source):
        if name in copied - {"notes.txt"}:
            assert (target / name).read_bytes() == portable.get(name, (source / name).read_bytes()), name
    record = json.loads((target / "export.json").read_text())
    assert record["files_not_copied"] == ["notes.txt", "optimizer.pt"]
    assert (record["source"], record["name"]) == ("run", "empty")
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "/home/me" not in (target / "config.json").read_text()
    settings = json.loads((target / "generation_config.json").read_text())
    assert settings["eos_token_id"] == config["eos_token_id"]
    listed = read_checksums(target)
    assert listed.keys() == {path.name for path in target.iterdir()} - {"checksums.json"}
    assert differences(target, listed) == []
    load_for_inference(target, "auto", torch.device("cpu"))


def test_weights_that_were_saved_without_their_output_layer_get_their_names(tied, tmp_path):
    shutil.copytree(tied, tmp_path / "source")
    tensors = load_file(tied / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bare |= {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(11)}
    save_file(bare, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    done = run(tmp_path / "source", tmp_path / "done")
    assert_equal(tensors_of(done), tensors)
    assert len(json.loads((done / "export.json").read_text())["tensors_left_out"]) == 11


def quantized(source: Path) -> None:
    change_json(source / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def stored_as_bytes(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, source / "model.safetensors", {"format": "pt"})


def with_code(source: Path) -> None:
    change_json(source / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})


def of_another_type(source: Path) -> None:
    change_json(source / "config.json", model_type="gpt2")


def truncated(source: Path) -> None:
    os.truncate(source / "model.safetensors", 1000)


def with_other_weights(source: Path) -> None:
    from colossal_llama.utils.checksums import write_checksums

    write_checksums(source, {})
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (source / "model.safetensors").write_bytes(content)


def without_tokenizer(source: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (source / name).unlink(missing_ok=True)  # transformers 5 writes no tokenizer.model


def with_a_layer_less(source: Path) -> None:
    change_json(source / "config.json", num_hidden_layers=1)


def with_too_few_rows(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    change_json(source / "config.json", vocab_size=len(tensors["lm_head.weight"]))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (quantized, "is a quantized model"),
        (stored_as_bytes, r"up_proj\.weight is stored as int8: quantized weights"),
        (with_code, r"names custom code \(auto_map\)"),
        (of_another_type, "gpt2"),
        (truncated, "incomplete or damaged"),
        (with_other_weights, "checksum differs"),
        (without_tokenizer, "has no tokenizer"),
        (with_a_layer_less, "has no place for"),
        (with_too_few_rows, "rows for .* only"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(random_model_directory, damage, problem, tmp_path):
    shutil.copytree(random_model_directory, tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "source", tmp_path / "refused")
    assert names_in(tmp_path) == ["source"]


def test_a_run_without_its_final_model_names_its_newest_checkpoint(random_model_directory, tmp_path):
    for step in (2, 10):
        shutil.copytree(random_model_directory, tmp_path / "run" / f"epoch-0_step-{step}" / "modelling")
    with pytest.raises(UserError, match=r"has not finished.*epoch-0_step-10: give that"):
        run(tmp_path / "run", tmp_path / "refused")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        run(tmp_path / "nothing", tmp_path / "refused")


def test_bad_arguments_are_named_all_at_once(project_root, random_model_directory, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    options = ["--max_shard_size", "many", "--license", "mit", "--check_tokens", "3", "--dtype", "int8"]
    done = run_script(
        project_root, SCRIPT, "--model_path", random_model_directory, "--output_dir", tmp_path / "full", *options
    )
    assert done.returncode == 2
    for problem in ("'many' is no size", "is not empty", "--license has no effect without --model_card", "int8"):
        assert problem in done.stderr
    assert "--check_tokens has no effect without --check" in done.stderr
    with pytest.raises(UserError, match="lies in the model's directory"):
        run(random_model_directory, random_model_directory / "inside")
    assert names_in(tmp_path / "full") == ["notes.txt"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5MiB", 3 << 19), ("700", 700), ("2 kb", 2000), ("1G", 10**9)]
)
def test_sizes_are_those_of_hugging_face(text, size):
    from colossal_llama.export.arguments import size_bytes

    assert size_bytes(text) == size


def test_too_little_disk_space_is_said_before_anything_is_written(random_model_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match=r"the export takes .* GB, and .* has 0\.0 GB free"):
        run(random_model_directory, tmp_path / "refused")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_a_killed_export_leaves_nothing_after_the_next(project_root, random_model_directory, is_there, tmp_path):
    if is_there:
        (tmp_path / "out").mkdir()
    killed = (
        "import sys; sys.argv[0] = 'x'; import os, signal; from colossal_llama.export import directory, export_model\n"
        "directory.small_files = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nexport_model.main()"
    )
    words = ["--model_path", str(random_model_directory), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", killed, *words], cwd=project_root, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "out" if is_there else tmp_path).iterdir()
    assert (left / "model.safetensors").is_file()
    run(random_model_directory, tmp_path / "out")
    assert names_in(tmp_path) == ["out"]
    assert not [name for name in names_in(tmp_path / "out") if name.startswith(".")]


def test_an_empty_directory_is_filled_and_not_replaced(random_model_directory, tmp_path, monkeypatch):
    """As a mount point of a container, or where the user is."""
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    rename, renamed = Path.rename, []
    monkeypatch.setattr(Path, "rename", lambda path, target: renamed.append(path.name) or rename(path, target))
    run(random_model_directory, Path())
    moved = [name for name in renamed if not name.startswith(".")]
    assert moved[-1] == "config.json"  # without which nothing loads
    assert "model.safetensors" in moved
    assert (tmp_path / "here").stat().st_ino == before
    load_for_inference(tmp_path / "here", "auto", torch.device("cpu"))
    with pytest.raises(SystemExit):
        run(random_model_directory, Path())
