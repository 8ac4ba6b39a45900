"""Every script on a model and tokenizer with code of their own, and a terminal that says yes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.forked import run_forked
from tests.support.project_tree import project_files

TOKENIZERS = "colossal_llama/tokenizer"
TRUTH = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def trapped(toy, made_llama2, tmp_path_factory) -> Path:
    """A model whose files name classes of a module that writes a file when it is imported."""
    directory = tmp_path_factory.mktemp("trapped") / "model"
    shutil.copytree(toy.model, directory)
    for path in [*directory.glob("tokenizer*"), *directory.glob("special*")]:
        path.unlink()
    shutil.copytree(made_llama2, directory, dirs_exist_ok=True)
    (directory / "trap.py").write_text(
        f"from pathlib import Path\nPath({str(directory.parent / 'it_ran')!r}).touch()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, LlamaTokenizerFast as Tokenizer\n"
    )
    classes = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    for name, auto_map in {
        "config.json": classes,
        "tokenizer_config.json": {"AutoTokenizer": ["trap.Tokenizer", "trap.Tokenizer"]},
    }.items():
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**settings, **TRUTH, "auto_map": auto_map}))
    return directory


@pytest.fixture(scope="module")
def adapter(trapped) -> Path:
    """An adapter whose base is the trapped model."""
    directory = trapped.parent / "adapter"
    directory.mkdir()
    settings = {"base_model_name_or_path": str(trapped), "peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    save_file({"weight": torch.zeros(1)}, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 4, "lora_dropout": 0.0}))
    return directory


@pytest.fixture(scope="module")
def command_lines(toy, trapped, adapter, project_root) -> dict[str, tuple]:
    """A command line of each script that opens a model or a tokenizer, on the trapped one."""
    texts, new = project_root / "examples" / "pretrain", trapped.parent / "new"
    conversations = project_root / "examples" / "sft"
    pieces = trapped.parent / "pieces.jsonl"
    pieces.write_text('{"piece": "你好"}\n', encoding="utf-8")
    prepare = ("--tokenizer_dir", trapped, "--data_output_dirs", new, "--max_length", 64, "--num_workers", 1)
    train = (
        "--dataset",
        *toy.parts,
        "--plugin",
        "zero2",
        "--mixed_precision",
        "bf16",
        "--save_dir",
        new,
        "--tensorboard_dir",
        new / "logs",
    )
    train += ("--config_file", new / "config.json", "--max_length", 64)
    init = ("--source_model_and_tokenizer_path", "--target_tokenizer_path")
    ask = ("--device", "cpu", "--input_txt", "?")
    evaluate = ("--device", "cpu", "--max_length", 64, "--texts", texts, "--output_dir", new)
    learn = ("--data_input_dirs", texts, "--output_dir", new)
    return {
        "learn": (f"{TOKENIZERS}/learn_pieces.py", "--source_tokenizer_dir", trapped, *learn),
        "expand": (
            *(f"{TOKENIZERS}/init_tokenizer.py", "--source_tokenizer_dir", trapped),
            *("--target_tokenizer_dir", new, "--expand_tokens_file", pieces),
        ),
        "report": (f"{TOKENIZERS}/report.py", "--tokenizers", trapped, "--data_input_dirs", texts),
        "init source": (
            *("colossal_llama/model/init_model.py", init[0], trapped, init[1], toy.model),
            *("--target_model_path", new),
        ),
        "init target": (
            *("colossal_llama/model/init_model.py", init[0], toy.model, init[1], trapped),
            *("--target_model_path", new),
        ),
        "pretrain": ("prepare_pretrain_dataset.py", "--data_input_dirs", texts, *prepare),
        "sft": ("prepare_sft_dataset.py", "--data_input_dirs", conversations, *prepare, "--llama_version", 2),
        "train": ("train.py", "--pretrained", trapped, *train),
        "dry run": ("train.py", "--pretrained", trapped, *train, "--dry_run"),
        "train adapter": ("train.py", "--load_checkpoint", adapter, "--pretrained", trapped, *train, "--lora_rank", 2),
        "infer": ("inference_example.py", "--model_path", trapped, *ask),
        "infer adapter": ("inference_example.py", "--model_path", adapter, *ask),
        "evaluate": ("evaluate.py", "--model_path", trapped, *evaluate),
        "evaluate adapter": ("evaluate.py", "--model_path", toy.model, "--compare", adapter, *evaluate),
        "merge": (
            *("colossal_llama/model/merge_models.py", "--base", toy.model, "--models", trapped),
            *("--weights", 1, "--output_dir", new),
        ),
        "clean": (
            *("colossal_llama/cleaning/clean_corpus.py", "--data_input_dirs", texts, "--output_dir", new),
            *("--quality_model", trapped),
        ),
        "export": ("colossal_llama/export/export_model.py", "--model_path", trapped, "--output_dir", new),
    }


CASES = ("learn", "expand", "report", "init source", "init target", "pretrain", "sft", "train", "dry run")
CASES += ("train adapter", "infer", "infer adapter", "evaluate", "evaluate adapter", "merge", "export", "clean")


@pytest.mark.parametrize("case", CASES)
def test_code_of_a_model_or_tokenizer_is_refused_without_a_question(command_lines, trapped, project_root, case):
    before = sorted(trapped.parent.rglob("*"))
    done = run_forked(project_root, *command_lines[case], stdin="y\n" * 20)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "names custom code (auto_map), which is never run" in said
    assert "Traceback" not in said
    assert "[y/N]" not in said
    assert sorted(trapped.parent.rglob("*")) == before


def test_every_script_that_opens_a_model_is_tried(command_lines, project_root):
    without_models = {
        "plot_training.py",
        "plot_data.py",
        "scale_model.py",
        "preflight.py",
        "survey.py",
        "all_reduce_check.py",
        "colossalai_run.py",
        "get_model.py",  # fetches files, and refuses repositories with code (tests/utils/test_fetch.py)
    }
    scripts = {
        path.relative_to(project_root).as_posix()
        for path in project_files(project_root)
        if path.parent == project_root or "colossal_llama" in path.parts
        if 'if __name__ == "__main__"' in path.read_text("utf-8") and path.name not in without_models | {"__main__.py"}
    }
    assert scripts == {words[0] for words in command_lines.values()}
