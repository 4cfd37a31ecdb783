"""Reads which names each source file imports, without importing the file."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rocmforge_jax", "pallas_kernels")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Import:
    """One imported name.

    `name` is its full path, so `from a import b` counts as a.b. `bound` is the name that the file
    then uses. `hidden` marks an import inside a function.
    """

    name: str
    bound: str
    line: int
    hidden: bool


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module; a package's name stands for its __init__."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module's file."""
    return ast.parse(modules()[module].read_text())


def is_package(module: str) -> bool:
    """Whether a module is a folder with an __init__."""
    return modules()[module].name == "__init__.py"


@functools.cache
def imports(module: str) -> list[Import]:
    """Every import of a file except those under `if TYPE_CHECKING`, which never run."""
    return list(_imports(tree(module), False, module))


def _imports(node, hidden, module):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        if isinstance(child, ast.Import):
            for alias in child.names:
                bound = alias.asname or alias.name.split(".")[0]
                yield Import(alias.name, bound, child.lineno, hidden)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}:{child.lineno}: a relative import"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield Import(name, alias.asname or alias.name, child.lineno, hidden)
        yield from _imports(child, hidden or isinstance(child, FUNCTIONS), module)


def target(name: str) -> str | None:
    """The module that an imported name comes from; None where it is not one of this repository's.

    A package that imports names when they are first used lists them in its dictionary `_WHERE`.
    """
    if name in modules():
        return name
    module, _, attribute = name.rpartition(".")
    if module not in modules():
        return target(module) if module else None
    where = _lazy_names(module).get(attribute)
    return target(f"{module}.{where}.{attribute}") if where else module


@functools.cache
def _lazy_names(module: str) -> dict[str, str]:
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_WHERE":
            return ast.literal_eval(node.value)
    return {}


def arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) of this repository, imports in functions included."""
    found = {(module, target(i.name)) for module in modules() for i in imports(module)}
    return {(module, other) for module, other in found if other is not None and other != module}


def borrowed_names() -> set[tuple[str, str]]:
    """(module, name it takes) where the name belongs to a third module.

    `kernels.targets.current()` is one, where the file `kernels` only imported `targets`. So is
    `from kernels import targets`. Packages are exempt: handing names on is what an __init__ does.
    """
    found = set()
    for module in modules():
        found |= {(module, i.name) for i in imports(module) if _is_borrowed(i.name)}
        bound = {i.bound: i.name for i in imports(module) if i.name in modules()}
        found |= {(module, name) for name in _attributes(tree(module), bound) if _is_borrowed(name)}
    return found


def _is_borrowed(name):
    module, _, attribute = name.rpartition(".")
    if name in modules() or module not in modules() or is_package(module):
        return False
    return any(i.bound == attribute and target(i.name) for i in imports(module))


def _attributes(node, bound):
    """Full names of the attributes that code takes from the modules in `bound`."""
    if isinstance(node, FUNCTIONS):
        bound = {name: module for name, module in bound.items() if name not in _locals(node)}
    if isinstance(node, ast.Attribute):
        first, _, rest = ast.unparse(node).partition(".")
        if first in bound:
            yield f"{bound[first]}.{rest}"
    for child in ast.iter_child_nodes(node):
        yield from _attributes(child, bound)


def _locals(function):
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    stored = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return names | {node.id for node in stored if isinstance(node.ctx, ast.Store)}


def circles(graph: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    below = {module: {b for a, b in graph if a == module} for pair in graph for module in pair}

    def reached(module):
        seen, todo = set(), [module]
        while todo:
            new = below[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {module: reached(module) for module in below}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in below
        if module in reach[module]
    }
    return sorted(map(list, groups))
