"""Made people, sources of frames, and a stand-in for the detector; shared by tests of pose/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pevl_cli.pose.actor import Actor, FrameSource
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.tracks import Detections

WIDTH, HEIGHT = 640, 480
Detected = Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def person(
    x: float, y: float, height: float, who: int, swing: float = 0.0, sure: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Box, joints and colours of somebody at a place; ``who`` is the colour, and the score of
    joint 0; ``swing`` moves the joints inside the box, in parts of its height."""
    width = height / 2
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2, sure])
    joints = np.full((17, 3), 0.9)
    joints[:, 0] = x + swing * height
    joints[:, 1] = y + np.linspace(-0.4, 0.4, 17) * height
    joints[0, 2] = who / 10
    colours = np.full(32, 0.2 / 32)
    colours[who] += 0.8
    return box, joints, colours


def detected(*people: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Detections:
    if not people:
        return Detections(np.zeros((0, 5)), np.zeros((0, 17, 3)), np.zeros((0, 32)))
    return Detections(*(np.stack(parts) for parts in zip(*people, strict=True)))


def source(count: int, step_s: float = 0.1) -> FrameSource:
    def nothing(_: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return iter(())

    return FrameSource(np.arange(count) * step_s, WIDTH, HEIGHT, 1.0, nothing)


def swing(f: int) -> float:
    return 0.15 * (-1) ** f


def stand_in(see: Callable[[np.ndarray, int], list[tuple[np.ndarray, np.ndarray]]]) -> Any:
    """A `PoseDetector.detect` that sees what ``see(frame, number)`` gives."""

    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Detected:
        for i, frame in frames:
            people = see(frame, i)
            boxes = np.array([box for box, _ in people]).reshape(-1, 5)
            joints = np.array([pose for _, pose in people]).reshape(-1, 17, 3)
            yield i, frame, boxes, joints

    return detect


def blank(count: int, scale: float = 1.0, step_s: float = 0.1) -> FrameSource:
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return FrameSource(
        np.arange(count) * step_s, WIDTH, HEIGHT, scale, lambda us: ((u, frame) for u in us)
    )


def same(a: Actor, b: Actor) -> bool:
    arrays = ("joints", "boxes", "seen", "bridged")
    return (
        all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
        and (a.people, a.layout, a.box) == (b.people, b.layout, b.box)
        and a.joints.dtype == b.joints.dtype
    )
