"""Documents are true: commands, flags, files, messages and terms exist; words are the field's."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from colossal_llama.commands import find_command
from tests.support.project_tree import project_files

PROJECT_ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "train.example.sh", "train_sft.example.sh", "quickstart.sh"]
DOCUMENTS += [
    "docs/cleaning.md",
    "docs/data.md",
    "docs/evaluation.md",
    "docs/expansion.md",
    "docs/export.md",
    "docs/models_by_name.md",
]
SUB_COMMAND = "-m colossal_llama "
BACKTICKS = re.compile(r"`([^`\n]+)`")
FLAG = re.compile(r"(?<![\w-])--?[a-z]\w*(?:[-_]\w+)*")
OTHERS_FLAGS = {"--standalone", "--nproc_per_node", "--hostfile", "--master_port", "-m", "-k", "-p", "--rcfile", "-n"}
OTHERS_FLAGS |= {"--signal", "--no-deps", "-e"}  # of sbatch and scancel; of pip


@cache
def flags_of(script: str) -> set[str]:
    """The options in a script's --help.

    A benchmark's are read from its source, as it imports PyTorch before it parses them.
    """
    if script.startswith("benchmarks/"):
        calls = [
            node for node in ast.walk(ast.parse((PROJECT_ROOT / script).read_text())) if isinstance(node, ast.Call)
        ]
        added = [call.args[0] for call in calls if getattr(call.func, "attr", None) == "add_argument"]
        return {argument.value for argument in added}
    command = [sys.executable, *script.split(), "--help"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return set(FLAG.findall(done.stdout))


def commands_in(document: str) -> list[tuple[str, set[str]]]:
    """Each script that a document's commands call, with the flags that follow it there."""
    text = (PROJECT_ROOT / document).read_text(encoding="utf-8")
    if document.endswith(".md"):
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    text = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in text.splitlines():
        line = line.split(" #")[0]
        if sub_command := re.search(r"(?:-m colossal_llama|(?<![\w/-])colossal-llama) (\w+)(.*)", line):
            found.append((SUB_COMMAND + sub_command[1], set(FLAG.findall(sub_command[2])) - OTHERS_FLAGS))
            continue
        match = re.search(r"(?<![\w./-])((?:colossal_llama/(?:\w+/)+|examples/|benchmarks/)?\w+\.py)\b(.*)", line)
        if match and not line.lstrip().startswith(("#", "echo")):
            found.append((match[1], set(FLAG.findall(match[2])) - OTHERS_FLAGS))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_name_scripts_and_flags_that_exist(document):
    commands = commands_in(document)
    assert commands
    for script, flags in commands:
        is_command = script.startswith(SUB_COMMAND) and find_command(script.removeprefix(SUB_COMMAND))
        assert is_command or (PROJECT_ROOT / script).is_file(), f"{document}: {script}"
        if flags:
            assert flags <= flags_of(script), f"{document}: {script} has no {flags - flags_of(script)}"


def test_flags_in_the_readme_text_exist_somewhere():
    scripts = {script for document in DOCUMENTS for script, _ in commands_in(document)}
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    scripts |= set(re.findall(r"`python ([\w/]+\.py)", text))
    shell = (PROJECT_ROOT / "run_tests.sh").read_text(encoding="utf-8")
    known = OTHERS_FLAGS.union(
        re.findall(r"^(--\w+)\)", shell, flags=re.MULTILINE),
        *(flags_of(script) for script in scripts if script != "examples/quickstart_report.py"),
    )
    for quoted in BACKTICKS.findall(text):
        for flag in FLAG.findall(quoted):
            assert flag in known, f"README.md: {quoted}"


def test_the_files_that_documents_name_exist():
    pages = sorted(f"docs/{path.name}" for path in (PROJECT_ROOT / "docs").glob("*.md"))
    for document in ("README.md", "CONTRIBUTING.md", *pages):
        text = (PROJECT_ROOT / document).read_text(encoding="utf-8")
        named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|toml))`", text))
        roots = (PROJECT_ROOT, PROJECT_ROOT / "colossal_llama", PROJECT_ROOT / "colossal_llama" / "training")
        assert [name for name in sorted(named) if not any((root / name).is_file() for root in roots)] == [], document
        bare = set(re.findall(r"`([\w-]+\.(?:py|sh))`", text))
        assert bare <= {path.name for path in project_files(PROJECT_ROOT, "")}, document
        linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
        folder = (PROJECT_ROOT / document).parent
        assert [target for target in linked if not (folder / target).exists()] == [], document


MESSAGES_OF_OTHERS = {"ChildFailedError", "Error waiting on exit barrier", "No space left on device", "socket.gaierror"}


def texts_in(tree: ast.AST) -> Iterator[str]:
    """The strings of a module; what an f-string fills in becomes an ellipsis."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_that_the_readme_explains_are_printed():
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Troubleshooting")[2].partition("\n## ")[0]
    symptoms = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    assert len(symptoms) > 15
    modules = project_files(PROJECT_ROOT / "colossal_llama")
    printed = "\n".join(text for path in modules for text in texts_in(ast.parse(path.read_text(encoding="utf-8"))))
    quoted = [
        fragment.strip()
        for symptom in symptoms
        for quote in BACKTICKS.findall(symptom)
        for fragment in quote.split("…")
    ]
    assert [text for text in quoted if text not in printed and text not in MESSAGES_OF_OTHERS] == []


def glossary_rows() -> list[list[str]]:
    """The cells of each term: term, meaning, module, source."""
    lines = (PROJECT_ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] != "term"]


def test_every_term_of_the_glossary_is_used_where_it_says():
    rows = glossary_rows()
    assert len(rows) > 50
    assert len({row[0] for row in rows}) == len(rows), "one meaning each"
    package = PROJECT_ROOT / "colossal_llama"
    code = "\n".join(path.read_text(encoding="utf-8") for path in project_files(package)).lower()
    for term, meaning, module, _ in rows:
        assert meaning
        assert (package / module.strip("`")).is_file(), f"{term}: {module}"
        assert re.search(re.sub("[ -]", "[\\\\s_-]*", term.lower()), code), f"no module has the term {term!r}"


# Words that this project once used in place of the field's, docs/glossary.md.
DIALECT = re.compile(
    r"\b(frugal|lean (zero|update|offload)|(made|makes?) again|signs? of life|last words|host watch|sets? aside"
    r"|held files?|to the letter|is no number|bad steps?|beside|see each other|chapters|whole story)\b"
)
CONTRACT_KEYS = {'"frugal": settings.selective'}  # a key of the dry run's record


def test_the_words_are_those_of_the_field():
    package = project_files(PROJECT_ROOT / "colossal_llama")
    documents = [PROJECT_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md")]
    found = []
    for path in (*package, *documents):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if DIALECT.search(line.lower()) and not any(key in line for key in CONTRACT_KEYS):
                found.append(f"{path.relative_to(PROJECT_ROOT)}:{number}: {line.strip()}")
    assert found == []


NO_BEGINNING = re.compile(r"(What|Where|Whether|Which|Who|How|Of|When|Why)\b")


def test_docstrings_begin_with_a_verb_or_a_term():
    found = []
    for path in (*project_files(PROJECT_ROOT / "colossal_llama"), *project_files(PROJECT_ROOT / "benchmarks")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if NO_BEGINNING.match(text):
                    found.append(f"{path.relative_to(PROJECT_ROOT)}: {text.splitlines()[0]}")
    assert found == []


def test_no_document_names_parts_by_a_pattern_that_drops_some_of_them():
    """`part-0000*` is ten parts at most, and a preparation may have more."""
    files = [file for suffix in (".md", ".sh", ".py", ".example") for file in project_files(PROJECT_ROOT, suffix)]
    told = [
        file for file in files if file.name != "CHANGELOG.md" and "tests" not in file.relative_to(PROJECT_ROOT).parts
    ]
    assert len(told) > 100
    found = [file for file in told if re.search(r"part-0+(\*|\?|\[|\{)", file.read_text(encoding="utf-8"))]
    assert found == []
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    given = re.findall(r"--dataset ([^\s`]*arrow[^\s`]*)", readme)
    assert len(given) > 5
    assert {path.rpartition("/")[2] for path in given} == {"arrow"}
