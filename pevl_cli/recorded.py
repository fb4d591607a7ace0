"""Poses that were found before: PYSKL pickles, JSON of other tools, arrays, and our own stores.

Each clip is a `Recording`: everybody in it, frame by frame. Which of them is the actor is decided
as for a video (`pose.choose_actor`). Only what is asked for is read; a pickle has to be read whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pevl_cli.cache import file_digest
from pevl_cli.datasets.manifest import Item
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import LabelSet
from pevl_cli.pickles import read_pickle, write_pickle
from pevl_cli.pose import Actor, Footage, Sightings, bridge, choose_actor, link
from pevl_cli.skeletons import LAYOUTS, layout_of
from pevl_cli.video import Clip

SUFFIXES = {".pkl", ".pickle", ".npz", ".json"}
PICKLES = {".pkl", ".pickle"}
# What reading content of an unexpected form raises.
READING = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
# A gap in which the actor was not seen is filled up to this part of the clip.
BRIDGE_SHARE = 0.1
# The name that a JSON file bears beside that of its clip.
CLIP_SUFFIX = re.compile(r"_pose3d$|_keypoints$|_predictions$")


@dataclass(frozen=True)
class Recording:
    """Everybody in one clip. ``people``: T frames of (P, J, 3) x_px, y_px, score.

    Width and height are 0 where nobody said how large the picture was.
    """

    name: str
    people: Sequence[np.ndarray]
    layout: str
    width: int  # px of the picture
    height: int
    label: int | None = None
    boxes: np.ndarray | None = None  # (T, 4) px, of one person; else the boxes hold the joints

    @classmethod
    def of_tracks(
        cls, name: str, tracks: np.ndarray, layout: str, width: int, height: int, label: int | None
    ) -> Recording:
        """From people as tracks, (M, T, J, 3); who has no joint in a frame is not in it."""
        tracks = _valid(tracks)
        there = np.asarray((tracks[..., 2] > 0).any(-1))
        people = [tracks[there[:, t], t] for t in range(tracks.shape[1])]
        return cls(name, people, layout, width, height, label)

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height that hold all joints, if the picture's are not known."""
        if self.width and self.height:
            return self.width, self.height
        visible = [p[p[..., 2] > 0, :2].max(0) for p in self.people if (p[..., 2] > 0).any()]
        if not visible:
            return 640, 480
        width, height = np.clip(np.max(visible, 0).astype(int) + 1, 16, 8192).tolist()
        return width, height

    def actor(self) -> Actor:
        """The one person whom the model looks at, in all T frames."""
        count, joints_of = len(self.people), len(LAYOUTS[self.layout].names)
        boxes = np.zeros((count, 4), np.float32)
        joints = np.zeros((count, joints_of, 3), np.float32)
        seen = np.zeros(count, bool)
        at_once = max((len(p) for p in self.people), default=0)
        if at_once == 1:
            seen = np.array([len(p) == 1 for p in self.people])
            joints[seen] = np.stack([p[0] for p in self.people if len(p)])
            boxes[seen] = _boxes(joints[seen])[:, :4] if self.boxes is None else self.boxes[seen]
        elif at_once:
            times = np.arange(count) / 25.0  # who moves most counts, not how fast
            footage = Footage(times, *self.canvas, 1.0, _no_frames)
            chosen = choose_actor(link([_sightings(p) for p in self.people]), footage)
            for t, box, pose in (
                zip(chosen.frames, chosen.boxes, chosen.joints, strict=True) if chosen else ()
            ):
                boxes[t], joints[t], seen[t] = box[:4], pose, True
        bridged = bridge(np.arange(count), boxes, joints, seen, BRIDGE_SHARE * count)
        return Actor(joints, boxes, seen | bridged, bridged, at_once, self.layout)

    def actor_in(self, clip: Clip) -> Actor:
        """The actor in a clip's U distinct frames: T frames are taken to cover the clip evenly."""
        whole = self.actor()
        count = len(whole.seen)
        span_s = max(clip.end_s - clip.start_s, 1e-6)
        middle_s = clip.times_s + 0.5 * span_s / max(clip.length, 1)  # of each frame's showing
        place = (middle_s - clip.start_s) / span_s * count - 0.5
        at = np.clip(np.round(place).astype(int), 0, count - 1)
        # The estimator may have seen it in another size.
        scale = clip.width / self.width if self.width else 1.0
        joints = whole.joints[at].copy()
        joints[..., :2] *= scale
        boxes, seen, bridged = whole.boxes[at] * scale, whole.seen[at], whole.bridged[at]
        return Actor(joints, boxes, seen, bridged, whole.people, whole.layout)


def _no_frames(_: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    return iter(())


def _boxes(people: np.ndarray) -> np.ndarray:
    """x1 y1 x2 y2 confidence that hold the visible joints of each person, (P, J, 3) -> (P, 5)."""
    points, visible = people[..., :2], people[..., 2:] > 0
    low = np.where(visible, points, np.inf).min(-2)
    high = np.where(visible, points, -np.inf).max(-2)
    sure = people[..., 2].sum(-1) / np.maximum(visible[..., 0].sum(-1), 1)
    return np.concatenate([low, high, sure[..., None]], -1)


def _sightings(people: np.ndarray) -> Sightings:
    return Sightings(_boxes(people).reshape(-1, 5), people, np.full((len(people), 32), 1 / 32))


def _valid(joints: np.ndarray) -> np.ndarray:
    """float32; what is not a number, or lies in the corner that stands for "not found", unseen."""
    joints = np.asarray(joints, np.float32)
    there = np.isfinite(joints).all(-1) & (joints[..., :2] != 0).any(-1) & (joints[..., 2] > 0)
    return np.where(there[..., None], joints, 0)


class RecordedPoses:
    """The poses of many clips, by the clips' names."""

    def __init__(
        self, source: Path, entries: dict[str, Callable[[], Recording]], layout: str | None = None
    ) -> None:
        self.source = source
        self.named_layout = layout  # of its joints, if somebody said it
        self._entries, self._layout = entries, layout
        self._digest: str | None = None
        last: dict[str, str | None] = {}  # by the last part of a name, where that is unique
        for name in entries:
            key = name.rpartition("/")[2]
            last[key] = None if key in last else name
        self._by_last = last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def find(self, name: str) -> str | None:
        """Under which name a clip is recorded: its own, or one that differs by outer folders."""
        rest = name
        while rest not in self._entries and "/" in rest:
            rest = rest.partition("/")[2]
        if rest in self._entries:
            return rest
        other = self._by_last.get(rest)
        return other if other is not None and other.endswith(f"/{name}") else None

    def get(self, name: str) -> Recording | None:
        """A clip's recording, None if it has none; PevlError if that is damaged."""
        found = self.find(name)
        if found is None:
            return None
        try:
            recording = self._entries[found]()
        except READING as error:
            raise PevlError(f"{self.source}: '{name}' cannot be read ({error}).") from error
        if not len(recording.people):
            raise PevlError(f"{self.source}: '{name}' has no frames.")
        return recording

    def layout(self) -> str:
        """That of the first clip in which somebody is seen."""
        if self._layout is not None:
            return self._layout
        layout = None
        for name in self._entries:
            with suppress(PevlError):
                recording = self.get(name)
                if recording is not None:
                    layout = layout or recording.layout
                    if any(len(p) for p in recording.people):
                        return recording.layout
        if layout is None:
            raise PevlError(f"{self.source}: none of its {len(self)} clips can be read.")
        return layout

    def digest(self) -> str:
        """By which to know that poses are the same: of a file's content, of a folder's list."""
        if self._digest is None:
            if self.source.is_file():
                content = file_digest(self.source)
            else:
                files = (p for p in self.source.rglob("*") if p.suffix in SUFFIXES)
                listed = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
                content = hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()
            self._digest = f"{content}{self._layout or ''}"
        return self._digest


def read_recorded(source: str | Path, layout: str | None = None) -> RecordedPoses:
    """Poses of a PYSKL pickle, an array or a store (.npz), a JSON file, or a folder of these.

    ``layout`` says what the joints are where the file does not; else their number tells. PevlError
    says what cannot be read.
    """
    source = Path(source)
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout '{layout}': one of {', '.join(LAYOUTS)} is needed.")
    if not source.exists():
        raise PevlError(f"{source}: there is no such file or folder of poses.")
    entries: dict[str, Callable[[], Recording]] = {}
    if source.is_dir():
        for store in sorted(source.glob("*.npz")):
            entries |= _entries_of_npz(store, layout)
        for file in sorted(f for f in source.iterdir() if f.suffix in PICKLES):
            entries |= _entries_of_pickle(file, layout)
        for file in sorted(source.rglob("*.json")):
            place = file.relative_to(source).parent
            entries[(place / _clip_name(file)).as_posix()] = partial(read_json, file, layout)
        if not entries:
            kinds = ", ".join(sorted(SUFFIXES))
            raise PevlError(f"{source}: there is no file with poses in this folder ({kinds}).")
        return RecordedPoses(source, entries, layout)
    if source.suffix == ".npz":
        return RecordedPoses(source, _entries_of_npz(source, layout), layout)
    if source.suffix == ".json":
        entries[_clip_name(source)] = partial(read_json, source, layout)
        return RecordedPoses(source, entries, layout)
    if source.suffix in PICKLES:
        return RecordedPoses(source, _entries_of_pickle(source, layout), layout)
    raise PevlError(
        f"{source}: not a file of poses; {', '.join(sorted(SUFFIXES))} or a folder is read."
    )


def _clip_name(file: Path) -> str:
    return CLIP_SUFFIX.sub("", file.stem)


# -- PYSKL and MMAction2 pickles ------------------------------------------------------------------


def _entries_of_pickle(path: Path, layout: str | None) -> dict[str, Callable[[], Recording]]:
    annotations, _ = read_pickle(path)
    return {str(a["frame_dir"]): partial(_of_annotation, a, path, layout) for a in annotations}


def _of_annotation(annotation: dict[str, Any], path: Path, layout: str | None) -> Recording:
    name = str(annotation["frame_dir"])
    points = np.asarray(annotation["keypoint"], np.float32)
    scores = annotation.get("keypoint_score")
    if points.shape[-1] == 3 and scores is None:
        points, scores = points[..., :2], points[..., 2]
    if points.shape[-1] != 2:
        raise PevlError(f"{path}: keypoint of '{name}' is not two-dimensional.")
    scores = np.ones(points.shape[:-1]) if scores is None else np.asarray(scores, np.float32)
    if scores.shape != points.shape[:-1]:
        raise PevlError(
            f"{path}: '{name}' has keypoint_score {scores.shape} beside keypoint {points.shape}."
        )
    tracks = np.concatenate([points, scores[..., None]], -1)
    size = annotation.get("img_shape")
    height, width = (0, 0) if size is None else (int(v) for v in tuple(size)[:2])
    label = annotation.get("label")
    layout = layout or layout_of(tracks.shape[2], path)
    _check_joints(tracks.shape[2], layout, f"{path}: '{name}'")
    return Recording.of_tracks(
        name, tracks, layout, width, height, None if label is None else int(label)
    )


def export_pyskl(store: Path, target: Path, items: Sequence[Item], labels: LabelSet | None) -> None:
    """A store's clips as a PYSKL pickle; labels are numbers in the order of ``labels``, else -1."""
    index = {name: i for i, name in enumerate(labels.names)} if labels is not None else {}
    poses = read_recorded(store)
    annotations, splits = [], defaultdict(list)
    for item in items:
        recording = poses.get(item.name)
        if recording is None:
            continue
        actor = recording.actor()
        size = recording.canvas[::-1]
        annotations.append(
            {
                "frame_dir": item.name,
                "label": index.get(item.label, -1),
                "img_shape": size,
                "original_shape": size,
                "total_frames": len(recording.people),
                "keypoint": actor.joints[None, ..., :2].astype(np.float16),
                "keypoint_score": actor.joints[None, ..., 2].astype(np.float16),
            }
        )
        if item.split:
            splits[item.split].append(item.name)
    write_pickle(target, annotations, splits)


# -- JSON of other tools --------------------------------------------------------------------------


def read_json(path: Path, layout: str | None = None) -> Recording:
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
    return Recording(_clip_name(path), people, layout, *size)


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


# -- arrays and our own store ---------------------------------------------------------------------


def _entries_of_npz(path: Path, layout: str | None) -> dict[str, Callable[[], Recording]]:
    try:
        files = _opened(path, path.stat().st_mtime_ns).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise PevlError(f"{path}: cannot be read as an .npz file ({error}).") from error
    if STORE_FACTS in files:
        names = [f.removesuffix("/joints.npy") for f in files if f.endswith("/joints.npy")]
        return {name: partial(_of_store, path, name) for name in names}
    if "kpts.npy" in files:
        return {path.stem: partial(_of_array, path, layout)}
    raise PevlError(f"{path}: neither a store of `pevl pose` nor an array named 'kpts' is in it.")


def _of_array(path: Path, layout: str | None) -> Recording:
    """One person: kpts (T, J, 2), or (T, J, 3) with scores."""
    joints = _member(path, "kpts")
    if joints.ndim != 3 or joints.shape[-1] not in (2, 3):
        raise PevlError(f"{path}: kpts has shape {joints.shape}, not (T, J, 2) or (T, J, 3).")
    if joints.shape[-1] == 2:
        joints = np.concatenate([joints, np.ones_like(joints[..., :1])], -1)
    layout = layout or layout_of(joints.shape[1], path)
    _check_joints(joints.shape[1], layout, str(path))
    return Recording.of_tracks(path.stem, joints[None], layout, 0, 0, None)


STORE_FACTS = "about.json"


@lru_cache(maxsize=8)
def _opened(path: Path, _: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _member(path: Path, name: str) -> np.ndarray:
    try:
        with _opened(path, path.stat().st_mtime_ns).open(f"{name}.npy") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PevlError(f"{path}: entry '{name}' is damaged ({error}); make it again.") from error


def _of_store(path: Path, name: str) -> Recording:
    joints, size = _member(path, f"{name}/joints"), _member(path, f"{name}/size")
    boxes = _member(path, f"{name}/boxes")
    width, height, layout = int(size[0]), int(size[1]), store_facts(path)["layout"]
    recording = Recording.of_tracks(name, joints[None], layout, width, height, None)
    return replace(recording, boxes=boxes)


def store_facts(path: Path) -> dict[str, Any]:
    """What a store was made by: weights, settings, layout."""
    try:
        facts: dict[str, Any] = json.loads(_opened(path, path.stat().st_mtime_ns).read(STORE_FACTS))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, *READING) as error:
        raise PevlError(f"{path}: not a store of poses ({error}).") from error
    return facts


def _check_joints(count: int, layout: str, where: str) -> None:
    names = LAYOUTS[layout].names
    if count != len(names):
        raise PevlError(
            f"{where}: has {count} joints, layout {layout} has {len(names)} ({', '.join(names)})."
        )
