"""Unwritable outputs, undecodable text and closed pipes: one message and no traceback."""

import subprocess
import sys

import pytest

from colossal_llama.utils.cli import is_decodable
from tests.support.scripts import run_script


@pytest.fixture
def a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("colossal_llama/tokenizer/learn_pieces.py", "--output_dir"),
        ("colossal_llama/model/init_model.py", "--target_model_path"),
    ],
)
def test_a_directory_below_a_file_is_refused_at_once(project_root, a_file, script, option):
    done = run_script(project_root, script, option, a_file / "new")
    assert done.returncode == 2
    assert f"argument {option}: {a_file}/new cannot be created: {a_file} is not a directory" in done.stderr


def test_what_the_system_refuses_is_a_message(project_root, tmp_path):
    code = f"from colossal_llama.utils.errors import run_main; run_main(lambda: open('{tmp_path}', 'w'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project_root, check=False)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}: Is a directory\n")


def test_ctrl_c_while_the_interpreter_ends_is_a_line(project_root):
    code = (
        "import atexit, os, signal\nfrom colossal_llama.utils.errors import run_main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\nrun_main(lambda: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project_root, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_errors_of_the_program_keep_their_traceback(project_root):
    code = "from colossal_llama.utils.errors import run_main; run_main(lambda: open('/nowhere'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project_root, check=False)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr


def test_a_reader_that_goes_away_ends_a_script_without_a_word(project_root):
    code = "from colossal_llama.utils.errors import run_main; run_main(lambda: [print('x' * 9999) for _ in range(99)])"
    command = f'{sys.executable} -c "{code}" | head -c 3'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=project_root, check=False)
    assert (done.stdout, done.stderr) == ("xxx", "")


def test_bytes_that_are_no_text_are_refused(project_root):
    assert is_decodable("你好 😀")
    done = run_script(
        project_root,
        "inference_example.py",
        "--model_path",
        "m",
        "--input_txt",
        b"hi \xff".decode("utf-8", "surrogateescape"),
    )
    assert done.returncode == 2
    assert "argument --input_txt: 'hi \\udcff' contains bytes that are not utf-8: convert it" in done.stderr


@pytest.mark.parametrize("script", ["train.py", "inference_example.py"])
def test_a_seed_that_is_too_large_is_refused(project_root, script):
    done = run_script(project_root, script, "--seed", 2**32)
    assert done.returncode == 2
    assert f"argument --seed: {2**32} is more than {2**32 - 1}" in done.stderr


def test_a_whole_number_that_no_library_takes_is_refused(project_root):
    done = run_script(project_root, "inference_example.py", "--max_new_tokens", 10**30, "--top_k", 2**63)
    assert f"argument --max_new_tokens: {10**30} is more than {2**63 - 1}" in done.stderr
    assert f"argument --top_k: {2**63} is more than {2**63 - 1}" in done.stderr


@pytest.mark.parametrize("script", ["prepare_pretrain_dataset.py", "prepare_sft_dataset.py"])
def test_a_row_that_no_splicing_could_hold_is_refused(project_root, script):
    done = run_script(project_root, script, "--max_length", 2**20 + 1)
    assert done.returncode == 2
    assert f"argument --max_length: {2**20 + 1} is more than {2**20}" in done.stderr


def test_names_that_the_system_refuses_are_named_with_their_option(project_root, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    no_text = b"\xff".decode("utf-8", "surrogateescape")
    names = {"": "the name is empty", "n" * 400: "File name too long", "n" * 250: "File name too long"}
    names |= {no_text: "contains bytes that are not utf-8", "loop/x": "symbolic links"}
    for script, option in (("train.py", "--save_dir"), ("colossal_llama/training/memory/scale_model.py", "--record")):
        for name, said in names.items():
            done = run_script(project_root, script, option, name, cwd=tmp_path)
            assert done.returncode == 2, done.stderr
            assert f"argument {option}: " in done.stderr
            assert said in done.stderr
            assert "Traceback" not in done.stderr


def test_a_list_with_a_bad_value_is_one_message_for_each(project_root):
    words = ("--gpus", "inf", 8, "x", "--plugins", "zero2", "zero9", "--models", "none")
    done = run_script(project_root, "colossal_llama/training/memory/scale_model.py", *words)
    assert done.returncode == 2
    assert [line.split(" (")[0] for line in done.stderr.splitlines()] == [
        "error: argument --gpus: 'inf' is not a whole number",
        "error: argument --gpus: 'x' is not a whole number",
        "error: argument --plugins: invalid choice: 'zero9'",
        "error: argument --models: invalid choice: 'none'",
        "'scale_model.py --help' lists the arguments.",
    ]


def test_a_directory_in_place_of_a_file_and_the_reverse_are_named(project_root, a_file, tmp_path):
    options = ("--tokenizers", tmp_path, "--data_input_dirs", tmp_path, "--output_file", tmp_path)
    report = run_script(project_root, "colossal_llama/tokenizer/report.py", *options)
    assert report.returncode == 2
    assert f"--output_file {tmp_path} is a directory: give the name of a file" in report.stderr
    train = run_script(project_root, "train.py", "--dataset", a_file, "--eval_dataset", tmp_path / "none")
    assert train.returncode == 2
    assert f"--dataset: {a_file} is a file, not a directory" in train.stderr
    assert f"--eval_dataset: {tmp_path}/none does not exist" in train.stderr
