"""Poses in JSON files of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeVideo
from poses import BODY, mmpose, people, written

from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.pose.json_files import read_json
from pevl_cli.pose.skeletons import LAYOUTS


def ultralytics(frames: list[np.ndarray]) -> list[list[dict[str, Any]]]:
    def person(p: np.ndarray) -> dict[str, Any]:
        x, y, score = p.T.tolist()
        return {"name": "person", "keypoints": {"x": x, "y": y, "visible": score}}

    return [[person(p) for p in frame] for frame in frames]


def coco_results(frames: list[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"image_id": f"clip_{t:05d}", "category_id": 1, "keypoints": p.ravel().tolist()}
        for t, frame in enumerate(frames)
        for p in frame
    ]


@pytest.mark.parametrize("form", ["mmpose", "mmpose with meta", "ultralytics", "text", "coco"])
def test_json_of_other_tools(form: str, tmp_path: Path) -> None:
    frames = [people(0, 60), people(1), people(2, 62)]
    contents: dict[str, object] = {
        "mmpose": mmpose(frames),
        "mmpose with meta": {"meta_info": {}, "instance_info": mmpose(frames)},
        "ultralytics": ultralytics(frames),
        "text": [json.dumps(f) for f in ultralytics(frames)],
        "coco": coco_results(frames),
    }
    stored = read_json(written(tmp_path / "a.json", contents[form]))
    assert stored.layout == "coco17"
    for read, frame in zip(stored.people, frames, strict=True):
        np.testing.assert_allclose(read, frame, atol=1e-3)
    assert stored.width == 0 and stored.canvas[0] >= 62 + BODY[:, 0].max()


def test_a_frame_with_nobody_stays_a_frame(tmp_path: Path) -> None:
    frames = [people(), people(5), people(), people(6)]
    for content in (mmpose(frames), ultralytics(frames)):
        stored = read_json(written(tmp_path / "a.json", content))
        assert [len(p) for p in stored.people] == [0, 1, 0, 1]


def test_smarthome_json_is_by_columns(tmp_path: Path) -> None:
    pose2d = [*range(100, 113), *range(200, 213)]
    pose2d[2] = pose2d[15] = -1  # right knee: not found
    content = {"njts": 13, "K": [], "frames": [[], [{"pose2d": pose2d, "pose3d": [0] * 39}]]}
    stored = read_json(written(tmp_path / "Walk_p02_r00_v01_c01_pose3d.json", content))
    assert (stored.name, stored.layout) == ("Walk_p02_r00_v01_c01", "smarthome13")
    nobody, (person,) = stored.people
    assert len(nobody) == 0 and (stored.width, stored.height) == (640, 480)
    names = LAYOUTS["smarthome13"].names
    assert person[names.index("left_ankle")].tolist() == [101, 201, 1]
    assert person[names.index("head")].tolist() == [112, 212, 1]
    assert person[names.index("right_knee")].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "unknown format"),
        ([[{"keypoints": {"x": [1]}}]], "not poses in a JSON format"),
        ([{"frame_id": 0, "instances": [{"keypoints": [[1, 2]]}]}], "not poses in a JSON format"),
        (mmpose([people(0)[:, :9]]), "no known layout has 9 joints"),
        ([], "it contains no frame"),
        ([{"image_id": f"{v}_1", "keypoints": [1] * 51} for v in "ab"], "several videos"),
    ],
)
def test_json_that_holds_no_poses(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PevlError, match=message):
        read_json(written(tmp_path / "a.json", content))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(PevlError, match="cannot be read as JSON"):
        read_json(tmp_path / "b.json")


def test_without_a_known_size_joints_stay_where_they_are(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    clip = sample_clip(make_video("a.mp4", frames=10), 48)
    stored = read_json(written(tmp_path / "a.json", mmpose([people(0)] * 10)))
    np.testing.assert_allclose(stored.actor_in(clip).joints[3, :, :2], BODY, atol=1e-3)
