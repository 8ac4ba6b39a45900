"""An option of any script is read somewhere: parsed and unused, it would be an empty promise."""

import ast
import re

from tests.support.project_tree import project_files


def test_every_option_of_the_other_scripts_is_read_somewhere(project_root):
    """In the file that declares it or one named after it; of arguments.py in the package."""
    elsewhere = {"tests", "training", "dataset"}
    scripts = [
        path for path in project_files(project_root) if not elsewhere & set(path.relative_to(project_root).parts)
    ]
    declared = {path: options for path in scripts if (options := options_of(path.read_text()))}
    assert len(declared) > 15
    for path, options in declared.items():
        sources = [*path.parent.glob(f"{path.stem}*.py")]
        sources += [  # a benchmark may hand its options to another one's functions
            source
            for name in re.findall(r"^from benchmarks\.(\w+) import", path.read_text(), re.MULTILINE)
            for source in (project_root / "benchmarks").glob(f"{name}*.py")
        ]
        if path.name == "arguments.py":
            sources = [*path.parent.glob("*.py"), *project_root.glob("*.py")]
        code = "\n".join(source.read_text() for source in sources)
        for option in options:
            assert re.search(rf"\b_?(arguments|options)\.{option}\b", code), f"{path}: {option}"


def options_of(code: str) -> list[str]:
    """Under which names the options go that a script declares."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = []
    for call in (call for call in calls if getattr(call.func, "attr", None) == "add_argument"):
        flags = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        if not flags:  # utils/arguments.py, whose options are declared elsewhere
            continue
        names.append(next((flag for flag in flags if flag.startswith("--")), flags[0]).lstrip("-"))
    return names
