"""Read poses in JSON files of MMPose, Ultralytics, COCO results, and Toyota Smarthome."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.pose.skeletons import LAYOUTS, find_layout
from pevl_cli.pose.stored import FORMAT_ERRORS, StoredPoses, check_joint_count, valid_joints

# Endings of the names of JSON files, after the clip's name.
CLIP_SUFFIX = re.compile(r"_pose3d$|_keypoints$|_predictions$")


def clip_name(file: Path) -> str:
    """The name of the clip of a JSON file: the file's name without an ending of CLIP_SUFFIX."""
    return CLIP_SUFFIX.sub("", file.stem)


def read_json(path: Path, layout: str | None = None) -> StoredPoses:
    """Read one clip's poses.

    ``layout`` None: by the number of joints. PevlError for other content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PevlError(f"{path}: cannot be read as JSON ({error}).") from error
    size = (0, 0)
    try:
        if isinstance(content, dict) and "njts" in content:
            people, layout = _smarthome_people(content), layout or "smarthome13"
            size = (640, 480)  # px; the same for all cameras of the data set
        elif isinstance(content, dict) and "instance_info" in content:
            people = _mmpose_people(content["instance_info"])
        elif isinstance(content, list) and content and _has(content[0], "instances"):
            people = _mmpose_people(content)
        elif isinstance(content, list) and content and _has(content[0], "image_id"):
            people = _coco_people(content)
        elif isinstance(content, list):
            people = _ultralytics_people(content)
        else:
            raise ValueError("unknown format")
        joints = next((p.shape[1] for p in people if len(p)), 0)
        people = [
            valid_joints(p) if len(p) else np.zeros((0, joints, 3), np.float32) for p in people
        ]
        if len({p.shape[1] for p in people if len(p)}) > 1:
            raise ValueError("its frames have different numbers of joints")
    except FORMAT_ERRORS as error:
        raise PevlError(
            f"{path}: not poses in a JSON format of MMPose, Ultralytics, COCO results or Toyota "
            f"Smarthome ({error})."
        ) from error
    if not people:
        raise PevlError(f"{path}: it contains no frame.")
    people = [p[(p[..., 2] > 0).any(-1)] for p in people]
    layout = layout or (find_layout(joints, path) if joints else "coco17")
    if joints:
        check_joint_count(joints, layout, str(path))
    else:
        people = [np.zeros((0, len(LAYOUTS[layout].names), 3), np.float32) for _ in people]
    return StoredPoses(clip_name(path), people, layout, *size)


def _has(value: object, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _smarthome_people(content: dict[str, Any]) -> list[np.ndarray]:
    """A person: x of all joints, then y of all joints; -1 = missing."""
    count, frames = int(content["njts"]), []
    for people in content["frames"]:
        points = [np.array(p["pose2d"], np.float32).reshape(2, count).T for p in people]
        frames.append(np.array([np.c_[p, (p != -1).all(-1)] for p in points]).reshape(-1, count, 3))
    return frames


def _mmpose_people(content: list[dict[str, Any]]) -> list[np.ndarray]:
    """A frame: {"frame_id", "instances": [{"keypoints": J x 2, "keypoint_scores": J}]}."""
    frames = []
    for frame in content:
        people = [
            np.c_[np.array(i["keypoints"], np.float32)[:, :2], i["keypoint_scores"]]
            for i in frame["instances"]
        ]
        frames.append(np.array(people) if people else np.zeros((0, 0, 3)))
    return frames


def _ultralytics_people(content: list[Any]) -> list[np.ndarray]:
    """A frame: the output of `Results.to_json`, [{"keypoints": {"x", "y", "visible"}}]."""
    if content and isinstance(content[0], dict):
        content = [content]  # a single image
    frames = []
    for frame in content:
        listed = json.loads(frame) if isinstance(frame, str) else frame
        people = []
        for person in listed:
            k = person["keypoints"]
            people.append(np.c_[k["x"], k["y"], k.get("visible", np.ones(len(k["x"])))])
        frames.append(np.array(people) if people else np.zeros((0, 0, 3)))
    return frames


def _coco_people(content: list[dict[str, Any]]) -> list[np.ndarray]:
    """[{"image_id", "keypoints": x, y, score per joint}]; frames sorted by number in the id."""
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
        raise ValueError("it contains frames of several videos; write one file per clip")
    # Frames without people are not listed.
    first, last = min(numbers), max(numbers)
    return [numbers.get(i, np.zeros((0, 0, 3))) for i in range(first, last + 1)]
