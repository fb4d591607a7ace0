"""Draw the actor's joints on frames: images, filmstrips and videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from pevl_cli.cache import atomic_write
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.media.timeline import Timeline
from pevl_cli.media.video import Clip, iter_frames
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.stored import StoredPoses


def draw_skeleton(
    frame: np.ndarray, joints: np.ndarray, layout: str, min_score: float = 0.3
) -> None:
    """Draw a skeleton on an RGB frame (h, w, 3) uint8 in place; joints (J, 3): x_px, y_px, score.

    Joints with a score below ``min_score`` are not drawn.
    """
    unit = max(1, round(max(frame.shape[:2]) / 400))
    names = LAYOUTS[layout].names
    for a, b in LAYOUTS[layout].edge_indices:
        if min(joints[a, 2], joints[b, 2]) >= min_score:
            side = names[b].partition("_")[0]
            colour = {"left": (255, 160, 40), "right": (60, 200, 255)}.get(side, (120, 255, 120))
            ends = [tuple(int(v) for v in joints[i, :2]) for i in (a, b)]
            cv2.line(frame, ends[0], ends[1], colour, 2 * unit, cv2.LINE_AA)
    for x, y, score in joints:
        if score >= min_score:
            cv2.circle(frame, (int(x), int(y)), 2 * unit + 1, (255, 255, 255), -1, cv2.LINE_AA)


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
WRITABLE_VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv"}
STRIP_FRAMES = 6  # frames of a filmstrip
STRIP_PX = 360  # height of a filmstrip in a file
PAGE_STRIP_PX = 180  # height of a filmstrip in a report
STORED_FPS = 25  # frame rate of a video of stored poses, whose times are unknown
VIDEO_TIME_BASE_S = Fraction(1, 12800)  # time base of written videos, seconds


def check_drawing(path: Path) -> None:
    """UsageError unless the suffix is that of an image or a video."""
    if path.suffix.lower() not in IMAGE_SUFFIXES | WRITABLE_VIDEO_SUFFIXES:
        known = ", ".join(sorted(WRITABLE_VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise UsageError(f"--draw {path}: the name must end in one of {known}.")


def draw_actor(path: Path, timeline: Timeline, actor: Actor, indices: np.ndarray) -> None:
    """Write a video, or a filmstrip of six frames, with the skeleton; the suffix decides.

    ``actor``: the actor in the frames ``indices`` (U,) of the video. PevlError when the file cannot
    be written, or no frame can be decoded.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        tiles = [_tile(f) for f in _drawn(timeline, actor, indices, _spread(len(indices)))]
        if not tiles:
            raise PevlError(f"{timeline.path}: none of its frames can be decoded.")
        _write_strip(path, tiles)
        return
    frames = _drawn(timeline, actor, indices, np.arange(len(indices)))
    write_video(path, frames, timeline.times_s[indices])


def draw_stored(path: Path, stored: StoredPoses, actor: Actor) -> None:
    """As `draw_actor`, for stored poses, on empty frames."""
    count = len(actor.seen)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        _write_strip(path, [_tile(f) for f in _on_empty_frames(stored, actor, _spread(count))])
        return
    write_video(
        path, _on_empty_frames(stored, actor, np.arange(count)), np.arange(count) / STORED_FPS
    )


def draw_frame(clip: Clip, actor: Actor) -> np.ndarray:
    """The middle frame with the actor, with the joints drawn: (H, W, 3) uint8 RGB."""
    seen = np.flatnonzero(actor.seen)
    u = int(seen[len(seen) // 2]) if len(seen) else len(clip.frames) // 2
    frame: np.ndarray = clip.frames[u].copy()
    if actor.seen[u]:
        joints = actor.joints[u].copy()
        joints[:, :2] *= frame.shape[1] / clip.width
        draw_skeleton(frame, joints, actor.layout)
    return frame


def filmstrip(clip: Clip, actor: Actor | None) -> bytes:
    """Six frames of a clip with the actor's joints, side by side: bytes of a JPEG file."""
    tiles = []
    for u in _spread(len(clip.frames)):
        frame = _tile(clip.frames[u], 2 * PAGE_STRIP_PX)
        if actor is not None and actor.seen[u]:
            joints = actor.joints[u].copy()
            joints[:, :2] *= frame.shape[1] / clip.width
            draw_skeleton(frame, joints, actor.layout)
        tiles.append(frame)
    return _jpeg(tiles)


def stored_filmstrip(stored: StoredPoses) -> bytes:
    """As `filmstrip`, for stored poses, on empty frames: bytes of a JPEG file."""
    actor = stored.actor()
    drawn = _on_empty_frames(stored, actor, _spread(len(actor.seen)))
    return _jpeg([_tile(frame, 2 * PAGE_STRIP_PX) for frame in drawn])


def _jpeg(tiles: Sequence[np.ndarray]) -> bytes:
    """Frames side by side as JPEG. They are halved after drawing, which makes lines thinner."""
    small = [_tile(tile, PAGE_STRIP_PX) for tile in tiles]
    _, data = cv2.imencode(".jpg", np.hstack(small)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data.tobytes()


def _on_empty_frames(stored: StoredPoses, actor: Actor, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Empty frames of the stored poses' size with the joints drawn."""
    width, height = stored.canvas
    for t in chosen:
        frame = np.full((height, width, 3), 24, np.uint8)
        draw_skeleton(frame, actor.joints[t], actor.layout)
        yield frame


def _spread(count: int) -> np.ndarray:
    """Indices of the frames of a filmstrip, evenly from 0 to count - 1."""
    return np.unique(np.linspace(0, count - 1, STRIP_FRAMES).round().astype(int))


def _write_strip(path: Path, tiles: Sequence[np.ndarray]) -> None:
    ok, data = cv2.imencode(path.suffix, np.hstack(tiles)[..., ::-1])
    if not ok:
        raise PevlError(f"{path}: the image could not be encoded.")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _drawn(
    timeline: Timeline, actor: Actor, indices: np.ndarray, chosen: np.ndarray
) -> Iterator[np.ndarray]:
    """The frames ``indices[chosen]``, decoded, with the joints drawn."""
    position = {int(indices[u]): int(u) for u in chosen}
    for index, frame in iter_frames(timeline, sorted(position)):
        u = position[index]
        if actor.seen[u]:
            joints = actor.joints[u].copy()
            joints[:, :2] *= frame.shape[1] / timeline.width
            draw_skeleton(frame, joints, actor.layout)
        yield frame


def _tile(frame: np.ndarray, height: int = STRIP_PX) -> np.ndarray:
    """The frame scaled to a height in pixels."""
    width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def write_video(path: Path, frames: Iterable[np.ndarray], times_s: np.ndarray) -> None:
    """Write RGB frames (H, W, 3) uint8 as an H.264 video; ``times_s``: times in seconds.

    PevlError when it cannot be written.
    """
    with atomic_write(path) as temporary:
        with_suffix = temporary.with_suffix(path.suffix)  # the suffix decides the container
        try:
            _encode(with_suffix, frames, times_s)
            with_suffix.replace(temporary)
        except av.FFmpegError as error:
            raise PevlError(f"{path}: the video could not be written ({error}).") from error
        finally:
            with_suffix.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterable[np.ndarray], times_s: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264")
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = VIDEO_TIME_BASE_S
        for i, frame in enumerate(frames):
            even = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if i == 0:
                stream.height, stream.width = even.shape[:2]
            image = av.VideoFrame.from_ndarray(even, format="rgb24")
            image.pts = round((times_s[i] - times_s[0]) / VIDEO_TIME_BASE_S)
            image.time_base = VIDEO_TIME_BASE_S
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
