"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pevl_cli.media.video import MAX_SIDE_PX, Clip, Timeline, iter_frames
from pevl_cli.pose.tracks import Track, _link_cost

STEP_COST = 0.1


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
class FrameSource:
    """Frames to look for people in, read as often as needed and never all at once."""

    times_s: np.ndarray  # (U,)
    width: int  # px of the frames as read
    height: int
    scale: float  # pixels of the upright picture per pixel of the frames
    read: Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]

    @classmethod
    def of_clip(cls, clip: Clip) -> FrameSource:
        height, width = clip.frames.shape[1:3]

        def read(indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            return ((i, clip.frames[i]) for i in indices)

        return cls(clip.times_s, width, height, clip.width / width, read)

    @classmethod
    def of_video(cls, timeline: Timeline, indices: np.ndarray) -> FrameSource:
        """The frames of a file with these indices, decoded as they are asked for."""
        scale = max(1.0, max(timeline.width, timeline.height) / MAX_SIDE_PX)
        width, height = round(timeline.width / scale), round(timeline.height / scale)
        place = {int(index): u for u, index in enumerate(indices)}

        def read(places: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
            wanted = [int(indices[u]) for u in places]
            return ((place[i], frame) for i, frame in iter_frames(timeline, wanted))

        return cls(timeline.times_s[indices], width, height, scale, read)


def choose_actor(tracks: list[Track], source: FrameSource) -> Track | None:
    """The chain of tracklets, one after the other in time, worth most. A tracklet's worth is

        sum over frames of confidence × box size × nearness to the picture's centre,

    times 1 + how much the joints move relative to the box (box sizes per second, at most 2). A
    step from one tracklet to the next costs what linking their ends would. Judges and crowd are
    small, at the side, or sit still; who films keeps the actor in the middle.
    """
    tracks = sorted(tracks, key=lambda t: (t.frames[-1], t.frames[0]))
    worth = [_worth(track, source) for track in tracks]
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
    chain = Track()
    while j >= 0:
        chain.frames = tracks[j].frames + chain.frames
        chain.boxes = tracks[j].boxes + chain.boxes
        chain.joints = tracks[j].joints + chain.joints
        j = before[j]
    return chain


def _worth(track: Track, source: FrameSource) -> float:
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
    inside = (joints[..., :2] - ((boxes[:, :2] + boxes[:, 2:4]) / 2)[:, None]) / size[:, None, None]
    sure = (joints[1:, :, 2] > 0.5) & (joints[:-1, :, 2] > 0.5)
    step = np.linalg.norm(np.diff(inside, axis=0), axis=-1)
    seconds = np.diff(source.times_s[track.frames])
    # Over long steps positions are unrelated, and their distance says nothing of speed.
    speed = step / np.clip(seconds, 1e-3, None)[:, None]
    return float(speed[sure].mean()) if sure.any() else 0.0
