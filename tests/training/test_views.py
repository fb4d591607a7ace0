"""A frozen stem sees each view of a clip once: before training, and not again in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import StopError, same, settings_of, stop_after, weights

from pevl_cli.errors import PevlError
from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.training.progress import Event
from pevl_cli.training.train import train

POSE_STEM: dict[str, Any] = {"model__image_size": 64, "data__variations": 2}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of views in each call of the frozen network."""
    counts: list[int] = []
    observe = PoseStem.observe

    def counted(self: PoseStem, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        counts.append(len(x))
        return observe(self, x)

    monkeypatch.setattr(PoseStem, "observe", counted)
    return counts


@pytest.mark.slow
def test_each_view_is_computed_once(moves: Path, tmp_path: Path, seen: list[int]) -> None:
    events: list[Event] = []
    settings = settings_of(moves, tmp_path / "run", **POSE_STEM)
    result = train(settings, events.append)
    prepared = [e for e in events if e.stage == "preparing"]
    # Two views of each training clip; then each validation clip and its mirror image, and one
    # example of each label for its prototype.
    assert prepared[-1].done == prepared[-1].total == 2 * result.train_clips
    examples = sum(seen) - 2 * result.train_clips - 2 * result.val_clips
    assert 0 < examples <= 2 * result.train_clips
    assert result.epochs == 4 and not (tmp_path / "run" / "views").exists()


@pytest.mark.slow
def test_a_continued_run_draws_the_same_views(moves: Path, tmp_path: Path) -> None:
    given = {"run__save_minutes": 0, "optim__batch_size": 2, **POSE_STEM}
    train(settings_of(moves, tmp_path / "whole", **given))
    settings = settings_of(moves, tmp_path / "cut", **given)
    with pytest.raises(StopError):
        train(settings, stop_after(5))
    assert not (tmp_path / "cut" / "views").exists()
    train(settings, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.slow
def test_without_variations_each_use_is_a_new_view(
    moves: Path, tmp_path: Path, seen: list[int]
) -> None:
    events: list[Event] = []
    settings = settings_of(moves, tmp_path / "run", **POSE_STEM | {"data__variations": 0})
    train(settings, events.append)
    assert not any(event.stage == "preparing" for event in events)
    assert sum(seen) >= 12 * 4  # steps times clips


@pytest.mark.slow
def test_without_room_on_the_disk_each_use_is_a_new_view(moves: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    settings = settings_of(moves, tmp_path / "run", **POSE_STEM, data__cache_gb=1e-6)
    assert train(settings, events.append).epochs == 4
    assert len([e for e in events if e.stage == "preparing"]) < 2


def test_a_gradient_that_is_never_finite_ends_the_run(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pevl_cli.training.trainer.MAX_STUCK_STEPS", 3)
    infinite = torch.tensor(torch.inf)
    monkeypatch.setattr("lightning_fabric.Fabric.clip_gradients", lambda *_, **__: infinite)
    fast = {"model__stem": "patch", "model__patch_size": 16}
    with pytest.raises(PevlError, match="stands still: the gradient was not finite in 3 steps"):
        train(settings_of(moves, tmp_path / "run", **fast))
