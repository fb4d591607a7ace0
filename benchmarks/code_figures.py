"""Figures of a package's code: sizes, imports between its files, docstrings.

    python benchmarks/code_figures.py pevl_cli

A room is a top-level name below the package: a folder, or a file beside it. Imports count distinct
pairs (file, imported file), also of imports inside functions, as `tests/test_architecture.py` finds
them; the `__init__.py` of the package itself is no room. Functions are the public ones: names
without a leading underscore at module level, and such methods of public classes. A docstring
gives shapes or units where it, or that of the function's class, has a shape in brackets such as
"(N, C)" or "(…, d)", or a unit: px, seconds, s, ms, Hz, fps, degrees, bytes, "in [0, 1]", "%",
"scalar". It should in functions that take or give tensors or arrays; their share is printed, too.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SHAPE = r"\((?:…|\.\.\.|[A-Z]\w{0,2}(?:·\w+)?|\d+)\s*,[^()]*\)"
UNIT = r"\b(?:px|pixels?|seconds?|s|ms|Hz|fps|degrees|bytes|scalar)\b|in \[-?\d, ?\d\]|%"
SHAPE_OR_UNIT = re.compile(f"{SHAPE}|{UNIT}")
ARRAY = re.compile(r"\b(?:Tensor|ndarray)\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package.resolve()
    for name, value in figures(package).items():
        print(f"{name:58} {value}")


def figures(package: Path) -> dict[str, str]:
    """Each figure by its name, in the order in which they are printed."""
    files = {
        ".".join(p.relative_to(package).with_suffix("").parts)
        .removesuffix("__init__")
        .strip("."): p
        for p in sorted(package.rglob("*.py"))
    }
    texts = {module: p.read_text(encoding="utf-8") for module, p in files.items()}
    trees = {module: ast.parse(text) for module, text in texts.items()}
    lines = {module: len(text.splitlines()) for module, text in texts.items()}
    longest = max(lines, key=lambda module: lines[module])
    spans = {
        f"{module}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
    }
    longest_function = max(spans, key=lambda name: spans[name])
    pairs = {(m, used) for m, tree in trees.items() for used in imports(tree, package.name, files)}
    rooms = {(m.partition(".")[0], used.partition(".")[0]) for m, used in pairs}
    public = [f for tree in trees.values() for f in public_functions(tree)]
    arrays = [f for f in public if ARRAY.search(signature(f[0]))]
    return {
        "files": f"{len(files)}",
        "lines": f"{sum(lines.values()):,}",
        "longest file": f"{lines[longest]} ({longest or '__init__'})",
        "longest function": f"{spans[longest_function]} ({longest_function})",
        "imports between files": f"{len(pairs)}",
        "rooms": f"{len({m.partition('.')[0] for m in files if m})}",
        "imports between rooms": f"{len({(a, b) for a, b in rooms if a != b and a and b})}",
        "public functions": f"{len(public)}",
        "  with a docstring": share(public, lambda f: bool(f[1])),
        "  with a docstring that gives shapes or units": share(public, has_shapes),
        "public functions of tensors or arrays": f"{len(arrays)}",
        "  with a docstring that gives shapes or units ": share(arrays, has_shapes),
    }


def imports(tree: ast.Module, package: str, files: dict[str, Path]) -> set[str]:
    """The package's own files that a file imports; `from pevl_cli.media import video` is one."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {n.partition(".")[2] for n in names if n.partition(".")[0] == package}
    return {n if n in files else n.rpartition(".")[0] for n in own} & files.keys()


Function = tuple[ast.FunctionDef | ast.AsyncFunctionDef, str, str]


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Public functions and methods, each with its docstring and that of its class ("" = none)."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and node.name[0] != "_":
            yield node, ast.get_docstring(node) or "", ""
        elif isinstance(node, ast.ClassDef) and node.name[0] != "_":
            for method in node.body:
                if isinstance(method, FUNCTIONS) and method.name[0] != "_":
                    of_class = ast.get_docstring(node) or ""
                    yield method, ast.get_docstring(method) or "", of_class


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Parameters and return type, as text."""
    returns = "" if function.returns is None else ast.unparse(function.returns)
    return f"{ast.unparse(function.args)} -> {returns}"


def has_shapes(function: Function) -> bool:
    """Whether its docstring, or its class's where it has one itself, gives shapes or units."""
    _, own, of_class = function
    return bool(own) and bool(SHAPE_OR_UNIT.search(own) or SHAPE_OR_UNIT.search(of_class))


def share(functions: list[Function], holds: Callable[[Function], bool]) -> str:
    """How many of the functions something holds for, and the share in %."""
    count = sum(bool(holds(f)) for f in functions)
    return f"{count} ({count / max(len(functions), 1):.0%})"


if __name__ == "__main__":
    main()
