"""Pictures of people, labelled by a teacher, that make_pose.py trains the bundled pose network on.

    python benchmarks/pose_pictures.py FIELD --teacher yolo11n-pose.pt --out DIR

FIELD is a data set's folder; only its train split is read. Writes whole frames, close views of
their people, people pasted into other frames, and places without a person, in ultralytics' layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from ultralytics import YOLO

from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.pose.skeletons import LAYOUTS

LAYOUT = LAYOUTS["coco17"]
FRAMES = 14  # per clip
LONG_SIDE_PX = 448  # of the stored frames
TEACHER_PX = 640
NEAR = 2  # close views per frame
CUT_OFF = 0.5  # share of the close views: a part of the body is outside the picture
WORN = 0.4  # share of the close views: other colours, blur, low resolution, strong compression
TURNED = 0.5  # share of the pasted people: by quarter turns; most bodies are upright, but not all
DRAWN_BEHIND = 0.5  # share of the pasted people: shapes in front of the other frame
EMPTY = 0.05  # share of the pictures: no person
CONFIDENT_BOX, CONFIDENT_JOINT = 0.4, 0.5
HELD_OUT = 20  # each such clip of the train split is watched, not trained on
View = tuple[np.ndarray, np.ndarray, np.ndarray]  # picture, boxes (P, 4), joints (P, 17, 3)


def frames(arguments: argparse.Namespace) -> None:
    """Pictures and labels in ultralytics' layout: whole frames, their people from near by, and
    people pasted elsewhere."""
    if (arguments.out / "data").exists():
        raise SystemExit(f"{arguments.out}/data is there already; remove it or name another folder")
    teacher = YOLO(str(arguments.teacher))
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (arguments.out / "data" / kind / part).mkdir(parents=True, exist_ok=True)
    pool: list[np.ndarray] = []  # backgrounds: frames seen lately
    for number, item in enumerate(read_manifest(arguments.field).in_split("train")):
        try:
            clip = sample_clip(item.path, FRAMES, item.start_s, item.end_s)
        except PevlError as error:
            print(error)
            continue
        part = "val" if number % HELD_OUT == 0 else "train"
        shrunk = [_fit(frame) for frame in clip.frames]
        found = teacher.predict(
            [f[..., ::-1] for f in shrunk], imgsz=TEACHER_PX, conf=CONFIDENT_BOX, verbose=False
        )
        for k, (frame, result) in enumerate(zip(shrunk, found, strict=True)):
            if not len(result.boxes):
                continue
            boxes = result.boxes.xyxy.cpu().numpy()
            joints = result.keypoints.data.cpu().numpy().copy()
            joints[..., 2] = np.where(joints[..., 2] >= CONFIDENT_JOINT, 2, 0)
            name = f"{number:04d}-{k:02d}"
            _store(arguments.out, part, name, frame, boxes, joints)
            for view in range(NEAR):
                near = _near(frame, boxes, joints, rng)
                if near is not None:
                    picture = _worn(near[0], rng) if rng.random() < WORN else near[0]
                    _store(arguments.out, part, f"{name}-near{view}", picture, *near[1:])
            if part == "train" and pool:
                largest = int(np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(1)))
                pasted = _paste(frame, boxes[largest], joints[largest], pool, rng)
                near = None if pasted is None else _near(*pasted, rng)
                if near is not None:
                    turns = int(rng.integers(4)) if rng.random() < TURNED else 0
                    _store(arguments.out, part, f"{name}-pasted", *_turn(*near, turns))
            if part == "train" and rng.random() < EMPTY * (NEAR + 2):
                empty = _empty(frame, boxes, teacher, rng)
                if empty is not None:
                    _store(arguments.out, part, f"{name}-empty", *empty)
        pool = [*pool[-40:], shrunk[len(shrunk) // 2]]
    about = {
        "path": str((arguments.out / "data").resolve()),
        "train": "images/train",
        "val": "images/val",
        "kpt_shape": [17, 3],
        "flip_idx": list(LAYOUT.mirror),
        "names": {0: "person"},
    }
    (arguments.out / "data.yaml").write_text(yaml.safe_dump(about))


def _fit(frame: np.ndarray) -> np.ndarray:
    scale = LONG_SIDE_PX / max(frame.shape[:2])
    size = (max(round(frame.shape[1] * scale), 16), max(round(frame.shape[0] * scale), 16))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _store(
    out: Path, part: str, name: str, frame: np.ndarray, boxes: np.ndarray, joints: np.ndarray
) -> None:
    """A picture and its people: class, box, joints, in shares of the picture."""
    height, width = frame.shape[:2]
    cv2.imwrite(str(out / "data" / "images" / part / f"{name}.jpg"), frame[..., ::-1])
    lines = []
    for box, person in zip(boxes.reshape(-1, 4), joints.reshape(-1, 17, 3), strict=True):
        low, high = (box.reshape(2, 2) / (width, height)).clip(0, 1)
        points = person / (width, height, 1)
        inside = (points[:, :2] >= 0).all(1) & (points[:, :2] <= 1).all(1)
        points[~inside | (points[:, 2] == 0)] = 0
        numbers = [*(low + high) / 2, *(high - low), *points.ravel()]
        lines.append("0 " + " ".join(f"{v:.5f}" for v in numbers))
    (out / "data" / "labels" / part / f"{name}.txt").write_text(
        "".join(f"{line}\n" for line in lines)
    )


def _near(
    frame: np.ndarray, boxes: np.ndarray, joints: np.ndarray, rng: np.random.Generator
) -> View | None:
    """One of the larger people from near by, as `pose._look_again` cuts out, and where joints can
    be learnt to the pixel; sometimes only the upper body, the legs or one side of it."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    fit = (sizes.max(1) >= 48) & ((joints[..., 2] > 0).sum(1) >= 8)
    fit &= sizes.prod(1) >= 0.4 * sizes.prod(1).max()
    if not fit.any():
        return None
    chosen = int(rng.choice(np.flatnonzero(fit)))
    size = sizes[chosen]
    reach = size.max() * rng.uniform(0.55, 0.95)
    centre = boxes[chosen].reshape(2, 2).mean(0) + size * rng.uniform(-0.1, 0.1, 2)
    low, high = centre - reach, centre + reach
    if rng.random() < CUT_OFF:
        # The longer way of a body is cut more often: people who sit at a table, faces in a call.
        axis = int(np.argmax(size)) if rng.random() < 0.75 else int(np.argmin(size))
        kept = size[axis] * rng.uniform(0.3, 0.75)
        # Nearer, as what is left is to fill the picture.
        beside = kept * rng.uniform(0.05, 0.4)
        if rng.random() < 0.75:
            low[axis] = max(low[axis], boxes[chosen, axis] - beside)
            high[axis] = boxes[chosen, axis] + kept
        else:
            low[axis] = boxes[chosen, axis + 2] - kept
            high[axis] = min(high[axis], boxes[chosen, axis + 2] + beside)
        across = 1 - axis
        reach = max(kept, 0.5 * size[across]) * rng.uniform(0.6, 1.2)
        low[across] = max(low[across], centre[across] - reach)
        high[across] = min(high[across], centre[across] + reach)
    low = np.maximum(low, 0).astype(int)
    high = np.minimum(high, frame.shape[1::-1]).astype(int)
    if (high - low).min() < 24:
        return None
    inside = boxes.reshape(-1, 2, 2).clip(low, high)
    left = (inside[:, 1] - inside[:, 0]).prod(1)
    seen = left >= np.minimum(0.25 * sizes.prod(1), 0.1 * (high - low).prod())
    moved = joints[seen].copy()
    moved[..., 2] *= ((moved[..., :2] >= low) & (moved[..., :2] < high)).all(-1)
    if not seen[chosen] or (moved[seen[:chosen].sum(), :, 2] > 0).sum() < 4:
        return None
    moved[..., :2] -= low
    cut = frame[low[1] : high[1], low[0] : high[0]]
    return cut, inside[seen].reshape(-1, 4) - [*low, *low], moved


def _worn(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture as other cameras, other clothes and other skins might look, uint8."""
    height, width = frame.shape[:2]
    kind = rng.random(5)
    if kind[0] < 0.3:
        frame = frame[..., rng.permutation(3)]
    if kind[1] < 0.25:
        grey = frame.mean(-1, keepdims=True)
        frame = (frame + (grey - frame) * rng.uniform(0.5, 1)).astype(np.uint8)
    if kind[2] < 0.5:
        gain = rng.uniform(0.6, 1.5) * rng.uniform(0.8, 1.2, 3)
        frame = (frame * gain + rng.uniform(-30, 30)).clip(0, 255).astype(np.uint8)
    if kind[3] < 0.35:
        frame = cv2.GaussianBlur(
            frame, (0, 0), float(rng.uniform(0.5, max(0.012 * max(height, width), 0.6)))
        )
    elif kind[3] < 0.6:
        length = max(int(rng.uniform(0.01, 0.04) * max(height, width)), 2)
        way = cv2.getRotationMatrix2D((length / 2, length / 2), float(rng.uniform(0, 180)), 1)
        line = np.zeros((length + 1, length + 1), np.float32)
        line[length // 2] = 1
        line = cv2.warpAffine(line, way, line.shape)
        frame = cv2.filter2D(np.ascontiguousarray(frame), -1, line / max(line.sum(), 1e-3))
    if kind[4] < 0.4:
        share = float(rng.uniform(0.3, 0.8))
        small = cv2.resize(frame, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(15, 70))]
        packed = cv2.imencode(".jpg", small, quality)[1]
        frame = cv2.resize(cv2.imdecode(packed, cv2.IMREAD_COLOR), (width, height))
    return np.ascontiguousarray(frame)


def _empty(
    frame: np.ndarray, boxes: np.ndarray, teacher: Any, rng: np.random.Generator
) -> View | None:
    """A part of the frame in which the teacher sees nobody, not even faintly."""
    height, width = frame.shape[:2]
    for _ in range(8):
        side = int(min(height, width) * rng.uniform(0.25, 0.8))
        x, y = int(rng.integers(width - side)), int(rng.integers(height - side))
        apart = (boxes[:, 0] >= x + side) | (boxes[:, 2] <= x)
        apart |= (boxes[:, 1] >= y + side) | (boxes[:, 3] <= y)
        if apart.all():
            cut = frame[y : y + side, x : x + side]
            seen = teacher.predict(cut[..., ::-1], imgsz=320, conf=0.1, verbose=False)[0]
            return None if len(seen.boxes) else (cut, np.zeros((0, 4)), np.zeros((0, 17, 3)))
    return None


def _paste(
    frame: np.ndarray,
    box: np.ndarray,
    joints: np.ndarray,
    pool: list[np.ndarray],
    rng: np.random.Generator,
) -> View | None:
    """The person, cut out along thick limbs, in front of something else that is blurred."""
    size = box[2:] - box[:2]
    visible = joints[:, 2] > 0
    if size.max() < 60 or visible.sum() < 10:
        return None
    mask = np.zeros(frame.shape[:2], np.uint8)
    thick = max(int(0.13 * size.max()), 6)
    points = joints[:, :2].astype(int)
    for a, b in LAYOUT.edge_indices:
        if visible[a] and visible[b]:
            cv2.line(mask, points[a].tolist(), points[b].tolist(), 255, thick)
    torso = [i for i, n in enumerate(LAYOUT.names) if "shoulder" in n or "hip" in n]
    if visible[torso].all():
        cv2.fillConvexPoly(mask, cv2.convexHull(points[torso]), 255)
    head = points[[i for i in range(5) if visible[i]]]
    if len(head):
        cv2.circle(mask, head.mean(0).astype(int).tolist(), int(0.11 * size.max()), 255, -1)
    soft = cv2.GaussianBlur(mask, (0, 0), thick / 5)[..., None] / 255
    behind = cv2.resize(pool[int(rng.integers(len(pool)))], frame.shape[1::-1])
    # What people there are behind must not be seen, as nothing labels them.
    behind = cv2.GaussianBlur(behind, (0, 0), float(rng.uniform(12, 30)))
    if rng.random() < DRAWN_BEHIND:
        _shapes(behind, rng)
    behind = behind.astype(np.float32) * rng.uniform(0.5, 1.4, 3)
    grain = rng.normal(0, rng.uniform(2, 30), (*frame.shape[:2], 1))
    behind += cv2.resize(grain, frame.shape[1::-1])[..., None]
    mixed = frame * soft + behind * (1 - soft)
    return mixed.clip(0, 255).astype(np.uint8), box[None], joints[None]


def _shapes(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draw walls, poles, stripes and balls of all colours into the picture."""
    height, width = picture.shape[:2]
    for _ in range(int(rng.integers(4, 24))):
        (x, y), colour = rng.integers((width, height)).tolist(), rng.integers(256, size=3).tolist()
        across, down = (rng.uniform(0.02, 0.5, 2) * (width, height)).astype(int).tolist()
        shape = rng.integers(3)
        if shape == 0:
            cv2.rectangle(picture, (x, y), (x + across, y + down), colour, -1)
        elif shape == 1:
            turn = float(rng.uniform(0, 180))
            cv2.ellipse(picture, (x, y), (across // 2, down // 2), turn, 0, 360, colour, -1)
        else:
            end = rng.integers((width, height)).tolist()
            cv2.line(picture, (x, y), end, colour, int(rng.integers(1, 20)))


def _turn(frame: np.ndarray, boxes: np.ndarray, joints: np.ndarray, turns: int) -> View:
    """Quarter turns against the clock; left stays left."""
    for _ in range(turns):
        width = frame.shape[1]
        frame = np.ascontiguousarray(np.rot90(frame))
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], 1)
        joints = np.stack([joints[..., 1], width - joints[..., 0], joints[..., 2]], -1)
    return frame, boxes, joints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("field", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    frames(parser.parse_args())


if __name__ == "__main__":
    main()
