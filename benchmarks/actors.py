"""How often the chosen actor is the right person, on frames with a hand-drawn box.

    python benchmarks/actors.py FOLDER --pose-weights yolo11n-pose.pt

Beside it: the largest person in the same frames that the plain detector finds at its defaults
(640 px, confidence 0.25), without tracks.

FOLDER holds clips and `boxes.json`: {clip: {frame: [x1, y1, x2, y2]}}. A frame counts when the
torso's centre (mean of shoulders and hips) of the actor's joints lies in its box.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from ultralytics import YOLO

from pevl_cli.media.video import sample_clip
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.skeletons import LAYOUTS

TORSO = [
    LAYOUTS["coco17"].names.index(f"{side}_{part}")
    for side in ("left", "right")
    for part in ("shoulder", "hip")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pose-weights")
    arguments = parser.parse_args()
    os.environ["PEVL_CACHE"] = tempfile.mkdtemp()
    detector = PoseDetector(arguments.pose_weights)
    boxes = json.loads((arguments.folder / "boxes.json").read_text(encoding="utf-8"))
    plain = YOLO(str(detector.weights))
    right = largest = total = 0
    for name, frames in boxes.items():
        clip = sample_clip(next(arguments.folder.glob(f"{name}.*")))
        actor = detector.actor(clip)
        hits = 0
        for frame, (x1, y1, x2, y2) in frames.items():
            u = int(np.abs(clip.indices - int(frame)).argmin())
            x, y = actor.joints[u, TORSO, :2].mean(0)
            hits += bool(actor.seen[u] and x1 < x < x2 and y1 < y < y2)
            people = plain.predict(clip.frames[u][..., ::-1].copy(), verbose=False)[0]
            if len(people.boxes):
                size = people.boxes.xywh[:, 2] * people.boxes.xywh[:, 3]
                x, y = people.keypoints.xy[int(size.argmax()), TORSO].mean(0).tolist()
                largest += x1 < x < x2 and y1 < y < y2
        print(f"{name:12} {hits} of {len(frames)}")
        right, total = right + hits, total + len(frames)
    print(f"{'all':12} {right} of {total}; largest person of the plain detector: {largest}")


if __name__ == "__main__":
    main()
