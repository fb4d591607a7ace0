"""TODO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.media.video import Clip
from pevl_cli.pose.actor import Actor, FrameSource, choose_actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.tracks import Detections, bridge, link

# What reading content of an unexpected form raises.
READING = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
# A gap in which the actor was not seen is filled up to this part of the clip.
BRIDGE_SHARE = 0.1


@dataclass(frozen=True)
class StoredPoses:
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
    ) -> StoredPoses:
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
            source = FrameSource(times, *self.canvas, 1.0, _no_frames)
            chosen = choose_actor(link([_detections(p) for p in self.people]), source)
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


def _detections(people: np.ndarray) -> Detections:
    return Detections(_boxes(people).reshape(-1, 5), people, np.full((len(people), 32), 1 / 32))


def _valid(joints: np.ndarray) -> np.ndarray:
    """float32; what is not a number, or lies in the corner that stands for "not found", unseen."""
    joints = np.asarray(joints, np.float32)
    there = np.isfinite(joints).all(-1) & (joints[..., :2] != 0).any(-1) & (joints[..., 2] > 0)
    return np.where(there[..., None], joints, 0)


def _check_joints(count: int, layout: str, where: str) -> None:
    names = LAYOUTS[layout].names
    if count != len(names):
        raise PevlError(
            f"{where}: has {count} joints, layout {layout} has {len(names)} ({', '.join(names)})."
        )
