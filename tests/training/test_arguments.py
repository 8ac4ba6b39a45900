"""Command line of train.py: the contract's names and defaults, checks, no unused option."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.command_line import build_parser, parse_arguments
from colossal_llama.utils.arguments import declared_options, option_values
from tests.support.project_tree import project_files


def test_defaults_of_the_contract(base):
    arguments = parse_arguments(base)
    assert (arguments.checkpoint.save_interval, arguments.data.num_epochs, arguments.data.micro_batch_size) == (
        1000,
        1,
        1,
    )
    assert (arguments.data.accumulation_steps, arguments.optimizer.warmup_steps) == (None, None)
    assert (arguments.optimizer.lr, arguments.data.max_length, arguments.plugin.mixed_precision) == (3e-4, 4096, "fp16")
    assert (
        arguments.optimizer.gradient_clipping,
        arguments.optimizer.weight_decay,
        arguments.plugin.tp,
        arguments.plugin.zero,
    ) == (1.0, 0.1, 1, 1)
    switches = ("use_grad_checkpoint", "use_flash_attn", "use_neft", "freeze_non_embeds_params")
    assert not any(option_values(arguments)[name] for name in switches)


def test_aliases_of_the_contract(base):
    words = ["--batch_size", "3", "--grad_clip", "0.5", "-w", "0.01", "-s", "7", "--plugin", "3d", "--zero_stage", "2"]
    arguments = parse_arguments([*base, *words])
    assert (
        arguments.data.micro_batch_size,
        arguments.optimizer.gradient_clipping,
        arguments.optimizer.weight_decay,
    ) == (3, 0.5, 0.01)
    assert (arguments.optimizer.warmup_steps, arguments.plugin.zero) == (7, 2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tp", "2"], "--tp is an option of --plugin 3d"),
        (
            ["--plugin", "3d", "--mixed_precision", "fp32"],
            "not for --mixed_precision fp32; the nearest possible setting is",
        ),
        (["--pp", "2"], "--pp is an option of --plugin 3d"),
        (["--plugin", "zero2_cpu", "--optimizer_states", "8bit"], "--optimizer_states 8bit is of --plugin zero2"),
        (["--plugin", "zero2", "--optimizer_states", "bf16"], "give --mixed_precision bf16, not fp16"),
        (["--plugin", "3d", "--microbatch_size", "2"], "--microbatch_size has no effect without --pp"),
        (["--plugin", "3d", "--sp_mode", "ring"], "--sp_mode has no effect without --sp"),
        (["--plugin", "3d", "--zero", "0", "--zero_cpu_offload"], "needs ZeRO"),
        (["--neft_alpha", "3"], "without --use_neft"),
        (["--lr", "nan"], "is not a finite number"),
        (["--lr", "inf"], "is not a finite number"),
        (["--num_epochs", "0"], "less than 1"),
        (["--benchmark", "--eval_dataset", "."], "--benchmark measures training: leave out --eval_dataset"),
        (["--benchmark", "--eval_tasks", "mmlu"], "--benchmark measures training: leave out --eval_tasks"),
        (["--eval_task_interval", "5"], "--eval_task_interval has no effect without --eval_tasks"),
        (["--benchmark", "--lora_rank", "4", "--merge_lora"], "--benchmark saves nothing: leave out --merge_lora"),
        (["--train_only", "rows"], "invalid choice: 'rows'"),
        (["--train_only", "new_rows", "--freeze_non_embeds_params"], "is --train_only embeddings, not new_rows"),
        (["--train_only", "embeddings", "--freeze_layers", "1"], "no effect with --train_only embeddings, which"),
        (["--freeze_non_embeds_params", "--freeze_layers", "1"], "no effect with --freeze_non_embeds_params, which"),
        (["--train_only", "new_rows", "--embedding_lr", "1e-3"], "--train_only new_rows: give --new_row_lr"),
        (["--lora_rank", "4", "--train_only", "new_rows"], "--lora_rank and --train_only new_rows exclude each other"),
        (["--lora_rank", "4", "--freeze_layers", "2"], "--lora_rank and --freeze_layers 2 exclude each other"),
        (["--new_row_lr", "0"], "not greater than 0"),
        (["--first_new_row", "0"], "less than 1"),
        (["--lora_new_rows"], "--lora_new_rows has no effect without --lora_rank"),
        (["--lora_rank", "4", "--new_row_lr", "1e-3"], "--new_row_lr has no effect with --lora_rank alone"),
        (["--lora_rank", "4", "--lora_new_rows", "--embedding_lr", "1e-3"], "--embedding_lr has no effect with"),
        (["--lora_rank", "4", "--lora_new_rows", "--plugin", "gemini"], "--lora_rank is not possible with --plugin"),
        (["--load_checkpoint", "nowhere"], "does not exist"),
        (["--warmup_steps", "9", "--max_steps", "3"], "more than --max_steps"),
        (["--decay_steps", "9"], "--decay_steps has no effect without --lr_schedule wsd"),
        (["--decay_steps", "9", "--lr_schedule", "linear"], "no effect without --lr_schedule wsd"),
        (["--min_lr_ratio", "0", "--lr_schedule", "constant"], "no effect with --lr_schedule constant"),
        (["--min_lr_ratio", "1.5"], "more than 1"),
        (["--lr_schedule", "polynomial"], "choose from"),
        (
            ["--lr_schedule", "wsd", "--warmup_steps", "2", "--decay_steps", "9", "--max_steps", "10"],
            "--warmup_steps 2 and --decay_steps 9 are more than --max_steps 10",
        ),
        (["--no_such_option"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_is_refused(base, capsys, words, complaint):
    with pytest.raises(SystemExit) as end:
        parse_arguments([*base, *words])
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_files_where_directories_are_needed(base, tmp_path, capsys):
    """All of them at once, also on the way: mkdir would end in a traceback on one rank."""
    (tmp_path / "file").touch()
    options = {"--save_dir": "file", "--tensorboard_dir": "file/x/y", "--config_file": "file/c.json"}
    with pytest.raises(SystemExit) as end:
        parse_arguments([*base, *(word for name, path in options.items() for word in (name, str(tmp_path / path)))])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(f"{name}: {tmp_path / 'file'} is a file" in message for name in options)


def test_auto_needs_a_model_only_when_there_is_no_checkpoint(base, tmp_path, capsys):
    words = [*base[2:], "--load_checkpoint", "auto", "--save_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        parse_arguments(words)
    assert "give --pretrained too" in capsys.readouterr().err
    (tmp_path / "epoch-0_step-2").mkdir()
    assert parse_arguments(words).model.pretrained is None


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto"])
def test_gemini_without_gpu_is_refused_with_the_alternatives(base, capsys, plugin):
    with pytest.raises(SystemExit):
        parse_arguments([*base, "--plugin", plugin], has_gpu=False)
    message = capsys.readouterr().err
    assert "zero2" in message
    assert "GPU" in message


def test_every_option_is_read_somewhere(project_root):
    """An option that is parsed and used nowhere would be a promise that nobody keeps."""
    files = project_files(project_root / "colossal_llama" / "training")
    files = [file for file in files if file.name not in ("arguments.py", "argument_checks.py")]
    read = {name for file in files for name in attributes_read_in(file)}
    assert set(declared_options(TrainingArguments)) <= read


def attributes_read_in(file: Path) -> set[str]:
    """Names behind a dot in a module."""
    return {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}


def test_every_option_is_explained():
    for action in build_parser()._actions:
        assert action.help, action.option_strings


def test_help_is_quick_and_imports_no_torch(project_root):
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "import runpy\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert "--pretrained" in done.stdout


def test_a_division_is_checked_against_the_checkpoint_that_auto_takes(tmp_path, capsys):
    model = tmp_path / "save" / "epoch-0_step-1" / "modelling"
    model.mkdir(parents=True)
    (model.parent / "running_states.json").write_text("{}")
    shape = {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "vocab_size": 9,
    }
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "intermediate_size": 8, **shape}))
    command = ["--dataset", str(tmp_path), "--save_dir", str(tmp_path / "save"), "--load_checkpoint", "auto"]
    with pytest.raises(SystemExit):
        parse_arguments([*command, "--plugin", "3d", "--tp", "2", "--zero", "0"], has_gpu=False, world_size=2)
    assert "heads" in capsys.readouterr().err
