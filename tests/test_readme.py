"""What the README says can be typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"pevl (classify|train|pose)\b([^\n`]*)", README)))


@cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pevl_cli", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return done.stdout


@pytest.mark.parametrize(("command", "rest"), COMMANDS)
def test_every_option_in_the_readme_exists(command: str, rest: str) -> None:
    for option in re.findall(r"--[a-z-]+", rest):
        assert re.search(rf"{option}\b", help_of(command)), f"pevl {command} has no {option}"


def test_every_file_of_the_tree_exists() -> None:
    block = README.split("The files, along the data's way:")[1].split("\n\n")[1]
    named = re.findall(r"[a-z_]+(?:/[a-z_]+)*(?:\.py|/)", block)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "pevl_cli" / name).exists(), name


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
