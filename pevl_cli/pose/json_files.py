"""TODO."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.pose.skeletons import LAYOUTS, layout_of
from pevl_cli.pose.stored import READING, StoredPoses, _check_joints, _valid

# The name that a JSON file bears beside that of its clip.
CLIP_SUFFIX = re.compile(r"_pose3d$|_keypoints$|_predictions$")


def _clip_name(file: Path) -> str:
    return CLIP_SUFFIX.sub("", file.stem)


# -- JSON of other tools --------------------------------------------------------------------------


def read_json(path: Path, layout: str | None = None) -> StoredPoses:
    """One clip's poses as JSON by MMPose, Ultralytics, in COCO's result form, or of Smarthome."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PevlError(f"{path}: cannot be read as JSON ({error}).") from error
    size = (0, 0)
    try:
        if isinstance(content, dict) and "njts" in content:
            people, layout = _of_smarthome(content), layout or "smarthome13"
            size = (640, 480)  # of all its cameras
        elif isinstance(content, dict) and "instance_info" in content:
            people = _of_mmpose(content["instance_info"])
        elif isinstance(content, list) and content and _has(content[0], "instances"):
            people = _of_mmpose(content)
        elif isinstance(content, list) and content and _has(content[0], "image_id"):
            people = _of_coco_results(content)
        elif isinstance(content, list):
            people = _of_ultralytics(content)
        else:
            raise ValueError("its form is not known")
        joints = next((p.shape[1] for p in people if len(p)), 0)
        people = [_valid(p) if len(p) else np.zeros((0, joints, 3), np.float32) for p in people]
        if len({p.shape[1] for p in people if len(p)}) > 1:
            raise ValueError("its frames have different numbers of joints")
    except READING as error:
        raise PevlError(
            f"{path}: not poses as MMPose, Ultralytics, COCO's results or Toyota Smarthome write "
            f"them ({error})."
        ) from error
    if not people:
        raise PevlError(f"{path}: there is no frame in it.")
    people = [p[(p[..., 2] > 0).any(-1)] for p in people]
    layout = layout or (layout_of(joints, path) if joints else "coco17")
    if joints:
        _check_joints(joints, layout, str(path))
    else:
        people = [np.zeros((0, len(LAYOUTS[layout].names), 3), np.float32) for _ in people]
    return StoredPoses(_clip_name(path), people, layout, *size)


def _has(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _of_smarthome(content: dict[str, Any]) -> list[np.ndarray]:
    """Columns: x of all joints, then y of all; -1 is missing."""
    count, frames = int(content["njts"]), []
    for people in content["frames"]:
        points = [np.array(p["pose2d"], np.float32).reshape(2, count).T for p in people]
        frames.append(np.array([np.c_[p, (p != -1).all(-1)] for p in points]).reshape(-1, count, 3))
    return frames


def _of_mmpose(content: list[dict[str, Any]]) -> list[np.ndarray]:
    """A frame: {"frame_id", "instances": [{"keypoints": J x 2, "keypoint_scores": J}]}."""
    frames = []
    for frame in content:
        people = [
            np.c_[np.array(i["keypoints"], np.float32)[:, :2], i["keypoint_scores"]]
            for i in frame["instances"]
        ]
        frames.append(np.array(people) if people else np.zeros((0, 0, 3)))
    return frames


def _of_ultralytics(content: list[Any]) -> list[np.ndarray]:
    """A frame: what `Results.to_json` gives, [{"keypoints": {"x", "y", "visible"}}]."""
    if content and isinstance(content[0], dict):
        content = [content]  # of one picture
    frames = []
    for frame in content:
        found = json.loads(frame) if isinstance(frame, str) else frame
        people = []
        for person in found:
            k = person["keypoints"]
            people.append(np.c_[k["x"], k["y"], k.get("visible", np.ones(len(k["x"])))])
        frames.append(np.array(people) if people else np.zeros((0, 0, 3)))
    return frames


def _of_coco_results(content: list[dict[str, Any]]) -> list[np.ndarray]:
    """[{"image_id", "keypoints": x, y, score of each joint}]; frames by the number in their id."""
    by_frame: dict[tuple[int, str], list[np.ndarray]] = {}
    for person in content:
        name = str(person["image_id"])
        number = re.findall(r"\d+", name)
        joints = np.array(person["keypoints"], np.float32).reshape(-1, 3)
        by_frame.setdefault((int(number[-1]) if number else 0, name), []).append(joints)
    if not by_frame:
        return []
    numbers = {key[0]: np.array(people) for key, people in by_frame.items()}
    if len(numbers) < len(by_frame):
        raise ValueError("it holds frames of several videos; one file a clip is needed")
    # Frames in which nobody was found are not listed.
    first, last = min(numbers), max(numbers)
    return [numbers.get(i, np.zeros((0, 0, 3))) for i in range(first, last + 1)]
