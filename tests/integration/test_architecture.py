"""The architecture: who may import whom, what stays free of PyTorch, the list of modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import architecture
from tests.support.architecture import PACKAGE, PROJECT_ROOT, Package, dotted, files_on_way, with_modules
from tests.support.preparations import preparation
from tests.support.project_tree import project_files

ROOT_MODULES = {"__main__", "commands"}  # the command line of the package, which names the rooms' commands in strings
BELOW_ENGINE = {"utils", "readers", "tokenizer", "dataset", "model"}
MAY_IMPORT = {
    "utils": set(),
    "readers": {"utils"},
    "tokenizer": {"utils", "readers"},
    "dataset": {"utils", "readers", "tokenizer"},
    "model": {"utils", "readers", "tokenizer"},
    "engine": BELOW_ENGINE,
    "training": BELOW_ENGINE | {"engine", "evaluation"},
    "inference": BELOW_ENGINE,
    "export": BELOW_ENGINE | {"inference"},
    "evaluation": BELOW_ENGINE | {"inference"},
    "cleaning": BELOW_ENGINE | {"evaluation"},
    "cluster": {"utils", "readers"},
    "commands": {"utils"},
    "__main__": {"commands"},
}
FILES_OF_A_RUN = {"training.checkpoint.state", "training.record_files"}  # names alone
TORCH_FREE_ROOMS = ("utils", "readers", "cluster")
TORCH_FREE = (
    "cleaning.arguments",
    "cleaning.clean_corpus",
    "cleaning.document",
    "commands",
    "dataset.prepare.arguments",
    "dataset.prepare.cli",
    "evaluation.arguments",
    "evaluation.cli",
    "evaluation.faults",
    "evaluation.statistics",
    "evaluation.questions",
    "evaluation.text_arguments",
    "export.arguments",
    "inference.arguments",
    "model.param_count",
    "training.argument_checks",
    "training.arguments",
    "training.checkpoint.archive",
    "training.checkpoint.discovery",
    "training.checkpoint.state",
    "training.command_line",
    "training.memory.allocator",
    "training.memory.config",
    "training.memory.estimate",
    "training.parallel_layout",
)
LONGEST_FUNCTION_LINES = 70
EMPTY_NAMES = {"utils", "helpers", "misc", "manager", "common"}


@pytest.fixture(scope="module")
def package() -> Package:
    return Package()


def test_imports_between_rooms_go_down_only(package):
    assert {module.room for module in package.modules.values()} <= MAY_IMPORT.keys()
    forbidden = [
        f"{source} imports {target}"
        for source, targets in package.imports.items()
        for target in targets
        if (high := package.modules[source].room) != (low := package.modules[target].room)
        and low not in MAY_IMPORT[high]
        and not (high == "training" and target == "cluster.survey")
        and not (high == "export" and target in FILES_OF_A_RUN)
    ]
    assert forbidden == []


def test_no_modules_import_each_other_in_a_circle(package):
    assert package.circles() == []


def test_only_the_engine_imports_colossalai(package):
    importers = {
        name
        for name, module in package.modules.items()
        for imported in module.imported_names
        if imported.split(".")[0] == "colossalai"
    }
    assert importers
    assert {name for name in importers if package.modules[name].room != "engine"} == set()


def test_nothing_imports_a_script(package):
    scripts = {name for name, module in package.modules.items() if module.is_script}
    assert "tokenizer.init_tokenizer" in scripts
    imported = {f"{source} imports {target}" for source, low in package.imports.items() for target in low & scripts}
    assert imported == set()


def test_triton_kernels_are_imported_by_their_neighbour_alone(package):
    kernels = [name for name in package.modules if name.endswith("_triton")]
    assert kernels
    for kernel in kernels:
        importers = {source for source, targets in package.imports.items() if kernel in targets}
        assert importers == {kernel.removesuffix("_triton")}


def test_packages_import_nothing():
    files = [path for path in project_files(PROJECT_ROOT) if path.name == "__init__.py" and PACKAGE in path.parts]
    assert len(files) > 10
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        is_root = path.parent.name == PACKAGE  # which refuses an old Python
        assert imports == (["import sys"] if is_root else []), path


def test_no_module_has_an_empty_name(package):
    names = {name.rpartition(".")[2] for name, module in package.modules.items() if not module.is_package}
    assert names & EMPTY_NAMES == set()


def test_no_function_is_too_long(package):
    long = [
        f"{name}.{node.name}: {length} lines"
        for name, module in package.modules.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION_LINES
    ]
    assert long == []


def test_what_runs_before_a_model_is_needed_is_free_of_torch(package):
    names = [name for name, module in package.modules.items() if module.room in TORCH_FREE_ROOMS or name in TORCH_FREE]
    assert set(TORCH_FREE) <= set(names)
    program = f"""
import importlib, sys
for name in {[f"{PACKAGE}.{name}" for name in names]}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{{name}} imports torch")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_module_says_its_subject_in_one_line(package):
    assert [name for name, module in package.modules.items() if not module.summary] == []


def test_the_list_of_modules_is_that_of_the_tree(package):
    text = architecture.DOCUMENT.read_text(encoding="utf-8")
    assert with_modules(text, package) == text, f"stale: run {architecture.COMMAND} --write"


def test_an_option_is_known_to_five_files_at_most(package):
    way = next(way for way in architecture.WAYS if way.title == "--recompute_layers")
    files = files_on_way(package, way)
    assert "training.arguments" in files
    of_training = [file for file in files if not file.startswith("model.expansion.")]  # which has no such option
    assert len(of_training) <= 5


def test_the_ways_begin_at_functions_that_exist(package):
    for way in architecture.WAYS:
        files = files_on_way(package, way)
        assert 2 < len(files) < 45, way.title


def test_the_way_of_a_document_has_every_file_that_a_preparation_runs(package, made_llama2, tmp_path, monkeypatch):
    from colossal_llama.dataset.prepare import pipeline

    visited = set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(package.folder) and frame.f_code.co_name != "<module>":
            visited.add(dotted(path.relative_to(package.folder)))

    def traced(function):
        def call(*arguments):
            sys.setprofile(note)
            try:
                return function(*arguments)
            finally:
                sys.setprofile(None)

        return call

    way = next(way for way in architecture.WAYS if way.title.startswith("a document"))
    for start in way.starts:
        name = start.split(":")[1]
        monkeypatch.setattr(pipeline, name, traced(getattr(pipeline, name)))
    examples = PROJECT_ROOT / "examples" / "pretrain"
    pipeline.prepare(preparation("pretrain", [examples], made_llama2, tmp_path / "out", max_length=128))
    assert "tokenizer.batch_encoder" in visited
    assert {name for name in visited if not name.startswith("utils.")} <= set(files_on_way(package, way))


def test_circles_and_floors_are_found_where_they_are():
    package = Package()
    package.imports = {"utils.errors": {"tokenizer.encoding"}, "tokenizer.encoding": {"utils.errors"}}
    assert package.circles() == [["tokenizer.encoding", "utils.errors"]]
    with pytest.raises(ValueError, match="circle"):
        package.floors()
