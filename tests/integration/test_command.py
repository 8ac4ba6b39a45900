"""Every command is a sub-command of the installed package."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from colossal_llama import __version__
from colossal_llama.commands import COMMANDS, find_command

HEAVY = {"torch", "transformers", "numpy", "datasets", "colossalai", "tqdm", "fabric"}
NAMES = [name for command in COMMANDS for name in (command.name, *command.aliases)]


@pytest.fixture(scope="module")
def installed(project_root, tmp_path_factory):
    """A directory into which pip has installed the package, without network."""
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        version = "0.0"
    if tuple(map(int, version.split(".")[:2])) < (77, 0):
        pytest.skip(f"setuptools {version} knows no license expressions: 77 is needed")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(project_root / "colossal_llama", source / "colossal_llama")
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(project_root / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(target, *words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, cwd=target, env=environment, **settings
    )


def scripts(project_root):
    """Files of the package and of the root that can be run by their path."""
    done = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=project_root, capture_output=True, text=True, check=False
    ).stdout.split()
    listed = done or [str(path.relative_to(project_root)) for path in project_root.glob("colossal_llama/**/*.py")]
    for name in listed:
        if "/" in name and not name.startswith("colossal_llama/"):
            continue
        tests = (node.test for node in ast.parse((project_root / name).read_text()).body if isinstance(node, ast.If))
        if any(ast.unparse(test) == "__name__ == '__main__'" for test in tests):
            yield name.removesuffix(".py").replace("/", ".")


def test_every_script_is_a_sub_command(project_root):
    known = {command.name for command in COMMANDS} | {command.function.split(":")[0] for command in COMMANDS}
    found = set(scripts(project_root)) - {"colossal_llama.__main__"}
    assert len(found) >= len(COMMANDS)
    assert found <= known
    assert len(NAMES) == len(set(NAMES))
    assert all(find_command(name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_an_installed_package_shows_its_own_usage(installed, name):
    done = run(installed, sys.executable, "-m", "colossal_llama", name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: colossal-llama {find_command(name).name} [-h]")


def test_the_console_command_lists_all_of_them_and_imports_nothing_heavy(installed):
    entry = installed / "bin" / "colossal-llama"
    assert run(installed, sys.executable, entry, "--version").stdout.strip() == __version__
    listed = run(installed, sys.executable, "-X", "importtime", entry, "--help")
    assert listed.returncode == 0
    for command in COMMANDS:
        assert f"  {', '.join((command.name, *command.aliases))}  " in listed.stdout
        assert command.summary in listed.stdout
    imported = {line.split("|")[-1].strip() for line in listed.stderr.splitlines() if "|" in line}
    assert "colossal_llama.commands" in imported
    assert not imported & HEAVY


def test_an_unknown_command_is_refused_with_a_suggestion(project_root):
    for words, problem in (
        (["trian", "--lr", "1"], "there is no command 'trian': did you mean train?"),
        (["xyzzy"], "there is no command 'xyzzy'"),
        ([], "no command was given"),
    ):
        done = run(project_root, sys.executable, "-m", "colossal_llama", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {problem}\n'colossal-llama --help' lists the commands.\n"


SCRIPTS = ["train.py", "inference_example.py", "evaluate.py", "prepare_pretrain_dataset.py", "prepare_sft_dataset.py"]


@pytest.mark.parametrize("script", [*SCRIPTS, "colossal_llama/__main__.py"])
def test_ctrl_c_during_the_first_import_has_no_traceback(project_root, script):
    code = (
        "import signal, sys, runpy\nclass Finder:\n    def find_spec(self, name, *rest):\n"
        "        name.endswith('.errors') and signal.raise_signal(signal.SIGINT)\n"
        f"sys.meta_path.insert(0, Finder())\nrunpy.run_path({script!r}, run_name='__main__')"
    )
    done = run(project_root, sys.executable, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("script", [*SCRIPTS, "colossal_llama/__main__.py"])
def test_an_old_python_is_refused_by_a_sentence(project_root, script):
    for path in (project_root / script, project_root / "colossal_llama" / "__init__.py"):
        ast.parse(path.read_text("utf-8"), feature_version=(3, 4))
    code = f"import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path({script!r}, run_name='__main__')"
    done = run(project_root, sys.executable, "-c", code)
    assert done.returncode == 2
    assert done.stderr == "error: Python 3.9 is too old: run setup_environment.sh (3.11 or 3.12)\n"


def test_problems_of_a_sub_command_are_messages(project_root):
    done = run(project_root, sys.executable, "-m", "colossal_llama", "survey")
    assert done.returncode == 2
    assert done.stderr.endswith("'colossal-llama survey --help' lists the arguments.\n")


@pytest.mark.distributed
def test_torchrun_starts_the_module(installed):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    done = run(installed, *torchrun, "-m", "colossal_llama", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: colossal-llama train [-h]")


def test_an_installed_package_knows_its_packages_and_its_code(installed, project_root, tmp_path):
    """Its requirements come from its metadata, and neighbours in site-packages are not its code."""
    command = [sys.executable, "-m", "colossal_llama", "survey", "--save_dir", str(tmp_path)]
    here, there = (json.loads(run(place, *command).stdout) for place in (project_root, installed))
    assert here["packages"] == there["packages"]
    (installed / "neighbour.py").touch()
    assert json.loads(run(installed, *command).stdout)["code"] == there["code"]
    assert (installed / "colossal_llama" / "cluster" / "stoppable.sh").is_file()


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_preparation_leaves_torch_out_by_every_entry(project_root, kind):
    code = (
        "import os, sys, colossal_llama.dataset.prepare.cli as cli\n"
        "cli.run = lambda kind: print(kind, os.environ['USE_TORCH'])\n"
        f"sys.argv = ['colossal-llama', 'prepare_{kind}']\n"
        "from colossal_llama.commands import main\n"
        "main()\n"
    )
    settings = {name: value for name, value in os.environ.items() if name != "USE_TORCH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, env=settings, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{kind} 0\n", done.stderr
