"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

LOST_FRAMES = 2  # a tracklet may miss one frame and go on in the next
SURE = 0.25  # confidence of a box that may begin and end a tracklet


@dataclass(frozen=True)
class Detections:
    """Everybody in one frame: boxes with confidence (P, 5), joints (P, J, 3), colours (P, 32)."""

    boxes: np.ndarray
    joints: np.ndarray
    colours: np.ndarray


@dataclass
class Track:
    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # (5,) x1 y1 x2 y2 confidence
    joints: list[np.ndarray] = field(default_factory=list)  # (J, 3)
    colours: np.ndarray | None = None  # of its boxes lately
    first_colours: np.ndarray | None = None


def link(found: Sequence[Detections]) -> list[Track]:
    """Link the boxes of successive frames into tracklets, frame by frame, at the least total cost.

    The cost of a pair is how far apart, how unlike in size and in colour the boxes are. Sure boxes
    choose first and faint ones fill in (as in ByteTrack), so that a second faint box around one
    body does not steal the track. A tracklet ends when its person is lost for two frames: whoever
    appears after that may be somebody else, and `chain` decides on the whole clip.
    """
    tracks: list[Track] = []
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
                tracks.append(Track())
                _extend(tracks[-1], f, boxes[j], joints[j], colours[j])
    return [t for t in map(_without_faint_ends, tracks) if t.frames]


def _without_faint_ends(track: Track) -> Track:
    """Faint boxes count only between sure ones; alone they are as often a chair as a person."""
    sure = [i for i, box in enumerate(track.boxes) if box[4] >= SURE]
    keep = slice(sure[0], sure[-1] + 1) if sure else slice(0)
    return replace(
        track, frames=track.frames[keep], boxes=track.boxes[keep], joints=track.joints[keep]
    )


def _extend(track: Track, f: int, box: np.ndarray, joints: np.ndarray, colours: np.ndarray) -> None:
    track.frames.append(f)
    track.boxes.append(box)
    track.joints.append(joints)
    track.first_colours = colours if track.first_colours is None else track.first_colours
    track.colours = colours if track.colours is None else 0.8 * track.colours + 0.2 * colours


def _link_cost(track: Track, box: np.ndarray, colours: np.ndarray | None, f: int) -> float:
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


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """1 for boxes with one centre and one size, falling to 0 at a box's width apart or 3x size."""
    size_a, size_b = (max(c[2] - c[0], c[3] - c[1], 1e-3) for c in (a, b))
    apart = np.hypot(*((a[:2] + a[2:4] - b[:2] - b[2:4]) / 2)) / max(size_a, size_b)
    return float(max(0.0, 1 - apart) * max(0.0, 1 - abs(np.log(size_a / size_b)) / np.log(3)))


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
