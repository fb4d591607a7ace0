"""Which folder a checkpoint's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from pevl_cli.errors import PevlError
from pevl_cli.model.checkpoint import find
from pevl_cli.weights import BUNDLED


def test_a_folder_of_a_bundled_name_does_not_hide_the_bundled_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pevl-mini"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    assert find("pevl-mini") == BUNDLED / "pevl-mini"
    assert find("./pevl-mini") == Path("pevl-mini")
    assert find(folder) == find(folder / "config.json") == folder


def test_a_name_that_means_nothing_lists_the_bundled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PevlError, match=r"no such checkpoint folder.*pevl-mini"):
        find("mine")
    (tmp_path / "mine").mkdir()
    with pytest.raises(PevlError, match=r"config.json is missing"):
        find("mine")
