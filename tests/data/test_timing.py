"""What is timed: some clips of all parts of a data set, and no longer than allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_config

from pevl_cli.data import timing
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.data.timing import ReadingTime, measure_reading, timed_sample
from pevl_cli.pose.detector import PoseDetector

CONFIG = tiny_config(image_size=32, crop="follow", pose=False)


def measure(items: list[Item], limit_s: float, detector: PoseDetector | None = None) -> ReadingTime:
    reading = measure_reading(items, CONFIG, detector, None, limit_s)
    assert reading is not None
    return reading


def test_decoding_and_pose_are_timed_without_a_cache(
    moves: Path, weights: Path, own_cache: Path
) -> None:
    items = list(read_manifest(moves).items)
    reading = measure(items, 60, PoseDetector(weights, device="cpu"))
    assert reading.clips == 8 and reading.decode_s > 0
    assert reading.pose_s is not None and reading.pose_s > 0
    sample = timed_sample(items[0], CONFIG, None, None).sample
    assert sample.frames is not None
    assert reading.sample_bytes == pytest.approx(sample.frames.nbytes + sample.joints.nbytes, 0.2)
    assert measure(items, 60).pose_s is None
    assert not own_cache.exists()


def test_clips_of_all_parts_are_timed_but_not_for_long(
    moves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(read_manifest(moves).items) * 100
    read: list[Item] = []

    def record(item: Item, *arguments: object) -> timing.TimedSample:
        read.append(item)
        return timed_sample(item, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(timing, "timed_sample", record)
    measure(items, 60)
    assert read == items[::187][:8] and {item.label for item in read} == {
        "run_on",
        "run_back",
        "stay",
    }
    read.clear()
    assert measure(items, 0).clips == 1 == len(read)


def test_unreadable_clips_are_passed_over(moves: Path) -> None:
    items = list(read_manifest(moves).items)[:4]
    gone = [replace(item, path=moves / "gone.mp4") for item in items]
    assert measure([*gone[:2], *items[2:]], 60).clips == 2
    assert measure_reading(gone, CONFIG, None, None, 60) is None
