"""The clip that pevl draws itself, through the real pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pevl_cli import recognise
from pevl_cli.cli.app import app
from pevl_cli.media.video import read_timeline
from pevl_cli.output import demo_clip as demo


def test_the_figure_jumps_from_closed_to_open_and_back() -> None:
    closed, opened = demo.joints_at(0), demo.joints_at(demo.JACK_S / 2)
    assert closed["left_wrist"][1] > closed["left_hip"][1] - 40 > closed["head"][1]
    assert opened["left_wrist"][1] < opened["head"][1]
    wide = opened["left_ankle"][0] - opened["right_ankle"][0]
    assert wide > 2 * (closed["left_ankle"][0] - closed["right_ankle"][0])
    again = demo.joints_at(demo.JACK_S)
    for name, point in closed.items():
        assert np.allclose(again[name], point, atol=1e-6)
    # It faces us and stays in the picture.
    for time_s in np.linspace(0, demo.SECONDS, 50):
        at = demo.joints_at(float(time_s))
        assert at["left_shoulder"][0] > at["right_shoulder"][0]
        assert all(0 < x < demo.WIDTH and 0 < y < demo.HEIGHT for x, y in at.values())


@pytest.mark.slow
def test_the_command_names_it_and_writes_nothing_elsewhere(
    pose_weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "yolo"))
    variables = (str(cache), str(tmp_path / "yolo"))
    before = {f for f in cache.rglob("*") if f.is_file()}
    out = tmp_path / "out"
    completed = CliRunner().invoke(
        app, ["demo", "--out", str(out), "--pose-weights", str(pose_weights), "--device", "cpu"]
    )
    assert completed.exit_code == 0, completed.output
    assert (os.environ["PEVL_CACHE"], os.environ["YOLO_CONFIG_DIR"]) == variables
    assert sorted(f.name for f in out.iterdir()) == ["demo.mp4", "demo.png"]
    assert {f for f in cache.rglob("*") if f.is_file()} == before
    lines = [line for line in completed.output.splitlines() if "│" in line]
    assert lines[0].startswith("│ 1 │ jumping_jack")
    assert sum(line.startswith("  pevl ") for line in completed.output.splitlines()) == 3
    assert cv2.imread(str(out / "demo.png")).shape[0] == 360
    timeline = read_timeline(out / "demo.mp4")
    assert len(timeline) == round(demo.FPS * demo.SECONDS)
    answer = recognise.load(pose_weights=pose_weights, device="cpu").classify(out / "demo.mp4")
    assert answer.person.frames_seen == 48
