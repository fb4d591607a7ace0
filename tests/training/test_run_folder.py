"""A run's folder: states that survive kills, damage and full disks, and the facts of the run."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path

import pytest
from tiny_runs import FAST, StopError, call, command, same, settings_of, stop_after, weights

from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.training import run_folder
from pevl_cli.training.settings import load_settings
from pevl_cli.training.state import TrainState
from pevl_cli.training.train import train


@pytest.mark.slow
def test_a_killed_run_that_is_continued_ends_as_if_nothing_had_happened(
    moves: Path, tmp_path: Path
) -> None:
    """A real process, killed while it writes its sixth state."""
    settings = settings_of(moves, tmp_path, run__save_minutes=0, optim__epochs=10)
    whole = call(command(settings, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    line = command(settings, folder)
    script = (
        "import os, runpy, signal, sys, torch\n"
        "save, calls = torch.save, []\n"
        "def dying(state, file):\n"
        "    calls.append(state)\n"
        "    if len(calls) == 6:\n"
        "        file.write(b'a part of a state')\n"
        "        file.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(state, file)\n"
        "torch.save = dying\n"
        f"sys.argv = {['pevl', *line[3:]]!r}\n"
        "runpy.run_module('pevl_cli', run_name='__main__')\n"
    )
    assert call([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert TrainState.load(folder).progress.steps == 4, "the fifth state that was written"
    assert not list(folder.glob(".*.tmp"))
    resumed = call([*line, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(tmp_path / "whole"), weights(folder))
    for name in ("best", "last"):
        file = Path(name) / "model.safetensors"
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), name


def test_a_damaged_state_gives_way_to_the_older_one(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run")
    train(settings)
    wanted = weights(tmp_path / "run")
    file = tmp_path / "run" / "state.pt"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="damaged"):
        train(settings, resume=True)
    assert same(weights(tmp_path / "run"), wanted), "the last epoch was done again"
    for name in ("state.pt", "state.older.pt"):
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning), pytest.raises(PevlError, match="no state of the run"):
        train(settings, resume=True)


def test_a_new_run_in_the_folder_of_an_old_one(moves: Path, tmp_path: Path) -> None:
    """It is not taken for a part of it, and the old one can still be had back."""
    settings = settings_of(moves, tmp_path / "run", optim__epochs=1)
    train(settings)
    old = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(StopError):
        train(settings_of(moves, tmp_path / "run", run__seed=4), stop_after(0))
    assert (tmp_path / "run" / "state.replaced.pt").read_bytes() == old
    assert TrainState.load(tmp_path / "run").progress.steps == 0, "the new one's"
    result = train(settings_of(moves, tmp_path / "run", run__seed=4), resume=True)
    train(settings_of(moves, tmp_path / "whole", run__seed=4))
    assert result.epochs == 4 and same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_is_told_and_costs_nothing_saved(moves: Path, tmp_path: Path) -> None:
    """No file may grow to the size of the state, and an earlier run lies in the folder."""
    # Without layers that a checkpoint keeps and a state does not.
    settings = settings_of(moves, tmp_path, optim__epochs=2, **FAST)
    folder = tmp_path / "run"
    assert call(command(settings, folder)).returncode == 0
    kept = (folder / "state.pt").read_bytes()
    limit = (folder / "state.pt").stat().st_size // 2
    line = command(settings_of(moves, tmp_path, optim__epochs=2, **FAST), folder)
    script = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv = {['pevl', *line[3:]]!r}\n"
        "runpy.run_module('pevl_cli', run_name='__main__')\n"
    )
    done = call([sys.executable, "-c", script])
    assert done.returncode == 1, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error:") and "state.pt" in message and "Traceback" not in done.stderr
    assert (folder / "state.replaced.pt").read_bytes() == kept
    assert not list(folder.glob(".*.tmp"))
    assert TrainState.load(folder).progress.steps == 0, "the first, small one can be continued"


def test_a_run_says_how_it_was_made(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__epochs=1, run__tracker="csv")
    train(settings)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"] == settings.model_dump(mode="json")
    assert {"torch", "pevl", "python", "lightning_fabric", "git", "data_hash", "seed"} <= set(about)
    assert load_settings(tmp_path / "run" / "settings.yaml") == settings
    (metrics,) = (tmp_path / "run" / "log").glob("*/metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/loss"] for row in rows) and any(row["val/top1"] for row in rows)
    manifest = read_manifest(moves)
    assert run_folder.data_hash(manifest) == about["data_hash"]
    assert run_folder.data_hash(read_manifest(moves, seed=1)) != about["data_hash"]


def test_a_run_that_does_not_exist_is_not_continued_and_leaves_no_folder(
    moves: Path, tmp_path: Path
) -> None:
    settings = load_settings(
        "mini", {"data.dataset": moves, "run.out": tmp_path / "nosuch", "run.device": "cpu"}
    )
    with pytest.raises(PevlError, match="contains no run to continue"):
        train(settings, resume=True)
    assert not (tmp_path / "nosuch").exists()
