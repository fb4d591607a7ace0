"""One person's joints in the frames of a clip: detector, tracks, the actor, cache.

The only file that knows how the detector is asked. Boxes found in the frames
are linked into tracks; the *actor* is one track, and only his or her joints reach the model.

Shapes: U distinct frames of a clip, J joints. Joints are x, y in pixels of the upright picture and
a score in [0, 1]; boxes are x1, y1, x2, y2 in the same pixels.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from pevl_cli.cache import cache_folder, file_digest, write_aside
from pevl_cli.errors import PevlError
from pevl_cli.skeletons import LAYOUTS
from pevl_cli.video import MAX_SIDE_PX, Clip, Timeline, iter_frames
from pevl_cli.yolo import load_network

USUAL_WEIGHTS = "yolo11n-pose.pt"
# Made by benchmarks/make_pose.py.
BUNDLED_WEIGHTS = Path(__file__).parent / "data" / "pose" / "pevl-pose.pt"
WEIGHTS_VARIABLE = "PEVL_POSE_WEIGHTS"
# Bumped when tracks come out differently from the same detector, so that old entries are not used.
CACHE_VERSION = 1
LOST_FRAMES = 2  # a tracklet may miss one frame and go on in the next
STEP_COST = 0.1
SURE = 0.25  # confidence of a box that may begin and end a tracklet


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


@dataclass(frozen=True)
class Actor:
    """The one person whose joints are used, in the U distinct frames of a clip."""

    joints: np.ndarray  # (U, J, 3) float32: x_px, y_px, score; zeros where not seen
    boxes: np.ndarray  # (U, 4) float32 px; zeros where not seen
    seen: np.ndarray  # (U,) bool: found, or bridged between two sightings
    bridged: np.ndarray  # (U,) bool
    people: int  # seen at once, at most
    layout: str = "coco17"

    @property
    def box(self) -> list[float] | None:
        """The box that holds the actor in all frames, px; None when nobody was found."""
        if not self.seen.any():
            return None
        boxes = self.boxes[self.seen]
        return [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]


@dataclass(frozen=True)
class Footage:
    """Frames to look for people in, read as often as needed and never all at once."""

    times_s: np.ndarray  # (U,)
    width: int  # px of the frames as read
    height: int
    scale: float  # pixels of the upright picture per pixel of the frames
    read: Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]

    @classmethod
    def of_clip(cls, clip: Clip) -> Footage:
        height, width = clip.frames.shape[1:3]

        def read(indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            return ((i, clip.frames[i]) for i in indices)

        return cls(clip.times_s, width, height, clip.width / width, read)

    @classmethod
    def of_video(cls, timeline: Timeline, indices: np.ndarray) -> Footage:
        """The frames of a file with these indices, decoded as they are asked for."""
        scale = max(1.0, max(timeline.width, timeline.height) / MAX_SIDE_PX)
        width, height = round(timeline.width / scale), round(timeline.height / scale)
        place = {int(index): u for u, index in enumerate(indices)}

        def read(places: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            wanted = [int(indices[u]) for u in places]
            return ((place[i], frame) for i, frame in iter_frames(timeline, wanted))

        return cls(timeline.times_s[indices], width, height, scale, read)


@dataclass(frozen=True)
class Sightings:
    """Everybody in one frame: boxes with confidence (P, 5), joints (P, J, 3), colours (P, 32)."""

    boxes: np.ndarray
    joints: np.ndarray
    colours: np.ndarray


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # (5,) x1 y1 x2 y2 confidence
    joints: list[np.ndarray] = field(default_factory=list)  # (J, 3)
    colours: np.ndarray | None = None  # of its boxes lately
    first_colours: np.ndarray | None = None


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
        return self._remembered(entry, lambda: Footage.of_clip(clip))

    def actor_in_all(self, timeline: Timeline, indices: np.ndarray) -> Actor:
        """The actor in these frames of a file, decoded as they are needed; cached as well."""
        entry = self._entry(timeline.path, indices)
        return self._remembered(entry, lambda: Footage.of_video(timeline, indices))

    def _remembered(self, entry: Path | None, footage: Callable[[], Footage]) -> Actor:
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
        actor = self.find_actor(footage())
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

    def find_actor(self, footage: Footage) -> Actor:
        """Look at all frames, link people, choose the actor, look again where he or she is lost."""
        settings = self.settings
        count = len(footage.times_s)
        nobody = Sightings(np.zeros((0, 5)), np.zeros((0, 17, 3)), np.zeros((0, 32)))
        found = [nobody] * count
        frames = footage.read(range(count))
        for i, frame, boxes, joints in self._detect(frames, settings.image_size_px):
            colours = [_colours(frame, box) for box in boxes]
            found[i] = Sightings(boxes, joints, np.array(colours).reshape(-1, 32))
        chosen = choose_actor(link(found), footage)
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
                self._look_again(footage, boxes, joints, seen)
                self._look_again(footage, boxes, joints, seen, only_lost=True)
        bridged = bridge(footage.times_s, boxes, joints, seen, settings.bridge_s)
        joints[..., :2] *= footage.scale
        boxes *= footage.scale
        return Actor(joints, boxes, seen | bridged, bridged, people)

    def _look_again(
        self,
        footage: Footage,
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
        expected = _interpolate(footage.times_s, boxes, seen)
        side = np.maximum(expected[:, 2] - expected[:, 0], expected[:, 3] - expected[:, 1])
        longest = max(footage.height, footage.width)
        small = not only_lost and np.median(side[seen]) < settings.small_share * longest
        first, last = np.flatnonzero(seen)[[0, -1]]
        was_seen = seen.copy()
        best = np.zeros(len(seen))
        places: list[tuple[int, int, int, int, int, int]] = []

        def cut_outs() -> Iterator[tuple[int, np.ndarray]]:
            for f, frame in footage.read(np.flatnonzero(~was_seen | small).tolist()):
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


def find_weights(weights: str | Path | None = None) -> Path:
    """Where the detector's weights are: those of the argument or of ``PEVL_POSE_WEIGHTS``, a file
    or a bare name; else YOLO11n-pose if it is here, else the small network of this package.

    Names are looked for in the working folder and among what `pevl models fetch` has brought.
    PevlError when what was named is not there; nothing is ever fetched from here.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    wanted = str(named or USUAL_WEIGHTS)
    if wanted == BUNDLED_WEIGHTS.stem:
        return BUNDLED_WEIGHTS
    path = Path(wanted).expanduser()
    places = [path] if path.name != wanted else [path, cache_folder("weights") / wanted]
    for place in places:
        if place.is_file():
            return place
    if not named:
        return BUNDLED_WEIGHTS
    source = "--pose-weights" if weights else WEIGHTS_VARIABLE
    raise PevlError(
        f"{path}: there is no such pose weights file (named by {source}). `pevl models` lists what "
        f"is here and what can be fetched; without {source} the package's own are used."
    )


def fallback_note(weights: str | Path | None = None) -> str | None:
    """What to tell where the small network is used because nobody chose and YOLO is not here."""
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named or find_weights() != BUNDLED_WEIGHTS:
        return None
    return (
        "joints by the small pose network of this package; a better one (6 MB): pevl models fetch "
        f"{USUAL_WEIGHTS}"
    )


def link(found: Sequence[Sightings]) -> list[_Track]:
    """Link the boxes of successive frames into tracklets, frame by frame, at the least total cost.

    The cost of a pair is how far apart, how unlike in size and in colour the boxes are. Sure boxes
    choose first and faint ones fill in (as in ByteTrack), so that a second faint box around one
    body does not steal the track. A tracklet ends when its person is lost for two frames: whoever
    appears after that may be somebody else, and `chain` decides on the whole clip.
    """
    tracks: list[_Track] = []
    for f, sightings in enumerate(found):
        boxes, joints, colours = sightings.boxes, sightings.joints, sightings.colours
        free = {i for i, t in enumerate(tracks) if f - t.frames[-1] <= LOST_FRAMES}
        sure = [j for j in range(len(boxes)) if boxes[j, 4] >= SURE]
        faint = [j for j in range(len(boxes)) if boxes[j, 4] < SURE]
        for group in (sure, faint):
            rows = sorted(free)
            cost = np.full((len(rows), len(group)), 1e3)
            for i, row in enumerate(rows):
                for j, column in enumerate(group):
                    cost[i, j] = _link_cost(tracks[row], boxes[column], colours[column], f)
            taken = set()
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                if cost[i, j] < 1.0:
                    _extend(
                        tracks[rows[i]], f, boxes[group[j]], joints[group[j]], colours[group[j]]
                    )
                    free.discard(rows[i])
                    taken.add(group[j])
            for j in set(group) - taken:
                tracks.append(_Track())
                _extend(tracks[-1], f, boxes[j], joints[j], colours[j])
    return [t for t in map(_without_faint_ends, tracks) if t.frames]


def _without_faint_ends(track: _Track) -> _Track:
    """Faint boxes count only between sure ones; alone they are as often a chair as a person."""
    sure = [i for i, box in enumerate(track.boxes) if box[4] >= SURE]
    keep = slice(sure[0], sure[-1] + 1) if sure else slice(0)
    return replace(
        track, frames=track.frames[keep], boxes=track.boxes[keep], joints=track.joints[keep]
    )


def _extend(
    track: _Track, f: int, box: np.ndarray, joints: np.ndarray, colours: np.ndarray
) -> None:
    track.frames.append(f)
    track.boxes.append(box)
    track.joints.append(joints)
    track.first_colours = colours if track.first_colours is None else track.first_colours
    track.colours = colours if track.colours is None else 0.8 * track.colours + 0.2 * colours


def _link_cost(track: _Track, box: np.ndarray, colours: np.ndarray | None, f: int) -> float:
    last = track.boxes[-1]
    gap = f - track.frames[-1]
    centre = (last[:2] + last[2:4]) / 2
    if len(track.boxes) > 1 and track.frames[-1] - track.frames[-2] <= 2:
        before = (track.boxes[-2][:2] + track.boxes[-2][2:4]) / 2
        # Half of the last step carried on: bodies fly on, but a box jumps a little anyway.
        centre = centre + 0.5 * (centre - before)
    size, last_size = _diagonal(box), _diagonal(last)
    distance = float(np.hypot(*((box[:2] + box[2:4]) / 2 - centre)))
    apart = distance / (0.5 * (size + last_size)) / (1 + 0.25 * (gap - 1))
    assert track.colours is not None and colours is not None
    unlike = 1 - float(np.minimum(track.colours, colours).sum())
    return apart + abs(np.log(size / last_size)) + 0.8 * unlike


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.hypot(box[2] - box[0], box[3] - box[1])), 1e-3)


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


def choose_actor(tracks: list[_Track], footage: Footage) -> _Track | None:
    """The chain of tracklets, one after the other in time, worth most. A tracklet's worth is

        sum over frames of confidence × box size × nearness to the picture's centre,

    times 1 + how much the joints move relative to the box (box sizes per second, at most 2). A
    step from one tracklet to the next costs what linking their ends would. Judges and crowd are
    small, at the side, or sit still; who films keeps the actor in the middle.
    """
    tracks = sorted(tracks, key=lambda t: (t.frames[-1], t.frames[0]))
    worth = [_worth(track, footage) for track in tracks]
    best, before = list(worth), [-1] * len(tracks)
    for j, track in enumerate(tracks):
        for i in range(j):
            if tracks[i].frames[-1] >= track.frames[0]:
                continue
            cost = _link_cost(tracks[i], track.boxes[0], track.first_colours, track.frames[0])
            if cost < 2.0 and best[i] + worth[j] - STEP_COST * cost > best[j]:
                best[j], before[j] = best[i] + worth[j] - STEP_COST * cost, i
    if not tracks:
        return None
    j = int(np.argmax(best))
    chain = _Track()
    while j >= 0:
        chain.frames = tracks[j].frames + chain.frames
        chain.boxes = tracks[j].boxes + chain.boxes
        chain.joints = tracks[j].joints + chain.joints
        j = before[j]
    return chain


def _worth(track: _Track, footage: Footage) -> float:
    height, width = footage.height, footage.width
    boxes = np.stack(track.boxes)
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2 / [width, height]
    off_centre = np.hypot(*(2 * centre - 1).T)
    size = np.maximum(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]) / max(width, height)
    sum_over_frames = float((boxes[:, 4] * size * np.exp(-(off_centre**2))).sum())
    return sum_over_frames * (1 + min(_movement(track, footage), 2.0))


def _movement(track: _Track, footage: Footage) -> float:
    """Mean speed of the joints relative to their box, in box heights per second."""
    if len(track.frames) < 2:
        return 0.0
    boxes, joints = np.stack(track.boxes), np.stack(track.joints)
    size = np.maximum(boxes[:, 2:4] - boxes[:, :2], 1).max(1)
    inside = (joints[..., :2] - ((boxes[:, :2] + boxes[:, 2:4]) / 2)[:, None]) / size[:, None, None]
    sure = (joints[1:, :, 2] > 0.5) & (joints[:-1, :, 2] > 0.5)
    step = np.linalg.norm(np.diff(inside, axis=0), axis=-1)
    seconds = np.diff(footage.times_s[track.frames])
    # Over long steps positions are unrelated, and their distance says nothing of speed.
    speed = step / np.clip(seconds, 1e-3, None)[:, None]
    return float(speed[sure].mean()) if sure.any() else 0.0


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """1 for boxes with one centre and one size, falling to 0 at a box's width apart or 3x size."""
    size_a, size_b = (max(c[2] - c[0], c[3] - c[1], 1e-3) for c in (a, b))
    apart = np.hypot(*((a[:2] + a[2:4] - b[:2] - b[2:4]) / 2)) / max(size_a, size_b)
    return float(max(0.0, 1 - apart) * max(0.0, 1 - abs(np.log(size_a / size_b)) / np.log(3)))


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


def _interpolate(times_s: np.ndarray, values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Values at all times, straight between those seen and constant beyond them."""
    flat = values.reshape(len(values), -1)
    columns = [np.interp(times_s, times_s[seen], column[seen]) for column in flat.T]
    return np.stack(columns, -1).reshape(values.shape).astype(np.float32)


def bridge(
    times_s: np.ndarray, boxes: np.ndarray, joints: np.ndarray, seen: np.ndarray, longest_s: float
) -> np.ndarray:
    """Fill short gaps between two sightings in place; returns which frames were filled, (U,)."""
    filled = np.zeros(len(seen), bool)
    places = np.flatnonzero(seen)
    for a, b in pairwise(places):
        if b - a > 1 and times_s[b] - times_s[a] <= longest_s:
            filled[a + 1 : b] = True
    if filled.any():
        boxes[filled] = _interpolate(times_s, boxes, seen)[filled]
        # A joint that either sighting lacks has no way to go.
        known = _interpolate(times_s, (joints[..., 2:] > 0).astype(np.float32), seen)[filled]
        joints[filled] = _interpolate(times_s, joints, seen)[filled] * (known > 0.999)
    return filled


def draw(frame: np.ndarray, joints: np.ndarray, layout: str, least_score: float = 0.3) -> None:
    """Draw a skeleton on an RGB frame in place; joints (J, 3) in the frame's pixels."""
    unit = max(1, round(max(frame.shape[:2]) / 400))
    names = LAYOUTS[layout].names
    for a, b in LAYOUTS[layout].edge_indices:
        if min(joints[a, 2], joints[b, 2]) >= least_score:
            side = names[b].partition("_")[0]
            colour = {"left": (255, 160, 40), "right": (60, 200, 255)}.get(side, (120, 255, 120))
            ends = [tuple(int(v) for v in joints[i, :2]) for i in (a, b)]
            cv2.line(frame, ends[0], ends[1], colour, 2 * unit, cv2.LINE_AA)
    for x, y, score in joints:
        if score >= least_score:
            cv2.circle(frame, (int(x), int(y)), 2 * unit + 1, (255, 255, 255), -1, cv2.LINE_AA)
