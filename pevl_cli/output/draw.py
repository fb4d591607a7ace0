"""Answers and poses as text that other programs read: JSON and CSV, and pictures with joints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from pevl_cli.cache import write_aside
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.media.video import Clip, Timeline, iter_frames
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.stored import StoredPoses


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


PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
FILM_SUFFIXES = {".mp4", ".mov", ".mkv"}
STRIP_FRAMES = 6
PAGE_STRIP_PX = 180  # height of the frames on a report's page
FILM_CLOCK = Fraction(1, 12800)  # a drawn film keeps its frames' own times


def check_drawing(path: Path) -> None:
    """UsageError unless the name's ending says what to draw."""
    if path.suffix.lower() not in PICTURE_SUFFIXES | FILM_SUFFIXES:
        known = ", ".join(sorted(FILM_SUFFIXES | PICTURE_SUFFIXES))
        raise UsageError(f"--draw {path}: the name must end in one of {known}.")


def draw_actor(path: Path, timeline: Timeline, actor: Actor, indices: np.ndarray) -> None:
    """Write a video, or a filmstrip of six frames, with the skeleton on it."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        tiles = [_tile(f) for f in _drawn(timeline, actor, indices, _spread(len(indices)))]
        if not tiles:
            raise PevlError(f"{timeline.path}: none of its frames can be decoded.")
        _write_strip(path, tiles)
        return
    frames = _drawn(timeline, actor, indices, np.arange(len(indices)))
    write_film(path, frames, timeline.times_s[indices])


def draw_stored(path: Path, stored: StoredPoses, actor: Actor) -> None:
    """The same of recorded poses, over an empty picture; a film shows 25 frames a second."""
    count = len(actor.seen)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        _write_strip(path, [_tile(f) for f in _on_nothing(stored, actor, _spread(count))])
        return
    write_film(path, _on_nothing(stored, actor, np.arange(count)), np.arange(count) / 25)


def drawn_frame(clip: Clip, actor: Actor) -> np.ndarray:
    """The middle frame in which the actor is seen, with the joints; RGB."""
    seen = np.flatnonzero(actor.seen)
    u = int(seen[len(seen) // 2]) if len(seen) else len(clip.frames) // 2
    frame: np.ndarray = clip.frames[u].copy()
    if actor.seen[u]:
        joints = actor.joints[u].copy()
        joints[:, :2] *= frame.shape[1] / clip.width
        draw(frame, joints, actor.layout)
    return frame


def filmstrip(clip: Clip, actor: Actor | None) -> bytes:
    """Frames of a sampled clip with the actor's joints, side by side, as a small JPEG."""
    tiles = []
    for u in _spread(len(clip.frames)):
        frame = _tile(clip.frames[u], 2 * PAGE_STRIP_PX)
        if actor is not None and actor.seen[u]:
            joints = actor.joints[u].copy()
            joints[:, :2] *= frame.shape[1] / clip.width
            draw(frame, joints, actor.layout)
        tiles.append(frame)
    return _jpeg(tiles)


def stored_filmstrip(stored: StoredPoses) -> bytes:
    """The same of recorded poses."""
    actor = stored.actor()
    drawn = _on_nothing(stored, actor, _spread(len(actor.seen)))
    return _jpeg([_tile(frame, 2 * PAGE_STRIP_PX) for frame in drawn])


def _jpeg(tiles: Sequence[np.ndarray]) -> bytes:
    """Halved after drawing: lines of one pixel would hide small bodies."""
    small = [_tile(tile, PAGE_STRIP_PX) for tile in tiles]
    _, data = cv2.imencode(".jpg", np.hstack(small)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes()


def _on_nothing(stored: StoredPoses, actor: Actor, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Frames that show joints alone."""
    width, height = stored.canvas
    for t in chosen:
        frame = np.full((height, width, 3), 24, np.uint8)
        draw(frame, actor.joints[t], actor.layout)
        yield frame


def _spread(count: int) -> np.ndarray:
    """The frames of a filmstrip."""
    return np.unique(np.linspace(0, count - 1, STRIP_FRAMES).round().astype(int))


def _write_strip(path: Path, tiles: Sequence[np.ndarray]) -> None:
    ok, data = cv2.imencode(path.suffix, np.hstack(tiles)[..., ::-1])
    if not ok:
        raise PevlError(f"{path}: the picture could not be encoded.")
    with write_aside(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _drawn(timeline: Timeline, actor: Actor, indices: np.ndarray, chosen: np.ndarray) -> Any:
    place = {int(indices[u]): int(u) for u in chosen}
    for index, frame in iter_frames(timeline, sorted(place)):
        u = place[index]
        if actor.seen[u]:
            joints = actor.joints[u].copy()
            joints[:, :2] *= frame.shape[1] / timeline.width
            draw(frame, joints, actor.layout)
        yield frame


def _tile(frame: np.ndarray, height: int = 360) -> np.ndarray:
    width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def write_film(path: Path, frames: Any, times_s: np.ndarray) -> None:
    """H.264 with the frames' own times."""
    with write_aside(path) as temporary:
        named = temporary.with_suffix(path.suffix)  # the writer goes by the ending
        try:
            _encode(named, frames, times_s)
            named.replace(temporary)
        except av.FFmpegError as error:
            raise PevlError(f"{path}: the video could not be written ({error}).") from error
        finally:
            named.unlink(missing_ok=True)


def _encode(path: Path, frames: Any, times_s: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264")
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = FILM_CLOCK
        for i, frame in enumerate(frames):
            even = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if i == 0:
                stream.height, stream.width = even.shape[:2]
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            picture.pts = round((times_s[i] - times_s[0]) / FILM_CLOCK)
            picture.time_base = FILM_CLOCK
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
