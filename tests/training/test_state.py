"""What a continued run needs: every key is checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import FAST, SMALL, settings_of

from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.training.state import Progress, TrainState
from pevl_cli.training.train import train

WEIGHT = "visual.proj"
State = dict[str, Any]


@pytest.fixture(scope="module")
def trained(moves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(settings_of(moves, folder, optim__epochs=2, optim__min_steps=4, **FAST))
    return folder


@pytest.fixture
def resume(moves: Path, trained: Path, tmp_path: Path) -> Callable[[Callable[[State], Any]], str]:
    """Change a copy of the run's state, continue it, and give the error's message."""

    def call(change: Callable[[State], Any]) -> str:
        folder = shutil.copytree(trained, tmp_path / "run")
        file = folder / "state.pt"
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)
        settings = settings_of(moves, folder, optim__epochs=2, optim__min_steps=4, **FAST)
        with pytest.raises(PevlError) as error:
            train(settings, resume=True)
        message = str(error.value)
        assert str(file) in message and "--resume" in message and "\n" not in message
        return message

    return call


def removed(weights: State) -> None:
    del weights[WEIGHT]


def renamed(weights: State) -> None:
    weights["visual.projection"] = weights.pop(WEIGHT)


def added(weights: State) -> None:
    weights["visual.second"] = weights[WEIGHT]


def reshaped(weights: State) -> None:
    weights[WEIGHT] = weights[WEIGHT][:1]


def halved(weights: State) -> None:
    weights[WEIGHT] = weights[WEIGHT].half()


@pytest.mark.parametrize("model", ["model", "averaged"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed, f"weight '{WEIGHT}' is missing"),
        (renamed, f"weight '{WEIGHT}' is missing"),
        (added, "weight 'visual.second' is unknown"),
        (reshaped, f"weight '{WEIGHT}' has another shape"),
        (halved, f"weight '{WEIGHT}' has another shape or type"),
    ],
)
def test_the_weights_are_exactly_those_of_the_model(
    resume: Callable[[Callable[[State], Any]], str],
    change: Callable[[State], None],
    message: str,
    model: str,
) -> None:
    """Before, a model was continued with whatever of it was stored."""
    assert message in resume(lambda state: change(state[model]))


@pytest.mark.parametrize("key", [f.name for f in fields(TrainState) if f.name != "file"])
def test_no_entry_may_be_missing(resume: Callable[[Callable[[State], Any]], str], key: str) -> None:
    assert f"entry '{key}' is missing" in resume(lambda state: state.pop(key))


def test_every_entry_of_the_progress_is_checked(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained / "state.pt", weights_only=True)
    for field in fields(Progress):
        progress = {k: v for k, v in stored["progress"].items() if k != field.name}
        torch.save({**stored, "progress": progress}, tmp_path / "state.pt")
        with pytest.raises(PevlError, match=f"entry '{field.name}' is missing"):
            TrainState.load(tmp_path)


def shorten_moments(state: State) -> None:
    moments = state["optimiser"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"][:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(more=1), "entry 'more' is unknown"),
        (lambda s: s["progress"].update(more=1), "entry 'more' is unknown"),
        (lambda s: s["progress"]["last"].pop("top5"), "entry 'top5' is missing"),
        (lambda s: s["calibration"].update(slope=1.0), "calibration has other entries"),
        (lambda s: s["settings"].pop("model.frame_pool"), "it lacks setting model.frame_pool"),
        (lambda s: s["settings"].update(old="1"), "it has the unknown setting old"),
        (lambda s: s.update(averaged=None), "no averaged weights"),
        (lambda s: s.update(prototypes=torch.zeros(2, 2)), "prototypes have another shape"),
        (lambda s: s["optimiser"]["param_groups"].pop(), "optimiser has other parameters"),
        (lambda s: s["optimiser"]["param_groups"][0].pop("lr"), "entry 'lr' is missing"),
        (lambda s: s["optimiser"]["state"][0].pop("exp_avg"), "entry 'exp_avg' is missing"),
        (shorten_moments, "parameter 0 has another shape"),
        (lambda s: s["schedule"].pop("last_epoch"), "entry 'last_epoch' is missing"),
        (lambda s: s["precision"].update(scale=1.0), "entry 'scale' is unknown"),
    ],
)
def test_all_else_is_checked_too(
    resume: Callable[[Callable[[State], Any]], str],
    change: Callable[[State], Any],
    message: str,
) -> None:
    assert message in resume(change)


def test_a_state_comes_back_whole(trained: Path, tmp_path: Path) -> None:
    state = TrainState.load(trained)
    assert state.progress.steps == 6 and state.progress.epochs == 2
    assert state.progress.last is not None and state.progress.last.count == 3
    assert state.calibration is not None and state.calibration.clips == 3
    assert state.prototypes is not None and state.prototypes.shape == (3, SMALL["embed_dim"])
    state.save(tmp_path)
    again = TrainState.load(tmp_path)
    assert again.progress == state.progress and again.calibration == state.calibration
    assert again.model.keys() == state.model.keys()
    assert all(torch.equal(again.model[k], state.model[k]) for k in state.model)


def test_a_run_is_continued_with_its_own_settings(moves: Path, tmp_path: Path) -> None:
    short = {"optim__epochs": 1, "optim__min_steps": 1, **FAST}
    train(settings_of(moves, tmp_path / "run", **short))
    facts = (tmp_path / "run" / "run.json").read_text()
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "0.mp4").unlink()
    fewer = settings_of(data, tmp_path / "run", **short)
    with pytest.raises(PevlError, match=r"data.dataset = .*, not"):
        train(fewer, resume=True)
    with pytest.raises(PevlError, match=r"the training clips .* changed"):
        given = settings_of(moves, tmp_path / "run", **short)
        train(given, resume=True, manifest=read_manifest(data))
    stored = (tmp_path / "run" / "settings.yaml").read_text()
    other = settings_of(moves, tmp_path / "run", optim__lr=0.5, **short)
    with pytest.raises(PevlError, match=r"optim.lr = 0.001, not 0.5"):
        train(other, resume=True)
    assert (tmp_path / "run" / "settings.yaml").read_text() == stored
    assert (tmp_path / "run" / "run.json").read_text() == facts
    with pytest.raises(PevlError, match="no run to continue"):
        train(settings_of(moves, tmp_path / "none"), resume=True)
