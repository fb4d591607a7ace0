"""Tracks: link the boxes of one person in successive frames, and interpolate gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

MAX_STEP_FRAMES = 2  # a tracklet may skip one frame
CONFIDENT_BOX = 0.25  # minimum confidence of the first and last box of a tracklet
MAX_LINK_COST = 1.0
COLOUR_BINS = 32


@dataclass(frozen=True)
class Detections:
    """The P people detected in one frame."""

    boxes: np.ndarray  # (P, 5) x1 y1 x2 y2 in px, confidence
    joints: np.ndarray  # (P, J, 3) x_px, y_px, score
    colours: np.ndarray  # (P, 32) colour histogram of each box, sums to 1


@dataclass
class Track:
    """One person in successive frames; each list has one element per frame."""

    frames: list[int] = field(default_factory=list)  # frame numbers
    boxes: list[np.ndarray] = field(default_factory=list)  # (5,) x1 y1 x2 y2 confidence
    joints: list[np.ndarray] = field(default_factory=list)  # (J, 3)
    colours: np.ndarray | None = None  # (32,) moving average of the histograms
    first_colours: np.ndarray | None = None  # (32,) of the first box


def link(detections: Sequence[Detections]) -> list[Track]:
    """Link the boxes of successive frames into tracklets with the least total cost.

    The cost grows with distance and with differences in size and colour (`link_cost`). Confident
    boxes are linked first, then boxes of low confidence (as in ByteTrack), so that a second, weak
    box around the same person does not replace the first. A tracklet ends when its person is lost
    for two frames; `actor.choose_actor` joins tracklets of the same person.
    """
    tracks: list[Track] = []
    for f, people in enumerate(detections):
        boxes = people.boxes
        free = {i for i, t in enumerate(tracks) if f - t.frames[-1] <= MAX_STEP_FRAMES}
        confident = [j for j in range(len(boxes)) if boxes[j, 4] >= CONFIDENT_BOX]
        weak = [j for j in range(len(boxes)) if boxes[j, 4] < CONFIDENT_BOX]
        for group in (confident, weak):
            rows = sorted(free)
            cost = np.full((len(rows), len(group)), 1e3)
            for i, row in enumerate(rows):
                for j, column in enumerate(group):
                    cost[i, j] = link_cost(tracks[row], boxes[column], people.colours[column], f)
            linked = set()
            for i, j in zip(*linear_sum_assignment(cost), strict=True):
                if cost[i, j] < MAX_LINK_COST:
                    _extend(tracks[rows[i]], f, people, group[j])
                    free.discard(rows[i])
                    linked.add(group[j])
            for j in set(group) - linked:
                tracks.append(Track())
                _extend(tracks[-1], f, people, j)
    return [t for t in map(_trim_weak_ends, tracks) if t.frames]


def _trim_weak_ends(track: Track) -> Track:
    """Remove boxes of low confidence before the first and after the last confident box.

    Such boxes are often objects, such as a chair.
    """
    confident = [i for i, box in enumerate(track.boxes) if box[4] >= CONFIDENT_BOX]
    keep = slice(confident[0], confident[-1] + 1) if confident else slice(0)
    return replace(
        track, frames=track.frames[keep], boxes=track.boxes[keep], joints=track.joints[keep]
    )


def _extend(track: Track, f: int, people: Detections, person: int) -> None:
    colours = people.colours[person]
    track.frames.append(f)
    track.boxes.append(people.boxes[person])
    track.joints.append(people.joints[person])
    track.first_colours = colours if track.first_colours is None else track.first_colours
    track.colours = colours if track.colours is None else 0.8 * track.colours + 0.2 * colours


def link_cost(track: Track, box: np.ndarray, colours: np.ndarray | None, f: int) -> float:
    """Cost of continuing a track with a box (5,), x1 y1 x2 y2 in px, of frame ``f``; colours (32,).

    Distance in box diagonals + |log of the ratio of sizes| + 0.8 × difference in colours (0 to 1).
    """
    last = track.boxes[-1]
    gap = f - track.frames[-1]
    centre = (last[:2] + last[2:4]) / 2
    if len(track.boxes) > 1 and track.frames[-1] - track.frames[-2] <= 2:
        before = (track.boxes[-2][:2] + track.boxes[-2][2:4]) / 2
        # Predict half of the last step: people keep moving, but boxes also jitter.
        centre = centre + 0.5 * (centre - before)
    size, last_size = _diagonal(box), _diagonal(last)
    distance = float(np.hypot(*((box[:2] + box[2:4]) / 2 - centre)))
    relative_distance = distance / (0.5 * (size + last_size)) / (1 + 0.25 * (gap - 1))
    assert track.colours is not None and colours is not None
    colour_difference = 1 - float(np.minimum(track.colours, colours).sum())
    return relative_distance + abs(np.log(size / last_size)) + 0.8 * colour_difference


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.hypot(box[2] - box[0], box[3] - box[1])), 1e-3)


def box_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two boxes (4,), x1 y1 x2 y2 in px: a scalar in [0, 1].

    1 for the same centre and size; 0 if the centres are one box side apart, or one size is 3 times
    the other.
    """
    size_a, size_b = (max(c[2] - c[0], c[3] - c[1], 1e-3) for c in (a, b))
    distance = np.hypot(*((a[:2] + a[2:4] - b[:2] - b[2:4]) / 2)) / max(size_a, size_b)
    return float(max(0.0, 1 - distance) * max(0.0, 1 - abs(np.log(size_a / size_b)) / np.log(3)))


def interpolate(times_s: np.ndarray, values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Interpolate values (U, ...) linearly between the frames with ``seen`` (U,).

    Before the first and after the last such frame, values are constant. ``times_s`` (U,).
    """
    flat = values.reshape(len(values), -1)
    columns = [np.interp(times_s, times_s[seen], column[seen]) for column in flat.T]
    return np.stack(columns, -1).reshape(values.shape).astype(np.float32)


def bridge(
    times_s: np.ndarray, boxes: np.ndarray, joints: np.ndarray, seen: np.ndarray, longest_s: float
) -> np.ndarray:
    """Interpolate boxes (U, 4) and joints (U, J, 3) in gaps of at most ``longest_s``, in place.

    Returns the filled frames, (U,) bool. Frames before the first and after the last frame with
    ``seen`` (U,) are not filled.
    """
    filled = np.zeros(len(seen), bool)
    for a, b in pairwise(np.flatnonzero(seen)):
        if b - a > 1 and times_s[b] - times_s[a] <= longest_s:
            filled[a + 1 : b] = True
    if filled.any():
        boxes[filled] = interpolate(times_s, boxes, seen)[filled]
        # A joint that is missing at either end of the gap is not interpolated.
        known = interpolate(times_s, (joints[..., 2:] > 0).astype(np.float32), seen)[filled]
        joints[filled] = interpolate(times_s, joints, seen)[filled] * (known > 0.999)
    return filled
