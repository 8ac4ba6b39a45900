"""The architecture of the package, read from its source: modules, imports, ways through the code.

    python -m tests.support.architecture            the rooms, who imports whom, and the floors
    python -m tests.support.architecture --room training    the same inside one room
    python -m tests.support.architecture --ways     the files that four things visit
    python -m tests.support.architecture --write    the list of modules in docs/architecture.md

Nothing of the package is imported: all is read from syntax trees.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.support.project_tree import project_files

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "colossal_llama"
DOCUMENT = PROJECT_ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: begin -->", "<!-- modules: end -->"
COMMAND = "python -m tests.support.architecture"


@dataclass(frozen=True)
class Module:
    """A module of the package.

    Attributes:
        name: dotted, without the package's name: `dataset.loader`.
        path: of its file.
        source: text of the file.
    """

    name: str
    path: Path
    source: str = field(repr=False)

    @property
    def room(self) -> str:
        """The top-level package it is in; its own name for a module of the root."""
        return self.name.split(".")[0]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    @property
    def is_script(self) -> bool:
        """True when it has a block `if __name__ == "__main__"`."""
        tests = [node.test for node in self.tree.body if isinstance(node, ast.If)]
        return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)

    @cached_property
    def imported_names(self) -> frozenset[str]:
        """Every imported name in full, also of imports inside functions."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        return frozenset(found)


class Package:
    """All modules of the package and the imports between them."""

    def __init__(self, root: Path = PROJECT_ROOT):
        self.folder = folder = root / PACKAGE
        paths = project_files(folder)
        modules = [Module(dotted(path.relative_to(folder)), path, path.read_text(encoding="utf-8")) for path in paths]
        self.modules = {module.name: module for module in modules if module.name}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """For each module the modules of the package that it imports."""
        return {name: set(self._imported_by(module)) for name, module in self.modules.items()}

    def _imported_by(self, module: Module) -> Iterator[str]:
        for imported in module.imported_names:
            package, _, name = imported.partition(".")
            if package == PACKAGE:
                found = self.find(name)
                if found is not None:
                    yield found

    def find(self, name: str) -> str | None:
        """The module that a name is, or is defined in; None for the names of the package itself."""
        if name in self.modules:
            return name
        outer = name.rpartition(".")[0]
        return outer if outer in self.modules else None

    def unit(self, name: str, room: str | None = None) -> str | None:
        """The room of a module; within a room the sub-package or module of it, None outside."""
        first, *rest = name.split(".")
        if room is None:
            return first
        return rest[0] if first == room and rest else None

    def arrows(self, room: str | None = None) -> Counter[tuple[str, str]]:
        """Number of imports from one room to another, or between the units of one room."""
        pairs = ((source, target) for source, targets in self.imports.items() for target in targets)
        units = ((self.unit(source, room), self.unit(target, room)) for source, target in pairs)
        return Counter((high, low) for high, low in units if high and low and high != low)

    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or through others."""
        reach = {name: self._reachable(name) for name in self.imports}
        groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in reach}
        return sorted(sorted(group) for group in groups if group)

    def _reachable(self, name: str) -> set[str]:
        seen: set[str] = set()
        pending = [name]
        while pending:
            for target in self.imports[pending.pop()] - seen:
                seen.add(target)
                pending.append(target)
        return seen

    def floors(self, room: str | None = None) -> list[list[str]]:
        """The rooms (or units of one room) by floor: one above the highest of those it imports."""
        units = {unit for name in self.modules if (unit := self.unit(name, room))}
        arrows = self.arrows(room)
        floor: dict[str, int] = {}
        while len(floor) < len(units):
            ready = {
                unit: 1 + max((floor[low] for high, low in arrows if high == unit), default=-1)
                for unit in units - floor.keys()
                if all(low in floor for high, low in arrows if high == unit)
            }
            if not ready:
                raise ValueError(f"{sorted(units - floor.keys())} import each other in a circle")
            floor |= ready
        return [sorted(unit for unit in units if floor[unit] == level) for level in range(max(floor.values()) + 1)]


def dotted(path: Path) -> str:
    """The dotted name of the module in a file of the package."""
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def draw_rooms(package: Package, room: str | None = None) -> str:
    """The rooms (or units of one room) from the highest floor down, with what each imports."""
    lines = [
        f"{'floor':<7}{'room' if room is None else room:<26}{'modules':>7}{'lines':>8}  imports (number of imports)"
    ]
    all_arrows = package.arrows(room)
    floors = package.floors(room)
    for level, units in reversed(list(enumerate(floors))):
        for unit in units:
            modules = [module for name, module in package.modules.items() if package.unit(name, room) == unit]
            code = sum(len(module.source.splitlines()) for module in modules)
            arrows = sorted((low, count) for (high, low), count in all_arrows.items() if high == unit)
            below = ", ".join(f"{low} ({count})" for low, count in arrows) or "-"
            count = sum(not module.is_package for module in modules)
            lines.append(f"{level:<7}{unit:<26}{count:>7}{code:>8}  {below}")
    modules = [module for name, module in package.modules.items() if package.unit(name, room)]
    code = sum(len(module.source.splitlines()) for module in modules)
    units = sum(map(len, floors))
    lines.append(
        f"{units} units on {len(floors)} floors, {len(all_arrows)} arrows, {len(modules)} files, {code:,} lines"
    )
    return "\n".join(lines)


def list_modules(package: Package) -> str:
    """The list of modules of docs/architecture.md: a table a package, a line a module."""
    lines: list[str] = []
    folders = sorted({module.path.parent for module in package.modules.values()})
    for folder in folders:
        inside = [m for m in package.modules.values() if m.path.parent == folder and not m.is_package]
        if not inside:
            continue
        title = folder.relative_to(package.folder.parent).as_posix()
        lines += [f"### `{title}/`", "", "| module | subject |", "|---|---|"]
        lines += [f"| `{m.path.name}` | {m.summary.replace('|', chr(92) + '|')} |" for m in inside]
        lines.append("")
    return "\n".join(lines)


def with_modules(text: str, package: Package) -> str:
    """The document with a fresh list of modules between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{list_modules(package)}\n{END}{after}"


# ------------------------------------------------------------------------ ways through the code


@dataclass(frozen=True)
class Way:
    """The files that one thing visits on its way through the code.

    Attributes:
        title: what goes from where to where.
        starts: `module:function` where the way begins; all that these call, directly or through
            others, is followed.
        stops: modules that are not entered, as other things go there.
        identifiers: instead of `starts`, the names under which the thing is handed on.
    """

    title: str
    starts: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()


WAYS = (
    Way(
        "a document, from jsonl to a row on disk",
        starts=("dataset.prepare.pipeline:_tokenize", "dataset.prepare.pipeline:_write_parts"),
        stops=(
            "dataset.conversation",
            "dataset.chat_template",
            "dataset.long_conversations",  # the other kind of record
            *(f"readers.{kind}_rows" for kind in ("csv", "json", "table", "tar", "text")),  # other formats
            "readers.json_ranges",
            "dataset.prepare.range_entries",
            "dataset.prepare.mixture_plan",  # parts of a mixture, which are then written as others are
            "dataset.mixture.plan_tables",
            "dataset.mixture.plan_plot",
        ),
    ),
    Way(
        "a row, from disk to the model's forward call",
        starts=("training.trainer:Trainer._remaining_steps", "training.train_step:TrainStep._run_micro_batches"),
    ),
    Way("--recompute_layers", identifiers=("recompute_layers", "requested_layers")),
    Way(
        "a checkpoint, to disk and back",
        starts=(
            "training.trainer:Trainer._save",
            "training.checkpoint.discovery:find_checkpoint",
            "training.checkpoint.restore:restore",
        ),
    ),
)


class CallGraph:
    """Which functions of the package a function mentions.

    A name is resolved through the module's imports, `self.name` in its own class. `x.name` leads to
    the method of that name of every class which the module defines or imports, unless it is not
    called and may be a field. That may find too many; it misses objects whose
    class the module does not name.
    """

    def __init__(self, package: Package):
        self.package = package
        self.functions: dict[str, ast.FunctionDef] = {}
        self.classes: dict[str, dict[str, str]] = {}
        self.fields: set[str] = set()
        for module in package.modules.values():
            self._define(module)

    def _define(self, module: Module) -> None:
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[f"{module.name}:{node.name}"] = node
            elif isinstance(node, ast.ClassDef):
                methods = {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
                key = f"{module.name}:{node.name}"
                self.classes[key] = {name: f"{key}.{name}" for name in methods}
                self.functions |= {f"{key}.{name}": inner for name, inner in methods.items()}
                self.fields |= set(_field_names(node))

    def follow(self, starts: tuple[str, ...], stops: tuple[str, ...] = ()) -> list[str]:
        """The functions reached, in the order in which they are found."""
        missing = [start for start in starts if start not in self.functions]
        if missing:
            raise ValueError(f"there is no function {missing}")
        seen = dict.fromkeys(starts)
        pending = list(starts)
        while pending:
            for target in self._mentioned(pending.pop(0)):
                room = target.split(".")[0]
                if target not in seen and room != "utils" and target.split(":")[0] not in stops:
                    seen[target] = None
                    pending.append(target)
        return list(seen)

    def _mentioned(self, function: str) -> Iterator[str]:
        module, _, inside = function.partition(":")
        visible = self._visible(self.package.modules[module])
        own_class = f"{module}:{inside.partition('.')[0]}"
        nodes = list(_without_annotations(self.functions[function]))
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Name) and node.id in visible:
                yield from self._entered(visible[node.id])
            elif isinstance(node, ast.Attribute):
                yield from self._attribute(node, visible, own_class, called=id(node) in called)

    def _visible(self, module: Module) -> dict[str, str]:
        """The meaning of a module's names: functions and classes (`module:name`), or modules."""
        own = [key for key in (*self.functions, *self.classes) if key.startswith(f"{module.name}:")]
        visible = {key.split(":")[1]: key for key in own if "." not in key.split(":")[1]}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                origin = (node.module or "").partition(".")[2]
                for alias in node.names:
                    inner = f"{origin}.{alias.name}".lstrip(".")
                    meant = inner if inner in self.package.modules else f"{origin}:{alias.name}"
                    visible[alias.asname or alias.name] = meant
        return visible

    def _entered(self, meant: str) -> Iterator[str]:
        if meant in self.functions:
            yield meant
        for name, method in self.classes.get(meant, {}).items():
            if name in ("__init__", "__post_init__", "__enter__", "__exit__", "__call__", "__iter__"):
                yield method

    def _attribute(self, node: ast.Attribute, visible: dict[str, str], own_class: str, called: bool) -> Iterator[str]:
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if visible.get(owner) in self.package.modules:
            yield from self._entered(f"{visible[owner]}:{node.attr}")
            return
        for meant in [own_class] if owner == "self" else visible.values():
            method = self.classes.get(meant, {}).get(node.attr)
            if method is None:
                continue
            if called or owner == "self" or node.attr not in self.fields or _is_property(self.functions[method]):
                yield method


def _is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("property") for decorator in function.decorator_list)


def _field_names(node: ast.ClassDef) -> Iterator[str]:
    """The names that a class declares or assigns to `self`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            yield inner.target.id
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr


def _without_annotations(function: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a function but those of its annotations."""
    pending = [function]
    while pending:
        node = pending.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                children = value if isinstance(value, list) else [value]
                pending += [child for child in children if isinstance(child, ast.AST)]


def files_on_way(package: Package, way: Way) -> list[str]:
    """The modules that a way visits."""
    if way.identifiers:
        return [name for name, module in package.modules.items() if _identifiers(module.tree) & set(way.identifiers)]
    return list(dict.fromkeys(key.split(":")[0] for key in CallGraph(package).follow(way.starts, way.stops)))


def _identifiers(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                found.add(value)
    return found


def draw_ways(package: Package) -> str:
    """Each way with the number of files and their names, `utils` left out."""
    lines = []
    for way in WAYS:
        files = files_on_way(package, way)
        lines.append(f"{way.title}: {len(files)} files")
        lines += [f"    {package.modules[name].path.relative_to(package.folder)}" for name in files]
    return "\n".join(lines)


def main() -> None:
    """Prints the rooms or the ways, or writes the list of modules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", action="store_true", help="print the files that four things visit")
    parser.add_argument("--write", action="store_true", help=f"write the list of modules to {DOCUMENT.name}")
    parser.add_argument("--room", help="draw the inside of this room")
    parser.add_argument("--root", type=Path, default=PROJECT_ROOT, help="checkout to read, for instance an earlier one")
    options = parser.parse_args()
    package = Package(options.root)
    if options.write:
        DOCUMENT.write_text(with_modules(DOCUMENT.read_text(encoding="utf-8"), package), encoding="utf-8")
    print(draw_ways(package) if options.ways else draw_rooms(package, options.room))


if __name__ == "__main__":
    main()
