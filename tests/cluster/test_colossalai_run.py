"""Words and environment reach the hosts whole, or are refused before anything is started."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.cluster.colossalai_run import clean_environment, split_words, word_problems
from colossal_llama.utils.errors import UserError

ODD = (
    "a b",
    "it's",
    'say "x"',
    "$(touch x)",
    "`touch x`",
    "a;b",
    "a&b",
    "*",
    "?",
    "~",
    "\\",
    "a\nb",
    "#",
    "!!",
    "",
    "-x",
)

NAMES = st.from_regex(r"NCCL_[A-Z]{1,3}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"))


@pytest.fixture
def tools(tmp_path):
    """A directory for PATH with a `colossalai` that records what it was given."""
    record = tmp_path / "record.json"
    program = tmp_path / "tools" / "colossalai"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(record)!r}, 'w'))\n"
    )
    program.chmod(0o755)
    return program.parent


def launch(project_root, tools, *words, env=None):
    command = [sys.executable, str(project_root / "colossal_llama/cluster/colossalai_run.py"), *words]
    variables = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": "/root", **(env or {})}
    return subprocess.run(command, cwd=project_root, env=variables, capture_output=True, text=True, check=False)


def as_a_shell_reads(words, environment):
    """Arguments and variables after a host's shell has read what `colossalai run` sends there."""
    exports = " ".join(f'{name}="{value}"' for name, value in environment.items())
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    line = f"export {exports} && {sys.executable} -c '{code}' {' '.join(words)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, env={})
    return json.loads(done.stdout)


def test_odd_words_and_values_arrive_whole(project_root, tools, tmp_path):
    variables = {f"NCCL_{number}": word for number, word in enumerate(ODD)}
    done = launch(project_root, tools, "--nproc_per_node", "1", "train.py", "--names", *ODD, env=variables)
    assert done.returncode == 0, done.stderr
    words, environment = json.loads((tmp_path / "record.json").read_text())
    assert words[:4] == ["run", "--nproc_per_node", "1", "--"]
    arrived, there = as_a_shell_reads(words[5:], environment)
    assert arrived == ["--names", *ODD]
    assert {name: there[name] for name, value in variables.items() if value and "\n" not in value} == {
        name: value for name, value in variables.items() if value and "\n" not in value
    }
    assert "NCCL_11 is not handed to the hosts" in done.stderr
    assert not (project_root / "x").exists()


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_any_value_arrives_whole(variables):
    environment, notes = clean_environment({"PATH": "/usr/bin:/bin", **variables})
    assert not notes
    _, there = as_a_shell_reads([], environment)
    assert all(there[name] == value for name, value in variables.items() if value)


def test_the_environment_is_reduced_to_what_training_needs():
    given = {"PATH": "/bin", "NCCL_DEBUG": "INFO", "HF_HOME": "/h", "LD_LIBRARY_PATH": "/l", "SECRET": "s"}
    given |= {"HF_TOKEN": "t", "BASH_FUNC_ls%%": "() { touch x; }", "BASH_ENV": "x", "MINE": "1", "PS1": '"$(id)'}
    environment, notes = clean_environment({**given, "COLOSSAL_LLAMA_HAND_ON": "MINE, ABSENT"})
    assert set(environment) == {"PATH", "NCCL_DEBUG", "HF_HOME", "LD_LIBRARY_PATH", "MINE", "COLOSSAL_LLAMA_HAND_ON"}
    assert len(notes) == 1
    assert "ABSENT" in notes[0]


def test_the_choice_of_gpus_alone_is_left_to_the_hosts():
    choice = "$(bash colossal_llama/cluster/least_used_gpus.sh 8)"
    for value, handed_on in ((choice, choice), ("$(touch x)", "\\$(touch x)"), (f"{choice};id", f"\\{choice};id")):
        environment, _ = clean_environment({"CUDA_VISIBLE_DEVICES": value})
        assert environment == {"CUDA_VISIBLE_DEVICES": handed_on}


def test_a_path_that_a_shell_would_change_is_refused():
    with pytest.raises(UserError, match="PATH="):
        clean_environment({"PATH": "/opt/$(id)/bin"})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--nproc_per_node", "8; touch x", "train.py"], "--nproc_per_node '8; touch x' has characters"),
        (["--master_addr", "no-such-host.invalid", "train.py"], "no-such-host.invalid cannot be resolved"),
        (["--host", "localhost,-oProxyCommand=id", "train.py"], "'-oProxyCommand=id' is not a host name"),
        (["--hostfile", "absent", "train.py"], "absent cannot be read"),
        (["--extra_launch_args", "tee=3,log_dir=$(id)", "train.py"], "has characters"),
        (["my train.py"], "'my train.py': the script must be"),
        (["train.py", "--save_dir", os.fsdecode(b"\xff")], "is not UTF-8"),
        (["--nprocs", "8", "train.py"], "--nprocs is not an option of colossalai run"),
        (["--nproc_per_node", "8"], "no script is given"),
    ],
)
def test_what_cannot_be_handed_on_is_refused(project_root, tools, tmp_path, words, problem):
    done = launch(project_root, tools, *words)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "record.json").exists()


def test_a_directory_that_a_shell_would_change_is_refused(project_root, tools, tmp_path):
    place = tmp_path / "a;b"
    place.mkdir()
    command = [sys.executable, str(project_root / "colossal_llama/cluster/colossalai_run.py"), "train.py"]
    done = subprocess.run(command, cwd=place, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a;b' has characters that a shell would interpret" in done.stderr


def test_words_are_divided_at_the_script():
    options, script = split_words(["--nproc_per_node=8", "--master_port", "30013", "train.py", "--lr", "1"])
    assert (options, script) == (["--nproc_per_node=8", "--master_port", "30013"], ["train.py", "--lr", "1"])
    assert word_problems(options, script) == []
