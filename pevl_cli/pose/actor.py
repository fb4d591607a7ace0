"""The actor of a clip: choice among tracks, detection in a source of frames, and the cache.

The actor is the one person whose action is named.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from pevl_cli.cache import atomic_write, cache_folder, file_digest
from pevl_cli.errors import PevlError
from pevl_cli.media.timeline import Timeline
from pevl_cli.media.video import MAX_SIDE_PX, Clip, iter_frames
from pevl_cli.pose.settings import PoseSettings
from pevl_cli.pose.tracks import (
    COLOUR_BINS,
    Detections,
    Track,
    box_similarity,
    bridge,
    interpolate,
    link,
    link_cost,
)

# Part of each cache key; to be increased when the code changes the result for the same detections.
CACHE_VERSION = 1
CHAIN_COST = 0.1  # weight of the cost of linking two tracklets
MAX_CHAIN_COST = 2.0  # maximum cost of linking two tracklets
CONFIDENT_JOINT = 0.5  # minimum score of a joint whose movement is measured
MIN_CROP_PX = 8

# (Numbered RGB images, long side in px) -> number, image, boxes (P, 5), joints (P, 17, 3).
Detect = Callable[
    [Iterable[tuple[int, np.ndarray]], int],
    Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
]


@dataclass(frozen=True)
class Actor:
    """The one person whose joints are used, in the U distinct frames of a clip."""

    joints: np.ndarray  # (U, J, 3) float32: x_px, y_px, score; 0 where not seen
    boxes: np.ndarray  # (U, 4) float32 x1 y1 x2 y2 in px; 0 where not seen
    seen: np.ndarray  # (U,) bool: detected, or interpolated between two detections
    bridged: np.ndarray  # (U,) bool: interpolated
    people: int  # maximum number of people in one frame
    layout: str = "coco17"

    @property
    def box(self) -> list[float] | None:
        """The box around the actor in all frames, x1 y1 x2 y2 in px; None when never seen."""
        if not self.seen.any():
            return None
        boxes = self.boxes[self.seen]
        return [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]


@dataclass(frozen=True)
class FrameSource:
    """U frames in which people are detected; can be read several times, one frame at a time.

    ``read``: positions in 0 ... U-1 -> (position, (h, w, 3) uint8 RGB).
    """

    times_s: np.ndarray  # (U,)
    width: int  # px of the frames as read
    height: int
    scale: float  # px of the upright video per px of the frames
    read: Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]

    @classmethod
    def from_clip(cls, clip: Clip) -> FrameSource:
        """The U distinct frames of a sampled clip."""
        height, width = clip.frames.shape[1:3]

        def read(indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            return ((i, clip.frames[i]) for i in indices)

        return cls(clip.times_s, width, height, clip.width / width, read)

    @classmethod
    def from_video(cls, timeline: Timeline, indices: np.ndarray) -> FrameSource:
        """The frames ``indices`` (U,) of a video file, decoded when read."""
        scale = max(1.0, max(timeline.width, timeline.height) / MAX_SIDE_PX)
        width, height = round(timeline.width / scale), round(timeline.height / scale)
        position = {int(index): u for u, index in enumerate(indices)}

        def read(positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            frame_indices = [int(indices[u]) for u in positions]
            return ((position[i], frame) for i, frame in iter_frames(timeline, frame_indices))

        return cls(timeline.times_s[indices], width, height, scale, read)


def choose_actor(tracks: list[Track], source: FrameSource) -> Track | None:
    """The chain of tracklets, in order of time, with the highest total score; None without tracks.

    The score of a tracklet is

        sum over frames of confidence × box size × nearness to the frame's centre,

    times 1 + movement of the joints relative to the box (box sizes per second, at most 2). Each
    link from one tracklet to the next subtracts `CHAIN_COST` × the link cost of their ends. Reason:
    judges and spectators are small, at the side, or sit still, and the camera follows the actor.
    """
    tracks = sorted(tracks, key=lambda t: (t.frames[-1], t.frames[0]))
    scores = [_score(track, source) for track in tracks]
    best, before = list(scores), [-1] * len(tracks)
    for j, track in enumerate(tracks):
        for i in range(j):
            if tracks[i].frames[-1] >= track.frames[0]:
                continue
            cost = link_cost(tracks[i], track.boxes[0], track.first_colours, track.frames[0])
            if cost < MAX_CHAIN_COST and best[i] + scores[j] - CHAIN_COST * cost > best[j]:
                best[j], before[j] = best[i] + scores[j] - CHAIN_COST * cost, i
    if not tracks:
        return None
    j = int(np.argmax(best))
    chain = Track()
    while j >= 0:
        chain.frames = tracks[j].frames + chain.frames
        chain.boxes = tracks[j].boxes + chain.boxes
        chain.joints = tracks[j].joints + chain.joints
        j = before[j]
    return chain


def _score(track: Track, source: FrameSource) -> float:
    height, width = source.height, source.width
    boxes = np.stack(track.boxes)
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2 / [width, height]
    off_centre = np.hypot(*(2 * centre - 1).T)
    size = np.maximum(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]) / max(width, height)
    sum_over_frames = float((boxes[:, 4] * size * np.exp(-(off_centre**2))).sum())
    return sum_over_frames * (1 + min(_movement(track, source), 2.0))


def _movement(track: Track, source: FrameSource) -> float:
    """Mean speed of the joints relative to their box, in box heights per second."""
    if len(track.frames) < 2:
        return 0.0
    boxes, joints = np.stack(track.boxes), np.stack(track.joints)
    size = np.maximum(boxes[:, 2:4] - boxes[:, :2], 1).max(1)
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    relative = (joints[..., :2] - centre[:, None]) / size[:, None, None]
    confident = (joints[1:, :, 2] > CONFIDENT_JOINT) & (joints[:-1, :, 2] > CONFIDENT_JOINT)
    step = np.linalg.norm(np.diff(relative, axis=0), axis=-1)
    seconds = np.diff(source.times_s[track.frames])
    speed = step / np.clip(seconds, 1e-3, None)[:, None]
    return float(speed[confident].mean()) if confident.any() else 0.0


# -- detection ------------------------------------------------------------------------------------


def find_actor(detect: Detect, settings: PoseSettings, source: FrameSource) -> Actor:
    """Detect people in all frames, link them to tracks, and choose the actor.

    Then detect again in frames where the actor is lost or small, and interpolate short gaps. Joints
    and boxes are in px of the upright video.
    """
    count = len(source.times_s)
    detections = _detect_all(detect, settings, source)
    chosen = choose_actor(link(detections), source)
    if chosen is not None and max(b[4] for b in chosen.boxes) < settings.start_confidence:
        chosen = None
    confident = [int((d.boxes[:, 4] >= settings.start_confidence).sum()) for d in detections]
    boxes = np.zeros((count, 4), np.float32)
    joints = np.zeros((count, 17, 3), np.float32)
    seen = np.zeros(count, bool)
    if chosen is not None:
        for f, box, pose in zip(chosen.frames, chosen.boxes, chosen.joints, strict=True):
            boxes[f], joints[f], seen[f] = box[:4], pose, True
        if settings.refine:
            _detect_again(detect, settings, source, boxes, joints, seen)
            _detect_again(detect, settings, source, boxes, joints, seen, only_lost=True)
    bridged = bridge(source.times_s, boxes, joints, seen, settings.bridge_s)
    joints[..., :2] *= source.scale
    boxes *= source.scale
    return Actor(joints, boxes, seen | bridged, bridged, max(confident, default=0))


def _detect_all(detect: Detect, settings: PoseSettings, source: FrameSource) -> list[Detections]:
    count = len(source.times_s)
    empty = Detections(np.zeros((0, 5)), np.zeros((0, 17, 3)), np.zeros((0, COLOUR_BINS)))
    detections = [empty] * count
    for i, frame, boxes, joints in detect(source.read(range(count)), settings.image_size_px):
        colours = np.array([_colours(frame, box) for box in boxes]).reshape(-1, COLOUR_BINS)
        detections[i] = Detections(boxes, joints, colours)
    return detections


def _detect_again(
    detect: Detect,
    settings: PoseSettings,
    source: FrameSource,
    boxes: np.ndarray,
    joints: np.ndarray,
    seen: np.ndarray,
    only_lost: bool = False,
) -> None:
    """Detect the actor in enlarged crops of the frames where the actor is lost, or of all if small.

    Where the actor is lost, the crop is also rotated by 90, 180 and 270 degrees, because detectors
    are trained on few people upside down. Fills boxes, joints and seen in place.
    """
    expected = interpolate(source.times_s, boxes, seen)
    side = np.maximum(expected[:, 2] - expected[:, 0], expected[:, 3] - expected[:, 1])
    longest = max(source.height, source.width)
    small = not only_lost and np.median(side[seen]) < settings.small_share * longest
    first, last = np.flatnonzero(seen)[[0, -1]]
    was_seen = seen.copy()
    best = np.zeros(len(seen))
    crops: list[tuple[int, int, int, int, int, int]] = []

    def read_crops() -> Iterator[tuple[int, np.ndarray]]:
        for f, frame in source.read(np.flatnonzero(~was_seen | small).tolist()):
            reach = side[f] * (0.8 if was_seen[f] else 1.1)
            x, y = (expected[f, :2] + expected[f, 2:]) / 2
            left, top = int(max(x - reach, 0)), int(max(y - reach, 0))
            crop = frame[top : int(y + reach) + 1, left : int(x + reach) + 1]
            height, width = crop.shape[:2]
            if min(height, width) < MIN_CROP_PX:
                continue
            for turns in (0,) if was_seen[f] else (0, 1, 2, 3):
                crops.append((f, turns, left, top, height, width))
                yield len(crops) - 1, np.rot90(crop, turns)

    for i, _, crop_boxes, crop_joints in detect(read_crops(), settings.cut_out_px):
        f, turns, left, top, height, width = crops[i]
        # Before the first and after the last detection the actor may be outside the frame.
        min_confidence = 0.3 if was_seen[f] else (0.05 if first < f < last else 0.15)
        for crop_box, crop_pose in zip(crop_boxes, crop_joints, strict=True):
            box, pose = unrotate(crop_box, crop_pose, turns, height, width)
            box[:4] += [left, top, left, top]
            pose[:, :2] += [left, top]
            similarity = box_similarity(box, expected[f])
            score = similarity * box[4]
            fits = similarity > (0.5 if was_seen[f] else 0.25) and box[4] > min_confidence
            if fits and score > best[f]:
                best[f], boxes[f], joints[f], seen[f] = score, box[:4], pose, True


def _colours(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Histogram of hue and value (HSV) in the box's inner half, (32,), sums to 1."""
    x1, y1, x2, y2 = box[:4]
    dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
    part = frame[int(max(y1 + dy, 0)) : int(y2 - dy) + 1, int(max(x1 + dx, 0)) : int(x2 - dx) + 1]
    if part.size == 0:
        return np.full(COLOUR_BINS, 1 / COLOUR_BINS, np.float32)
    hsv = cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2HSV)
    histogram = cv2.calcHist([hsv], [0, 2], None, [8, 4], [0, 180, 0, 256]).ravel()
    return np.asarray(histogram / max(histogram.sum(), 1), np.float32)


def unrotate(
    box: np.ndarray, joints: np.ndarray, turns: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Box (5,) and joints (J, 3) in ``np.rot90(image, turns)`` -> the same in ``image``.

    ``height`` and ``width``: size of the image before the rotation, px.
    """

    def unrotated(points: np.ndarray) -> np.ndarray:
        x, y = points[..., 0], points[..., 1]
        rotations = [
            (x, y),
            (width - 1 - y, x),
            (width - 1 - x, height - 1 - y),
            (y, height - 1 - x),
        ]
        return np.stack(rotations[turns], -1)

    corners = unrotated(box[:4].reshape(2, 2))
    box = np.concatenate([corners.min(0), corners.max(0), box[4:]])
    return box, np.concatenate([unrotated(joints), joints[..., 2:]], -1)


# -- cache ----------------------------------------------------------------------------------------


def cache_entry(path: Path, indices: np.ndarray, weights: str, settings: PoseSettings) -> Path:
    """The cache file of an actor.

    Its key: the video's content, ``indices`` of the frames (U,), the hash of the detector's
    ``weights``, and the settings.
    """
    settings = replace(settings, batch=0)  # does not change the result
    key = hashlib.blake2b(digest_size=16)
    for part in (CACHE_VERSION, file_digest(path), weights, settings):
        key.update(repr(part).encode())
    key.update(indices.astype(np.int64).tobytes())
    name = key.hexdigest()
    return cache_folder("poses") / name[:2] / f"{name}.npz"


def cached_actor(entry: Path, find: Callable[[], Actor]) -> Actor:
    """The actor in a cache file; if missing or damaged, call ``find`` and store the result."""
    damaged = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
    with suppress(OSError, *damaged), np.load(entry, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in ("joints", "boxes", "seen", "bridged")}
        return Actor(**arrays, people=int(stored["people"]))
    actor = find()
    # A cache that cannot be written is no error.
    with suppress(PevlError), atomic_write(entry) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            joints=actor.joints,
            boxes=actor.boxes,
            seen=actor.seen,
            bridged=actor.bridged,
            people=actor.people,
        )
    return actor
