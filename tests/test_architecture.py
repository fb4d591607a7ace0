"""Imports run one way, and each heavy library is known to one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pevl_cli

PACKAGE = Path(pevl_cli.__file__).parent
# Rooms on floors: a room imports from the floors below it. Within a room, files may import each
# other, but not in a circle.
FLOORS = (
    {"errors", "choices", ""},
    {"labels", "cache", "hardware", "package_index"},
    {"weights"},
    {"media"},
    {"pose"},
    {"model"},
    {"data"},
    {"matching", "metrics"},
    {"recognise"},
    {"training"},
    {"output"},
    {"evaluation"},
    {"cli"},
    {"__main__"},
)
ONLY = {
    "av": {"media.video", "output.draw"},
    "ultralytics": {"pose.detector"},
    "typer": {"cli"},
    "rich": {"cli"},
    "open_clip": {"model.clip_source", "model.tokeniser"},
    "tokenizers": {"model.tokeniser"},
    "lightning_fabric": {"training"},
    "plotly": {"evaluation.report_page"},
    "jinja2": {"evaluation.report_page"},
    "sklearn": {"metrics"},
    "huggingface_hub": {"weights"},
    "transformers": set[str](),
}
LONGEST_FILE = 450  # lines
# model/ sees tensors and strings only: no video, no pose file, no detector.
MODEL_MAY_USE = {"errors", "labels", "cache", "weights", "pose.skeletons", "pose.detector"}
MODULES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").strip("."): p
    for p in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Full names of all that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(module: str) -> set[str]:
    """Which of our modules it imports; `from pevl_cli.video import Clip` is `video`."""
    names = {n.removeprefix("pevl_cli").strip(".") for n in imports(module) if n[:8] == "pevl_cli"}
    return {n if n in MODULES else n.rpartition(".")[0] for n in names}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    floors = [i for i, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert floors, f"say in FLOORS where {module} stands"
    return floors[0]


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_run_one_way(module: str) -> None:
    for used in own(module):
        if room(used) == room(module):
            continue
        assert floor(used) < floor(module), f"{module} imports {used}, which stands above it"
        if room(module) == "model":
            assert used in MODEL_MAY_USE, f"{module} sees tensors and strings only, not {used}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way[way.index(module) :], module))
        if module not in done:
            for used in own(module) & MODULES.keys():
                walk(used, (*way, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


@pytest.mark.parametrize("library", ONLY)
def test_each_library_is_known_to_one_place(library: str) -> None:
    users = {m for m in MODULES if any(n.split(".")[0] == library for n in imports(m))}
    assert {u if u in ONLY[library] else room(u) for u in users} == ONLY[library]


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
