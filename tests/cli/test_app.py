"""The command as a whole: help, version, usage errors, the settings of its process."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command import Pevl, one_line
from conftest import MakeVideo, child_environment, write_video

from pevl_cli import __version__, choices
from pevl_cli.cli.ablate import Name
from pevl_cli.data.manifest import SPLITS
from pevl_cli.evaluation.ablation import ABLATIONS
from pevl_cli.hardware import PRECISIONS
from pevl_cli.model.config import ModelConfig

COMMANDS = (
    *("classify", "pose", "train", "benchmark", "compare", "ablate", "demo", "models", "data"),
)
QUICK = """
import sys
from pevl_cli.cli.app import main
sys.argv = ["pevl", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = {"torch", "ultralytics", "open_clip"} & sys.modules.keys()
print("code", code, "loaded", sorted(heavy))
"""


def in_a_process(*arguments: object) -> tuple[str, str]:
    """Last line of stdout, and stderr, of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *map(str, arguments)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS, "models fetch", "data check"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    last, err = in_a_process(*command.split(), "--help")
    assert last == "code 0 loaded []"
    assert err == ""


def test_wrong_input_is_reported_before_torch_is_loaded(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("jump\nturn\njump\n")
    last, err = in_a_process("classify", make_video(frames=2), "--labels", labels)
    assert last == "code 1 loaded []"
    assert "line 3" in one_line(err)
    last, err = in_a_process("train", "--dataset", tmp_path / "gone")
    assert last == "code 1 loaded []"
    assert str(tmp_path / "gone") in one_line(err)


@pytest.mark.parametrize("arguments", [["--version"], ["--debug", "--version"]], ids=" ".join)
def test_version(pevl: Pevl, arguments: list[str]) -> None:
    done = pevl(*arguments)
    assert (done.code, done.out, done.err) == (0, f"pevl {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "{film}", "--views", "2"], "--views 2"),
        (["classify", "{film}", "--output", "{film}/.."], "folder"),
        (["classify", "{film}", "--output", "gone/answer.json"], "does not exist"),
        (["classify", "{film}", "--pose-weights", "gone.pt"], "gone.pt"),
        (["classify", "{film}", "--clip", "ViT-B-16:openai"], "--labels"),
        (["classify", "{film}", "--checkpoint", "{tiny}", "--device", "abacus"], "abacus"),
        (
            [
                *("classify", "{film}", "--checkpoint", "{tiny}", "--precision", "fp16"),
                *("--device", "cpu", "--no-pose"),
            ],
            "fp16",
        ),
        (["pose", "{film}", "--draw", "film.xyz"], ".mp4"),
        (["pose", "{film}", "{film}2", "--draw", "film.mp4"], "one video"),
        (["pose", "{film}", "--export", "pyskl", "--output", "a.pkl"], "hint: --export FILE.pkl"),
        (["pose", "{film}", "--store", "a.txt"], "must end in .npz"),
        (["pose", "{film}", "--store", "a.npz", "--format", "csv"], "--format"),
        (["pose", "{film}", "--workers", "2"], "--store FILE.npz"),
        (["pose", "{film}", "--processes", "2"], "--workers"),
        (["benchmark", "--dataset", ".", "--views", "2"], "--views 2"),
        (["ablate", "ucmr", "--dataset", ".", "--config", "huge"], "mini"),
        (["train", "--dataset", ".", "--config", "huge"], "mini"),
        (["train", "--dataset", ".", "--no-video", "--no-pose"], "no input"),
    ],
    ids=lambda v: " ".join(v[2:]) if isinstance(v, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, arguments: list[str], message: str
) -> None:
    film = make_video(frames=2)
    done = pevl(*(a.format(film=film, tiny=tiny_checkpoint) for a in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in one_line(done.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "VIDEO"),
        (["classify", "a.mp4", "--bogus"], "--bogus"),
        (["classify", "a.mp4", "--top-k", "0"], "--top-k"),
        (["classify", "a.mp4", "--format", "xml"], "--format"),
        (["classify", "a.mp4", "--start", "soon"], "--start"),
        (["pose", "a.mp4", "--frames", "7"], "--frames"),
        (["train"], "--dataset"),
        (["train", "--dataset", ".", "--epochs", "0"], "--epochs"),
        (["train", "--dataset", ".", "--crop", "round"], "--crop"),
        (["train", "--dataset", ".", "--gpus", "0"], "--gpus"),
        (["train", "--dataset", ".", "--learning-rate", "-1"], "--learning-rate"),
        (["train", "--dataset", ".", "--seed", "-1"], "--seed"),
        (["train", "--dataset", ".", "--crop", "actor"], "--crop"),
        (["benchmark"], "--dataset"),
        (["benchmark", "--dataset", ".", "--split", "all"], "--split"),
        (["benchmark", "--dataset", ".", "--epochs", "3"], "--epochs"),
        (["benchmark", "a", "--dataset", "."], "a"),
        (["ablate", "everything", "--dataset", "."], "everything"),
        (["ablate", "ucmr"], "--dataset"),
        (["ablate", "ucmr", "--dataset", ".", "--views", "3"], "--views"),
        (["compare"], "RUN"),
        (["dance"], "dance"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_the_parser_refuses_ends_with_exit_code_2(
    pevl: Pevl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, 2)
    monkeypatch.chdir(tmp_path)
    done = pevl(*arguments, *(["--no-pose"] if arguments[0] == "train" else []))
    assert (done.code, done.out) == (2, "")
    assert message in done.err and "Traceback" not in done.err


def test_debug_shows_where_an_error_came_from(
    pevl: Pevl, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = ["classify", tmp_path / "gone.mp4", "--checkpoint", tiny_checkpoint, "--no-pose"]
    plain, debugged = pevl(*command), pevl("--debug", *command)
    assert plain.code == debugged.code == 1
    assert "does not exist" in one_line(plain.err)
    assert "Traceback" in debugged.err and "check_files_exist" in debugged.err
    assert debugged.err.splitlines()[-1] == plain.err.strip()


@pytest.mark.slow
def test_in_a_process_of_its_own(make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    good, bad = make_video("good.mp4", frames=5), make_video("bad.mp4", frames=1)
    bad.write_bytes(b"")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pevl_cli", "classify", str(good), str(bad), "--no-pose"),
            *("--checkpoint", str(tiny_checkpoint), "--format", "json", "--device", "cpu"),
        ],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert [r["video"] for r in json.loads(done.stdout)] == [str(good)]
    error, summary = done.stderr.splitlines()
    assert error.startswith(f"error: {bad}: ") and "1 of 2" in summary


# -- spellings of earlier releases ------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("benchmark --compare a 'b c' -o x.md", "pevl compare a 'b c' -o x.md"),
        ("--debug benchmark a b --compare", "pevl compare a b"),
        ("benchmark --ablation ucmr --dataset d", "pevl ablate ucmr --dataset d"),
        ("benchmark --dataset d --ablation=ucmr --seed 1", "pevl ablate ucmr --dataset d --seed 1"),
        ("benchmark --dataset d --ablation", "pevl ablate NAME --dataset d"),
    ],
)
def test_an_old_spelling_gives_the_new_command(pevl: Pevl, old: str, new: str) -> None:
    done = pevl(*shlex.split(old))
    assert (done.code, done.out) == (2, "")
    assert one_line(done.err) == f"error: this option is now a separate command; use: {new}"


def test_every_table_of_the_paper_can_be_named() -> None:
    assert get_args(Name) == tuple(ABLATIONS)


def test_choices_of_the_command_line_are_those_of_the_settings() -> None:
    assert {*get_args(choices.Precision)} == {"auto", *PRECISIONS}
    assert get_args(choices.Split) == SPLITS
    assert {*get_args(choices.Crop)} <= {*get_args(ModelConfig.model_fields["crop"].annotation)}


# -- the settings of the process --------------------------------------------------------------

SETTINGS = """
import logging, os, sys, warnings
before = dict(os.environ), list(warnings.filters)
import pevl_cli.cli.app
assert (dict(os.environ), list(warnings.filters)) == before, "on import"
sys.argv = ["pevl", "--version"]
try:
    pevl_cli.cli.app.main()
except SystemExit:
    pass
import lightning_fabric.utilities.distributed as noisy
print(os.environ["TOKENIZERS_PARALLELISM"], os.environ["OMP_WAIT_POLICY"])
print(noisy.log.isEnabledFor(logging.WARNING), logging.getLogger().isEnabledFor(logging.WARNING))
"""


@pytest.mark.slow
def test_only_the_command_changes_its_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS],
        env=child_environment(OMP_WAIT_POLICY="ACTIVE"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["false ACTIVE", "False True"]
