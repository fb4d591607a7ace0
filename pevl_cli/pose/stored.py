"""The stored poses of one clip: all people in all frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.media.video import Clip
from pevl_cli.pose.actor import Actor, FrameSource, choose_actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.tracks import COLOUR_BINS, Detections, bridge, link

# Exceptions that file content in an unexpected format raises.
FORMAT_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
BRIDGE_SHARE = 0.1  # longest gap that is interpolated, as a share of the clip
ASSUMED_FPS = 25.0  # for speeds, whose scale is the same for all people of a clip
ASSUMED_CANVAS_PX = 640, 480
CANVAS_RANGE_PX = 16, 8192


@dataclass(frozen=True)
class StoredPoses:
    """All people in one clip's T frames; `actor` chooses one of them."""

    name: str
    people: Sequence[np.ndarray]  # for each of T frames (P, J, 3): x_px, y_px, score
    layout: str
    width: int  # px of the video; 0 if unknown
    height: int
    label: int | None = None
    boxes: np.ndarray | None = None  # (T, 4) px, for a single person; None: boxes around the joints

    @classmethod
    def from_tracks(
        cls, name: str, tracks: np.ndarray, layout: str, width: int, height: int, label: int | None
    ) -> StoredPoses:
        """From the tracks of M people, (M, T, J, 3); a person without a joint is not in the frame.

        ``width`` and ``height`` in px, 0 if unknown.
        """
        tracks = valid_joints(tracks)
        present = np.asarray((tracks[..., 2] > 0).any(-1))
        people = [tracks[present[:, t], t] for t in range(tracks.shape[1])]
        return cls(name, people, layout, width, height, label)

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height of the video in px; if unknown, the least that contains all joints."""
        if self.width and self.height:
            return self.width, self.height
        visible = [p[p[..., 2] > 0, :2].max(0) for p in self.people if (p[..., 2] > 0).any()]
        if not visible:
            return ASSUMED_CANVAS_PX
        width, height = np.clip(np.max(visible, 0).astype(int) + 1, *CANVAS_RANGE_PX).tolist()
        return width, height

    def actor(self) -> Actor:
        """The actor in all T frames, with short gaps interpolated."""
        count, joints_of = len(self.people), len(LAYOUTS[self.layout].names)
        boxes = np.zeros((count, 4), np.float32)
        joints = np.zeros((count, joints_of, 3), np.float32)
        seen = np.zeros(count, bool)
        most_people = max((len(p) for p in self.people), default=0)
        if most_people == 1:
            seen = np.array([len(p) == 1 for p in self.people])
            joints[seen] = np.stack([p[0] for p in self.people if len(p)])
            boxes[seen] = _boxes(joints[seen])[:, :4] if self.boxes is None else self.boxes[seen]
        elif most_people:
            source = FrameSource(np.arange(count) / ASSUMED_FPS, *self.canvas, 1.0, _no_frames)
            chosen = choose_actor(link([_detections(p) for p in self.people]), source)
            for t, box, pose in (
                zip(chosen.frames, chosen.boxes, chosen.joints, strict=True) if chosen else ()
            ):
                boxes[t], joints[t], seen[t] = box[:4], pose, True
        bridged = bridge(np.arange(count), boxes, joints, seen, BRIDGE_SHARE * count)
        return Actor(joints, boxes, seen | bridged, bridged, most_people, self.layout)

    def actor_in(self, clip: Clip) -> Actor:
        """The actor in a clip's U distinct frames; the T frames are assumed to be evenly spaced."""
        whole = self.actor()
        count = len(whole.seen)
        span_s = max(clip.end_s - clip.start_s, 1e-6)
        middle_s = clip.times_s + 0.5 * span_s / max(
            clip.length, 1
        )  # middle of the time that a frame is shown
        position = (middle_s - clip.start_s) / span_s * count - 0.5
        nearest = np.clip(np.round(position).astype(int), 0, count - 1)
        # Stored poses may be in px of the video at another resolution.
        scale = clip.width / self.width if self.width else 1.0
        joints = whole.joints[nearest].copy()
        joints[..., :2] *= scale
        boxes, seen = whole.boxes[nearest] * scale, whole.seen[nearest]
        bridged = whole.bridged[nearest]
        return Actor(joints, boxes, seen, bridged, whole.people, whole.layout)


def _no_frames(_: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    return iter(())


def _boxes(people: np.ndarray) -> np.ndarray:
    """Boxes around the visible joints, (P, J, 3) -> (P, 5): x1 y1 x2 y2 in px, mean score."""
    points, visible = people[..., :2], people[..., 2:] > 0
    low = np.where(visible, points, np.inf).min(-2)
    high = np.where(visible, points, -np.inf).max(-2)
    confidence = people[..., 2].sum(-1) / np.maximum(visible[..., 0].sum(-1), 1)
    return np.concatenate([low, high, confidence[..., None]], -1)


def _detections(people: np.ndarray) -> Detections:
    return Detections(
        _boxes(people).reshape(-1, 5), people, np.full((len(people), COLOUR_BINS), 1 / COLOUR_BINS)
    )


def valid_joints(joints: np.ndarray) -> np.ndarray:
    """Joints (..., J, 3) as float32; 0 for joints that are not finite, at (0, 0), or of score 0."""
    joints = np.asarray(joints, np.float32)
    valid = np.isfinite(joints).all(-1) & (joints[..., :2] != 0).any(-1) & (joints[..., 2] > 0)
    return np.where(valid[..., None], joints, 0)


def check_joint_count(count: int, layout: str, where: str) -> None:
    """PevlError when ``layout`` has not ``count`` joints; the message begins with ``where``."""
    names = LAYOUTS[layout].names
    if count != len(names):
        raise PevlError(
            f"{where}: has {count} joints, layout {layout} has {len(names)} ({', '.join(names)})."
        )
