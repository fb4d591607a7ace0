"""How near a pose network's actors come to those of another one: same person, joints, time.

    python benchmarks/poses.py CLIPS/field CLIPS/clips --teacher yolo11n-pose.pt

A folder with a manifest is represented by its val part. Printed for each folder: the share of the
teacher's frames in which the other one follows the same person (object keypoint similarity of the
actors above 0.5, COCO's sigmas), the mean distance of the visible joints there in shares of the
box's longer side, and the time of both, in turns, in one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ultralytics.utils.metrics import OKS_SIGMA, kpt_iou

from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.media.video import VIDEO_SUFFIXES, Clip, sample_clip
from pevl_cli.pose.actor import Actor, FrameSource
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.weights import find_weights

VISIBLE = 0.5
SAME = 0.5
FRAMES = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--weights", default="pevl-pose")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher = PoseDetector(arguments.teacher)
    other = PoseDetector(find_weights(arguments.weights))
    print(f"{'':10}  clips  frames  same person  joint error  frames without  time of teacher's")
    for folder in arguments.folders:
        same, errors, seconds, lost, clips = [], [], np.zeros(2), 0, 0
        for clip in _clips(folder):
            clips += 1
            found = []
            for i, detector in enumerate((teacher, other)):
                began = time.perf_counter()
                found.append(detector.find_actor(FrameSource.from_clip(clip)))
                seconds[i] += time.perf_counter() - began
            similar, distance = _compare(*found)
            same += similar
            errors += distance
            lost += int((~found[1].seen & ~found[0].seen).sum())
        print(
            f"{folder.name:10}  {clips:5}  {len(same):6}  {100 * np.mean(same):10.1f}%  "
            f"{100 * np.mean(errors):10.1f}%  {lost:14}  {seconds[1] / seconds[0]:17.2f}"
        )


def _clips(folder: Path) -> Iterator[Clip]:
    if (folder / "manifest.csv").is_file():
        paths = [item.path for item in read_manifest(folder).in_split("val")]
    else:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    for path in paths:
        try:
            yield sample_clip(path, FRAMES)
        except PevlError as error:
            print(error)


def _compare(teacher: Actor, other: Actor) -> tuple[list[bool], list[float]]:
    """For each frame that the teacher saw: the same person? and if so, how far off the joints."""
    same, errors = [], []
    for f in np.flatnonzero(teacher.seen & ~teacher.bridged):
        truth = teacher.joints[f].copy()
        visible = truth[:, 2] >= VISIBLE
        if not visible.any():
            continue
        truth[:, 2] = visible
        size = teacher.boxes[f, 2:] - teacher.boxes[f, :2]
        area = torch.tensor([float(size.prod()) * 0.53])  # as COCO's validator takes it
        guess = torch.from_numpy(other.joints[f])[None]
        near = float(kpt_iou(torch.from_numpy(truth)[None], guess, area, OKS_SIGMA)[0, 0])
        same.append(bool(other.seen[f]) and near > SAME)
        if same[-1]:
            away = np.hypot(*(other.joints[f, visible, :2] - truth[visible, :2]).T)
            errors.append(float(away.mean() / size.max()))
    return same, errors


if __name__ == "__main__":
    main()
