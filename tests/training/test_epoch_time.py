"""The time that an epoch would take: measured parts, and what they add up to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import MOVES
from tiny_runs import FAST, settings_of

from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.timing import ReadingTime
from pevl_cli.labels import LabelSet
from pevl_cli.model.config import ModelConfig
from pevl_cli.training import step_time
from pevl_cli.training.epoch_time import EpochTime, _duration, measure_epoch
from pevl_cli.training.plan import make_plan
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.training.step_time import StepTime, measure_step

LABELS = LabelSet(tuple(MOVES), tuple(MOVES))
EPOCH = EpochTime(
    clips=1000,
    train_clips=800,
    steps=100,
    batch_size=8,
    processes=1,
    workers=0,
    cache_bytes=1e12,
    reading=ReadingTime(clips=4, decode_s=0.1, pose_s=0.9, sample_bytes=1e6),
    step=StepTime(3.0, "on cpu, random weights"),
    notes=(),
)


def large(**options: object) -> TrainSettings:
    overrides = {"data.dataset": ".", "run.device": "cpu", "optim.batch_size": 8}
    return load_settings(
        "vit-b-16", overrides | {k.replace("__", "."): v for k, v in options.items()}
    )


@pytest.mark.parametrize(
    ("changes", "first_s", "later_s"),
    [
        ({}, 1000 * (0.1 + 0.9) + 300, 300),
        # Loader processes read while steps are computed, but one device detects.
        ({"workers": 2}, 1000 * (0.1 / 2 + 0.9), 300),
        ({"workers": 2, "processes": 2}, 1000 * (0.1 / 4 + 0.9 / 2), 300),
        ({"workers": 64}, 1000 * (0.1 / 4 + 0.9), 300),  # four cores
        # Half of the 1,000 clips do not fit into the cache: they are decoded again.
        ({"cache_bytes": 5e8}, 1300, 400 * 0.1 + 300),
        ({"reading": None}, 300, 300),
        ({"step": None}, None, None),
    ],
)
def test_the_parts_add_up(
    changes: dict[str, object],
    first_s: float | None,
    later_s: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    epoch = replace(EPOCH, **changes)  # type: ignore[arg-type]
    for first, expected in ((True, first_s), (False, later_s)):
        assert epoch.seconds(first) == (expected and pytest.approx(expected))
    assert len(epoch.rows()) == 3


def test_the_rows_say_what_was_measured_and_how() -> None:
    rows = dict(EPOCH.rows())
    assert rows["first epoch"] == "about 22 min: reading 1,000 clips 17 min, 100 steps 5 min"
    assert rows["later epochs"] == "about 5 min: clips from the cache, 100 steps 5 min"
    assert rows["measured"] == (
        "decoding 0.1 s a clip, pose 0.9 s (first epoch only), by 4 clips; step 3 s for 8 clips, "
        "on cpu, random weights; without validation"
    )
    full = dict(replace(EPOCH, cache_bytes=0, workers=1).rows())["later epochs"]
    assert full == (
        "about 5 min: decoding 100% of the clips again 80 s (see data.cache_gb), at the same time "
        "100 steps 5 min"
    )
    unknown = dict(replace(EPOCH, step=None, notes=("no step was measured",)).rows())
    assert unknown["first epoch"] == "unknown: reading 1,000 clips 17 min"
    assert unknown["measured"].endswith("; no step was measured")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0514, "0.051 s"), (41.3, "41 s"), (600, "10 min"), (11000, "3.1 h"), (1e6, "12 days")],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_a_small_run_is_measured_and_leaves_nothing(
    moves: Path, tmp_path: Path, own_cache: Path
) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__min_steps=0, **FAST)
    manifest = read_manifest(moves)
    epoch = measure_epoch(settings, manifest, None, make_plan(settings, manifest))
    assert (epoch.clips, epoch.train_clips, epoch.steps, epoch.batch_size) == (15, 12, 3, 4)
    assert epoch.reading is not None and epoch.reading.clips == 8
    assert epoch.step is not None and epoch.step.measured == "on cpu, random weights"
    assert epoch.seconds(True) is not None and epoch.notes == ()
    assert not (tmp_path / "run").exists() and not (own_cache / "samples").exists()


def test_what_cannot_be_measured_is_said(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = settings_of(moves, tmp_path / "run", **FAST)
    manifest = read_manifest(moves)
    items = tuple(replace(item, path=tmp_path / "gone.mp4") for item in manifest.items)
    monkeypatch.setattr(step_time.Trainer, "step", full)
    epoch = measure_epoch(
        settings, replace(manifest, items=items), None, make_plan(settings, manifest)
    )
    assert epoch.reading is None and epoch.step is None
    assert "no clip could be read" in epoch.notes[0] and "memory is too small" in epoch.notes[1]


class FakeStep:
    """A step of 2 s, and 3 s for each layer; ``made``: layers and text layers of all of them."""

    clock_s = 0.0
    made: ClassVar[list[tuple[int, int]]] = []

    def __init__(
        self, settings: TrainSettings, labels: LabelSet, config: ModelConfig, clips: int
    ) -> None:
        self.layers = config.layers
        self.clips = clips
        self.made.append((config.layers, config.text_layers))

    def __call__(self) -> float:
        seconds = 2.0 + 3.0 * self.layers
        FakeStep.clock_s += seconds
        return seconds


@pytest.mark.parametrize(
    ("limit_s", "seconds", "how"),
    [
        (100, 4 * (2 + 12 * 3), "2 clips and 1 and 2 of 12 layers"),
        (10, 4 * (12 * 5), "2 clips and 1 of 12 layers, as an upper bound"),
    ],
)
def test_a_large_model_on_a_cpu_is_measured_by_a_part(
    limit_s: float, seconds: float, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_time, "_Step", FakeStep)
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: FakeStep.clock_s)
    monkeypatch.setattr(FakeStep, "clock_s", 0.0)
    step = measure_step(large(), LABELS, limit_s)
    assert step.seconds == pytest.approx(seconds)
    assert step.measured == f"from {how}, on cpu, random weights"
    assert FakeStep.clock_s <= max(limit_s, 5)
    accumulated = measure_step(large(optim__accumulate=3), LABELS, 100)
    assert accumulated.seconds == pytest.approx(3 * 4 * (2 + 12 * 3))


def test_the_text_tower_is_cut_as_the_image_tower_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all of its layers would be counted once for each layer of the image tower."""
    monkeypatch.setattr(step_time, "_Step", FakeStep)
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: FakeStep.clock_s)
    monkeypatch.setattr(FakeStep, "made", [])
    measure_step(large(model__text_layers=24), LABELS, 100)
    assert FakeStep.made == [(1, 2), (2, 4)]


def test_a_step_of_each_process_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "_Step", FakeStep)
    monkeypatch.setattr(step_time, "choose_device", lambda name: "cuda")
    step = measure_step(large(run__processes=4), LABELS, 0)
    assert step == StepTime(2 + 12 * 3, "on cuda, random weights")


@pytest.mark.slow
def test_a_step_is_measured_under_torchrun(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in Fabric's "you must call `.launch()`"."""
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    settings = settings_of(moves, tmp_path, **FAST)
    assert measure_step(settings, LABELS, 0.0).seconds > 0


def test_layers_are_cut_off_a_model_that_can_be_trained() -> None:
    sizes = {
        "model__width": 32,
        "model__heads": 2,
        "model__image_size": 32,
        "model__text_width": 32,
    }
    sizes |= {"model__text_layers": 1, "model__embed_dim": 16, "model__p2v_layers": (0, 5)}
    step = measure_step(large(**sizes), LABELS, 5)
    assert step.seconds > 0 and "of 12 layers" in step.measured
