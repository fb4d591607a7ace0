"""Tracks: the boxes of one person through successive frames, and gaps in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

MAX_STEP_FRAMES = 2  # a tracklet may miss one frame and continue in the next
CONFIDENT_BOX = 0.25  # confidence of a box that may start and end a tracklet
MAX_LINK_COST = 1.0
COLOUR_BINS = 32


@dataclass(frozen=True)
class Detections:
    """The P people detected in one frame."""

    boxes: np.ndarray  # (P, 5) x1 y1 x2 y2 in px, confidence
    joints: np.ndarray  # (P, J, 3) x_px, y_px, score
    colours: np.ndarray  # (P, 32) histogram of each box, sums to 1


@dataclass
class Track:
    """One person through frames; the lists have one element a frame."""

    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # (5,) x1 y1 x2 y2 confidence
    joints: list[np.ndarray] = field(default_factory=list)  # (J, 3)
    colours: np.ndarray | None = None  # (32,) moving average over its boxes
    first_colours: np.ndarray | None = None  # (32,) of the first box


def link(detections: Sequence[Detections]) -> list[Track]:
    """Link the boxes of successive frames into tracklets, frame by frame, at the least total cost.

    The cost of a pair grows with distance and with difference in size and colour. Confident boxes
    are linked first and faint ones fill gaps (as in ByteTrack), so that a second faint box around
    one body does not take over the track. A tracklet ends when its person is lost for two frames:
    whoever appears after that may be somebody else, and `actor.choose_actor` decides on the whole
    clip.
    """
    tracks: list[Track] = []
    for f, people in enumerate(detections):
        boxes = people.boxes
        free = {i for i, t in enumerate(tracks) if f - t.frames[-1] <= MAX_STEP_FRAMES}
        sure = [j for j in range(len(boxes)) if boxes[j, 4] >= CONFIDENT_BOX]
        faint = [j for j in range(len(boxes)) if boxes[j, 4] < CONFIDENT_BOX]
        for group in (sure, faint):
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
    return [t for t in map(_without_faint_ends, tracks) if t.frames]


def _without_faint_ends(track: Track) -> Track:
    """Keep faint boxes only between confident ones; others are as often a chair as a person."""
    sure = [i for i, box in enumerate(track.boxes) if box[4] >= CONFIDENT_BOX]
    keep = slice(sure[0], sure[-1] + 1) if sure else slice(0)
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
    """Cost of continuing a track with a box (5,) of frame ``f``, whose colours are (32,).

    Distance in box diagonals + |log of the ratio of sizes| + 0.8 × difference in colours (0 to 1).
    """
    last = track.boxes[-1]
    gap = f - track.frames[-1]
    centre = (last[:2] + last[2:4]) / 2
    if len(track.boxes) > 1 and track.frames[-1] - track.frames[-2] <= 2:
        before = (track.boxes[-2][:2] + track.boxes[-2][2:4]) / 2
        # Half of the last step is carried on: bodies keep moving, but boxes also jitter.
        centre = centre + 0.5 * (centre - before)
    size, last_size = _diagonal(box), _diagonal(last)
    distance = float(np.hypot(*((box[:2] + box[2:4]) / 2 - centre)))
    apart = distance / (0.5 * (size + last_size)) / (1 + 0.25 * (gap - 1))
    assert track.colours is not None and colours is not None
    unlike = 1 - float(np.minimum(track.colours, colours).sum())
    return apart + abs(np.log(size / last_size)) + 0.8 * unlike


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.hypot(box[2] - box[0], box[3] - box[1])), 1e-3)


def box_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two boxes, x1 y1 x2 y2: 1 for the same centre and size, 0 from a distance of
    one box side or a ratio of sizes of 3."""
    size_a, size_b = (max(c[2] - c[0], c[3] - c[1], 1e-3) for c in (a, b))
    apart = np.hypot(*((a[:2] + a[2:4] - b[:2] - b[2:4]) / 2)) / max(size_a, size_b)
    return float(max(0.0, 1 - apart) * max(0.0, 1 - abs(np.log(size_a / size_b)) / np.log(3)))


def interpolate(times_s: np.ndarray, values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Values (U, ...) at all times: linear between the frames seen (U,), constant beyond them."""
    flat = values.reshape(len(values), -1)
    columns = [np.interp(times_s, times_s[seen], column[seen]) for column in flat.T]
    return np.stack(columns, -1).reshape(values.shape).astype(np.float32)


def bridge(
    times_s: np.ndarray, boxes: np.ndarray, joints: np.ndarray, seen: np.ndarray, longest_s: float
) -> np.ndarray:
    """Interpolate boxes (U, 4) and joints (U, J, 3) in gaps of at most ``longest_s``, in place.

    Returns which frames were filled, (U,) bool. Frames before the first and after the last that is
    seen stay empty.
    """
    filled = np.zeros(len(seen), bool)
    places = np.flatnonzero(seen)
    for a, b in pairwise(places):
        if b - a > 1 and times_s[b] - times_s[a] <= longest_s:
            filled[a + 1 : b] = True
    if filled.any():
        boxes[filled] = interpolate(times_s, boxes, seen)[filled]
        # A joint that is missing at either end of the gap is not interpolated.
        known = interpolate(times_s, (joints[..., 2:] > 0).astype(np.float32), seen)[filled]
        joints[filled] = interpolate(times_s, joints, seen)[filled] * (known > 0.999)
    return filled
