"""Imports run one way, and each heavy library is known to one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pevl_cli

PACKAGE = Path(pevl_cli.__file__).parent
# A module imports from the lines above its own only. `model` is all of model/.
LAYERS = (
    {"", "errors"},
    {"labels", "cache", "hardware", "skeletons", "yolo"},
    {"video", "model", "pickles"},
    {"pose", "datasets"},
    {"recorded", "settings"},
    {"samples", "extract"},
    {"evaluate", "metrics", "cost", "clips", "run"},
    {"recognise", "train", "models"},
    {"report", "plan", "benchmark"},
    {"ablation", "page", "compare", "demo"},
    {"console"},
    {"cli"},
    {"__main__"},
)
ONLY = {
    "av": {"video", "report"},
    "ultralytics": {"yolo"},
    "typer": {"cli"},
    "rich": {"console"},
    "open_clip": {"model.clip"},
    "lightning_fabric": {"train"},
    "yaml": {"settings", "run", "console"},
    "sklearn": {"metrics"},
    "plotly": {"page"},
    "jinja2": {"page"},
    "huggingface_hub": {"models"},
    "transformers": set[str](),
}
MODEL_MAY_USE = {"", "errors", "labels", "cache", "skeletons", "yolo"}
SAMPLES_MAY_USE = {"model.config", "model.pevl"}
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


def layer(module: str) -> int:
    top = module.partition(".")[0]
    places = [i for i, names in enumerate(LAYERS) if top in names]
    assert places, f"say in LAYERS where {module} stands"
    return places[0]


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_imports_run_one_way(module: str) -> None:
    in_model, in_datasets = f"{module}.".startswith("model."), module.startswith("datasets")
    for used in own(module):
        if (in_model and f"{used}.".startswith("model.")) or (
            in_datasets and used.startswith("datasets")
        ):
            continue
        assert layer(used) < layer(module), f"{module} imports {used}, which stands after it"
        if in_model:
            assert used in MODEL_MAY_USE, f"{module} sees tensors and strings only, not {used}"
        if module == "samples" and used.startswith("model"):
            assert used in SAMPLES_MAY_USE, f"samples has no business with {used}"


@pytest.mark.parametrize("library", ONLY)
def test_each_library_is_known_to_one_place(library: str) -> None:
    users = {m for m in MODULES if any(n.split(".")[0] == library for n in imports(m))}
    assert users == ONLY[library]
