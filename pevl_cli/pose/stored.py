"""The poses of one clip as a file holds them: everybody, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.media.video import Clip
from pevl_cli.pose.actor import Actor, FrameSource, choose_actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.tracks import COLOUR_BINS, Detections, bridge, link

# What is raised where a file's content has another form than expected.
FORMAT_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
BRIDGE_SHARE = 0.1  # longest gap that is interpolated, as a share of the clip
ASSUMED_FPS = 25.0  # sets the scale of speed only, which is the same for all people of a clip
ASSUMED_CANVAS_PX = 640, 480
CANVAS_RANGE_PX = 16, 8192


@dataclass(frozen=True)
class StoredPoses:
    """All people in one clip's T frames; which of them is the actor is decided by `actor`."""

    name: str
    people: Sequence[np.ndarray]  # T times (P, J, 3): x_px, y_px, score
    layout: str
    width: int  # px of the picture; 0 where the file does not give it
    height: int
    label: int | None = None
    boxes: np.ndarray | None = None  # (T, 4) px, of one person; None: boxes around the joints

    @classmethod
    def from_tracks(
        cls, name: str, tracks: np.ndarray, layout: str, width: int, height: int, label: int | None
    ) -> StoredPoses:
        """From M people's tracks (M, T, J, 3); one without a joint in a frame is not in it."""
        tracks = valid_joints(tracks)
        present = np.asarray((tracks[..., 2] > 0).any(-1))
        people = [tracks[present[:, t], t] for t in range(tracks.shape[1])]
        return cls(name, people, layout, width, height, label)

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height of the picture in px; if not known, of one that holds all joints."""
        if self.width and self.height:
            return self.width, self.height
        visible = [p[p[..., 2] > 0, :2].max(0) for p in self.people if (p[..., 2] > 0).any()]
        if not visible:
            return ASSUMED_CANVAS_PX
        width, height = np.clip(np.max(visible, 0).astype(int) + 1, *CANVAS_RANGE_PX).tolist()
        return width, height

    def actor(self) -> Actor:
        """The one person whose joints are used, in all T frames, with short gaps interpolated."""
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
            source = FrameSource(np.arange(count) / ASSUMED_FPS, *self.canvas, 1.0, _no_frames)
            chosen = choose_actor(link([_detections(p) for p in self.people]), source)
            for t, box, pose in (
                zip(chosen.frames, chosen.boxes, chosen.joints, strict=True) if chosen else ()
            ):
                boxes[t], joints[t], seen[t] = box[:4], pose, True
        bridged = bridge(np.arange(count), boxes, joints, seen, BRIDGE_SHARE * count)
        return Actor(joints, boxes, seen | bridged, bridged, at_once, self.layout)

    def actor_in(self, clip: Clip) -> Actor:
        """The actor in a clip's U distinct frames: the T frames are assumed to cover it evenly."""
        whole = self.actor()
        count = len(whole.seen)
        span_s = max(clip.end_s - clip.start_s, 1e-6)
        middle_s = clip.times_s + 0.5 * span_s / max(clip.length, 1)  # of each frame's showing
        place = (middle_s - clip.start_s) / span_s * count - 0.5
        at = np.clip(np.round(place).astype(int), 0, count - 1)
        # The file's poses may be in pixels of the video at another size.
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


def _detections(people: np.ndarray) -> Detections:
    return Detections(
        _boxes(people).reshape(-1, 5), people, np.full((len(people), COLOUR_BINS), 1 / COLOUR_BINS)
    )


def valid_joints(joints: np.ndarray) -> np.ndarray:
    """Joints (..., J, 3) as float32: all zero where not finite, at (0, 0), or with score 0."""
    joints = np.asarray(joints, np.float32)
    valid = np.isfinite(joints).all(-1) & (joints[..., :2] != 0).any(-1) & (joints[..., 2] > 0)
    return np.where(valid[..., None], joints, 0)


def check_joint_count(count: int, layout: str, where: str) -> None:
    """PevlError, beginning with ``where``, when a layout has another number of joints."""
    names = LAYOUTS[layout].names
    if count != len(names):
        raise PevlError(
            f"{where}: has {count} joints, layout {layout} has {len(names)} ({', '.join(names)})."
        )
