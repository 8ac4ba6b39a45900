"""What README and templates tell people to type exists: every script, every flag."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "train.example.sh", "train_sft.example.sh", "quickstart.sh"]
FLAG = re.compile(r"(?<![\w-])--?[a-z]\w*(?:[-_]\w+)*")
OTHERS_FLAGS = {"--standalone", "--nproc_per_node", "--hostfile", "--master_port", "-m", "-k", "-p", "--rcfile", "-n"}
OTHERS_FLAGS |= {"--signal", "--no-deps", "-e"}  # of sbatch and scancel; of pip


@cache
def flags_of(script: str) -> set[str]:
    """The options in a script's --help; a benchmark's are read from its source, as it imports PyTorch before it parses them."""
    if script.startswith("benchmarks/"):
        calls = [
            node for node in ast.walk(ast.parse((PROJECT_ROOT / script).read_text())) if isinstance(node, ast.Call)
        ]
        added = [call.args[0] for call in calls if getattr(call.func, "attr", None) == "add_argument"]
        return {argument.value for argument in added}
    command = [sys.executable, script, "--help"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return set(FLAG.findall(done.stdout))


def commands_in(document: str) -> list[tuple[str, set[str]]]:
    """Each script that a document's commands call, with the flags that follow it on the command line."""
    text = (PROJECT_ROOT / document).read_text(encoding="utf-8")
    if document.endswith(".md"):
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    text = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in text.splitlines():
        line = line.split(" #")[0]
        match = re.search(r"(?<![\w./-])((?:colossal_llama/\w+/|examples/|benchmarks/)?\w+\.py)\b(.*)", line)
        if match and not line.lstrip().startswith(("#", "echo")):
            found.append((match[1], set(FLAG.findall(match[2])) - OTHERS_FLAGS))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_name_scripts_and_flags_that_exist(document):
    commands = commands_in(document)
    assert commands
    for script, flags in commands:
        assert (PROJECT_ROOT / script).is_file(), f"{document}: {script}"
        if flags:
            assert flags <= flags_of(script), f"{document}: {script} has no {flags - flags_of(script)}"


def test_flags_in_the_readme_text_exist_somewhere():
    scripts = {script for document in DOCUMENTS for script, _ in commands_in(document)}
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    scripts |= set(re.findall(r"`python ([\w/]+\.py)", text))
    known = OTHERS_FLAGS.union(*(flags_of(script) for script in scripts if script != "examples/quickstart_report.py"))
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for flag in FLAG.findall(quoted):
            assert flag in known, f"README.md: {quoted}"


def test_every_file_of_the_readme_exists_and_every_module_is_in_it():
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w./]+\.py)`", text, flags=re.MULTILINE))
    folders = ("colossal_llama", "benchmarks", "tests", "examples")
    there = {
        str(path.relative_to(PROJECT_ROOT)) for folder in folders for path in (PROJECT_ROOT / folder).rglob("*.py")
    }
    there |= {path.name for path in PROJECT_ROOT.glob("*.py")}
    assert listed == {name for name in there if not name.endswith("__init__.py")}
