"""YOLO-pose networks: the only file that imports ultralytics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pevl_cli.errors import PevlError

if TYPE_CHECKING:
    from ultralytics import YOLO
import hashlib
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import cv2
import numpy as np

from pevl_cli.cache import cache_folder, file_digest, write_aside
from pevl_cli.media.video import Clip, Timeline
from pevl_cli.pose.actor import Actor, FrameSource, choose_actor
from pevl_cli.pose.tracks import Detections, _interpolate, bridge, likeness, link
from pevl_cli.weights import BUNDLED_WEIGHTS, find_weights


def _quiet_ultralytics() -> None:
    """Import ultralytics so that it sends nothing, installs nothing and prints nothing."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ.setdefault("YOLO_VERBOSE", "false")
    # Its online check, analytics and hub sync all stop here; downloads do not ask this switch.
    os.environ["YOLO_OFFLINE"] = "true"
    threads = os.environ.get("OMP_NUM_THREADS")
    with torch.device("cpu"):  # its classes make tensors, and a model may be built on "meta"
        from ultralytics.utils import events

    if threads is None:  # it would leave one to every process that is started from here
        os.environ.pop("OMP_NUM_THREADS", None)
    events.events.enabled = False


def load_network(path: Path) -> YOLO:
    """A detector with its weights. PevlError when they are of another kind."""
    _quiet_ultralytics()
    from ultralytics import YOLO

    try:
        model = YOLO(str(path), task="pose", verbose=False)
        names = model.task
    except Exception as error:  # ultralytics raises whatever its unpickling meets
        raise PevlError(f"{path}: not a YOLO-pose weights file ({error}).") from error
    if names != "pose":
        raise PevlError(f"{path}: these weights are for '{names}', YOLO-pose weights are needed.")
    return model


def pose_network_layers(weights: Path | None = None) -> nn.Sequential:
    """The layers of a YOLO11n-pose network before its head, in evaluation mode: with the weights of
    such a network, or as they are before any training."""
    _quiet_ultralytics()
    with torch.device("cpu"):
        from ultralytics.nn.tasks import parse_model
        from ultralytics.utils import ROOT, YAML
        from ultralytics.utils.torch_utils import initialize_weights

    plan = YAML.load(ROOT / "cfg" / "models" / "11" / "yolo11-pose.yaml")
    layers: nn.Sequential = parse_model(plan | {"head": [], "scale": "n"}, ch=3, verbose=False)[0]
    initialize_weights(layers)
    if weights is not None:
        trained: Any = load_network(weights).model
        layers.load_state_dict(trained.model[: len(layers)].float().state_dict())
    return layers.eval()


# Bumped when tracks come out differently from the same detector, so that old entries are not used.
CACHE_VERSION = 1


@dataclass(frozen=True)
class PoseSettings:
    """How people are looked for; part of the cache key."""

    image_size_px: int = 384  # long side the detector sees; 640 px costs three times the time
    confidence: float = 0.05  # tracks, not single boxes, decide what is a person
    start_confidence: float = 0.3  # a track needs one box as sure as this
    bridge_s: float = 0.7  # gaps up to this long are filled in between two sightings
    batch: int = 8
    refine: bool = True  # look again, enlarged and turned, where the actor was lost or is small
    small_share: float = 0.4  # of the picture's long side: an actor below it is small
    cut_out_px: int = 256  # long side of what is looked at again


# The package's own network is fast, sure of joints only from near by, and a third sure of a person
# where none is.
BUNDLED_SETTINGS = PoseSettings(
    image_size_px=256, start_confidence=0.4, small_share=2.0, cut_out_px=192
)


class PoseDetector:
    """YOLO-pose weights, loaded when first needed, and the way from a clip to its actor."""

    def __init__(
        self,
        weights: str | Path | None = None,
        settings: PoseSettings | None = None,
        device: str | None = None,
    ) -> None:
        self.device = device
        self.weights = find_weights(weights)
        own = self.weights == BUNDLED_WEIGHTS
        self.settings = settings or (BUNDLED_SETTINGS if own else PoseSettings())
        self._model: Any = None  # ultralytics' network
        self._digest: str | None = None
        self._lock = threading.Lock()  # ultralytics serves one call at a time

    def __getstate__(self) -> dict[str, object]:
        """For a loader process: what it needs to know, without the network and the lock."""
        return {**vars(self), "_model": None, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def actor(self, clip: Clip, use_cache: bool = True) -> Actor:
        """The actor of a clip, from the cache where the same frames were looked at before."""
        entry = self._entry(clip.path, clip.indices) if use_cache else None
        return self._remembered(entry, lambda: FrameSource.of_clip(clip))

    def actor_in_all(self, timeline: Timeline, indices: np.ndarray) -> Actor:
        """The actor in these frames of a file, decoded as they are needed; cached as well."""
        entry = self._entry(timeline.path, indices)
        return self._remembered(entry, lambda: FrameSource.of_video(timeline, indices))

    def _remembered(self, entry: Path | None, source: Callable[[], FrameSource]) -> Actor:
        if entry is not None and entry.exists():
            try:
                with np.load(entry, allow_pickle=False) as stored:
                    return Actor(
                        stored["joints"],
                        stored["boxes"],
                        stored["seen"],
                        stored["bridged"],
                        int(stored["people"]),
                    )
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
                pass  # a damaged entry is made again
        actor = self.find_actor(source())
        if entry is not None:
            # Where the cache cannot be written the detector runs again next time.
            with suppress(PevlError), write_aside(entry) as temporary, temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    joints=actor.joints,
                    boxes=actor.boxes,
                    seen=actor.seen,
                    bridged=actor.bridged,
                    people=actor.people,
                )
        return actor

    def digest(self) -> str:
        """Hash of the weights' content."""
        if self._digest is None:
            self._digest = file_digest(self.weights)
        return self._digest

    def _entry(self, path: Path, indices: np.ndarray) -> Path:
        settings = replace(self.settings, batch=0)  # how many at once changes nothing
        key = hashlib.blake2b(digest_size=16)
        for part in (CACHE_VERSION, file_digest(path), self.digest(), settings):
            key.update(repr(part).encode())
        key.update(indices.astype(np.int64).tobytes())
        name = key.hexdigest()
        return cache_folder("poses") / name[:2] / f"{name}.npz"

    def find_actor(self, source: FrameSource) -> Actor:
        """Look at all frames, link people, choose the actor, look again where he or she is lost."""
        settings = self.settings
        count = len(source.times_s)
        nobody = Detections(np.zeros((0, 5)), np.zeros((0, 17, 3)), np.zeros((0, 32)))
        found = [nobody] * count
        frames = source.read(range(count))
        for i, frame, boxes, joints in self._detect(frames, settings.image_size_px):
            colours = [_colours(frame, box) for box in boxes]
            found[i] = Detections(boxes, joints, np.array(colours).reshape(-1, 32))
        chosen = choose_actor(link(found), source)
        if chosen is not None and max(b[4] for b in chosen.boxes) < settings.start_confidence:
            chosen = None
        sure = settings.start_confidence
        people = max((int((s.boxes[:, 4] >= sure).sum()) for s in found), default=0)
        boxes = np.zeros((count, 4), np.float32)
        joints = np.zeros((count, 17, 3), np.float32)
        seen = np.zeros(count, bool)
        if chosen is not None:
            for f, box, pose in zip(chosen.frames, chosen.boxes, chosen.joints, strict=True):
                boxes[f], joints[f], seen[f] = box[:4], pose, True
            if settings.refine:
                self._look_again(source, boxes, joints, seen)
                self._look_again(source, boxes, joints, seen, only_lost=True)
        bridged = bridge(source.times_s, boxes, joints, seen, settings.bridge_s)
        joints[..., :2] *= source.scale
        boxes *= source.scale
        return Actor(joints, boxes, seen | bridged, bridged, people)

    def _look_again(
        self,
        source: FrameSource,
        boxes: np.ndarray,
        joints: np.ndarray,
        seen: np.ndarray,
        only_lost: bool = False,
    ) -> None:
        """Search enlarged cut-outs for the actor: all frames if small, else those without.

        Where he or she was lost the cut-out is also turned by 90, 180 and 270 degrees: detectors
        have seen few people upside down. Fills boxes, joints and seen in place.
        """
        settings = self.settings
        expected = _interpolate(source.times_s, boxes, seen)
        side = np.maximum(expected[:, 2] - expected[:, 0], expected[:, 3] - expected[:, 1])
        longest = max(source.height, source.width)
        small = not only_lost and np.median(side[seen]) < settings.small_share * longest
        first, last = np.flatnonzero(seen)[[0, -1]]
        was_seen = seen.copy()
        best = np.zeros(len(seen))
        places: list[tuple[int, int, int, int, int, int]] = []

        def cut_outs() -> Iterator[tuple[int, np.ndarray]]:
            for f, frame in source.read(np.flatnonzero(~was_seen | small).tolist()):
                reach = side[f] * (0.8 if was_seen[f] else 1.1)
                x, y = (expected[f, :2] + expected[f, 2:]) / 2
                left, top = int(max(x - reach, 0)), int(max(y - reach, 0))
                cut = frame[top : int(y + reach) + 1, left : int(x + reach) + 1]
                height, width = cut.shape[:2]
                if min(height, width) < 8:
                    continue
                for turns in (0,) if was_seen[f] else (0, 1, 2, 3):
                    places.append((f, turns, left, top, height, width))
                    yield len(places) - 1, np.rot90(cut, turns)

        for i, _, cut_boxes, cut_joints in self._detect(cut_outs(), settings.cut_out_px):
            f, turns, left, top, height, width = places[i]
            # Out of sight before the first and after the last sighting, so be surer there.
            needed = 0.3 if was_seen[f] else (0.05 if first < f < last else 0.15)
            for turned_box, turned_joints in zip(cut_boxes, cut_joints, strict=True):
                box, pose = _turn_back(turned_box, turned_joints, turns, height, width)
                box[:4] += [left, top, left, top]
                pose[:, :2] += [left, top]
                near = likeness(box, expected[f])
                value = near * box[4]
                enough = near > (0.5 if was_seen[f] else 0.25) and box[4] > needed
                if enough and value > best[f]:
                    best[f], boxes[f], joints[f], seen[f] = value, box[:4], pose, True

    def _detect(
        self, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """For each numbered RGB frame: number, frame, boxes (P, 5) and joints (P, 17, 3) in it."""
        frames = iter(frames)
        while group := list(islice(frames, self.settings.batch)):
            with self._lock:
                if self._model is None:
                    self._model = load_network(self.weights)
                results: Any = self._model.predict(
                    [np.ascontiguousarray(frame[..., ::-1]) for _, frame in group],
                    imgsz=image_size_px,
                    conf=self.settings.confidence,
                    max_det=20,
                    device=self.device,
                    verbose=False,
                )
            for (i, frame), result in zip(group, results, strict=True):
                boxes = result.boxes.data[:, :5].float().cpu().numpy()
                joints = np.zeros((0, 17, 3), np.float32)
                if len(boxes):
                    joints = result.keypoints.data.float().cpu().numpy()
                yield i, frame, boxes, joints


def _colours(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Colour histogram of the box's inner half, (32,), sums to 1."""
    x1, y1, x2, y2 = box[:4]
    dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
    part = frame[int(max(y1 + dy, 0)) : int(y2 - dy) + 1, int(max(x1 + dx, 0)) : int(x2 - dx) + 1]
    if part.size == 0:
        return np.full(32, 1 / 32, np.float32)
    hsv = cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2HSV)
    histogram = cv2.calcHist([hsv], [0, 2], None, [8, 4], [0, 180, 0, 256]).ravel()
    return np.asarray(histogram / max(histogram.sum(), 1), np.float32)


def _turn_back(
    box: np.ndarray, joints: np.ndarray, turns: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Undo ``np.rot90(picture, turns)`` for coordinates; height and width of the unturned one."""

    def back(points: np.ndarray) -> np.ndarray:
        x, y = points[..., 0], points[..., 1]
        x, y = [(x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x)][
            turns
        ]
        return np.stack([x, y], -1)

    corners = back(box[:4].reshape(2, 2))
    box = np.concatenate([corners.min(0), corners.max(0), box[4:]])
    return box, np.concatenate([back(joints), joints[..., 2:]], -1)
