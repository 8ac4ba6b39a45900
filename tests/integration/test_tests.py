"""Tests mirror the package; tests/README.md names the file of each property."""

import ast
import re

from tests.support.project_tree import project_files

WITHOUT_MODULE = {  # tests of a package or a script rather than of one module
    "cleaning/test_clean_command.py",
    "dataset/test_prepare_mixture.py",
    "dataset/test_prepare_pretrain.py",
    "dataset/test_prepare_robustness.py",
    "dataset/test_prepare_sft.py",
    "engine/test_gemini.py",
    "engine/test_patches.py",
    "model/test_kernels_in_interpreter.py",
}


def test_tests_mirror_the_package(project_root):
    modules = project_files(project_root / "colossal_llama")
    names = {
        (path.relative_to(project_root / "colossal_llama").parts[0], path.stem)
        for path in modules
        if len(path.parts) > 1
    }
    for path in project_files(project_root / "tests"):
        room, *_ = path.relative_to(project_root / "tests").parts
        if (
            path.name.startswith("test_")
            and room not in ("integration", "gpu", "campaigns")
            and f"{room}/{path.name}" not in WITHOUT_MODULE
        ):
            assert (room, path.stem.removeprefix("test_")) in names, path


def test_every_file_of_tests_stands_in_the_table(project_root):
    text = (project_root / "tests" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+/test_\w+\.py)`", text))
    tests = project_root / "tests"
    there = {str(path.relative_to(tests)) for path in project_files(tests) if path.name.startswith("test_")}
    assert listed == there


def test_tests_edit_no_import_path_and_import_no_benchmark(project_root):
    for path in project_files(project_root / "tests"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*sys\.path(\[|\.|\s*=)", text, flags=re.MULTILINE), path
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            benchmarks = {name for name in names if name.split(".")[0] == "benchmarks"}
            # Those make environments of other programs, and ask them.
            assert all(name.startswith("benchmarks.clients.") for name in benchmarks), path
