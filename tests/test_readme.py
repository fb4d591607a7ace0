"""Commands, options, files and links that the README names exist."""

from __future__ import annotations

import re
from functools import cache

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from pevl_cli.cli.app import app

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NAMES = (
    *("classify", "pose", "train", "benchmark", "compare", "ablate", "demo"),
    *("models fetch", "models", "data check", "data"),
)
# The part of a line that belongs to one command, as in `pevl demo && pevl classify CLIP.mp4`.
HEADINGS = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
COMMANDS = sorted(set(re.findall(rf"\bpevl ({'|'.join(NAMES)})\b([^\n`&|]*)", README)))
# Options of other programs.
OTHERS = {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"} | {
    "--logdir"
}


@cache
def help_of(command: str) -> str:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("command", "rest"), COMMANDS)
def test_every_option_of_a_command_in_the_readme_exists(command: str, rest: str) -> None:
    for option in re.findall(r"--[a-z-]+", rest):
        assert re.search(rf"{option}\b", help_of(command)), f"pevl {command} has no {option}"


def test_every_option_in_the_readme_exists_somewhere() -> None:
    helps = "".join(help_of(name) for name in NAMES)
    known = {*re.findall(r"--[a-z-]+", helps)} | OTHERS
    assert {*re.findall(r"(?<![-\w])--[a-z][a-z-]+", README)} <= known


def test_the_readme_shows_every_command() -> None:
    shown = {command.split()[0] for command, _ in COMMANDS}
    assert shown == {name.split()[0] for name in NAMES}


def test_every_file_of_the_tree_exists() -> None:
    block = README.split("The files, along the data's way:")[1].split("\n\n")[1]
    named = re.findall(r"[a-z_]+(?:/[a-z_]+)*(?:\.py|/)", block)
    assert len(named) > 8
    for name in named:
        assert (REPOSITORY / name).exists() or (REPOSITORY / "pevl_cli" / name).exists(), name


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in HEADINGS}
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (REPOSITORY / target).exists(), target


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_no_placeholder_is_left(file: str) -> None:
    assert not re.findall(r"@[A-Z_]+@", (REPOSITORY / file).read_text(encoding="utf-8"))
