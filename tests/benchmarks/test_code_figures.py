"""Tests for benchmarks/code_figures.py."""

from __future__ import annotations

import runpy
from pathlib import Path

from conftest import REPOSITORY

import pevl_cli

SCRIPT = REPOSITORY / "benchmarks" / "code_figures.py"
FILES = {
    "__init__.py": "",
    "errors.py": "class Wrong(Exception):\n    pass\n",
    "model/__init__.py": "",
    "model/loss.py": """
from pkg.errors import Wrong
from pkg.model import parts

class Loss:
    def plain(self, x: Tensor) -> Tensor:
        return x

    def shaped(self, x: Tensor) -> Tensor:
        '''x (N, C) -> scalar.'''
        from pkg import media

        return media.half(x)

    def _hidden(self): ...
""",
    "model/parts.py": "from pkg import errors\n",
    "media.py": "def half(x):\n    '''Half of it.'''\n    return x / 2\n",
}


def test_figures_of_a_small_package(tmp_path: Path) -> None:
    for name, text in FILES.items():
        file = tmp_path / "pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    figures = runpy.run_path(str(SCRIPT))["figures"](tmp_path / "pkg")
    assert list(figures.values()) == [
        *("6", "21", "15 (model.loss)", "5 (model.loss.shaped)"),
        "4",  # loss -> errors, parts, media; parts -> errors
        *("3", "2"),
        *("3", "2 (67%)", "1 (33%)"),
        *("2", "1 (50%)"),
    ]


def test_figures_of_the_package() -> None:
    figures = runpy.run_path(str(SCRIPT))["figures"](Path(pevl_cli.__file__).parent)
    assert int(figures["files"]) > 50 and all(figures.values())
