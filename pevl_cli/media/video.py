"""Decode frames of a video file at given times, upright, as RGB arrays.

Only this file decodes; it knows nothing about people, poses or models. Frames are chosen by time:
a frame's index is its position in presentation order, its time is its timestamp minus the first
frame's timestamp, and a frame is shown until the time of the next frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from pevl_cli.errors import PevlError
from pevl_cli.media.timeline import Timeline, load_timeline, store_timeline

# Longest side of a decoded frame: enough for a detector at 640 px and a crop around a small person,
# and 48 frames of a 4K video fit in 200 MB.
MAX_SIDE_PX = 1280
# Decoding fewer frames than this is cheaper than seeking.
SEEK_WORTH_FRAMES = 12
TIMELINES_IN_MEMORY = 16  # of a process; 0.2 MB for ten minutes of film
# Containers whose header gives the duration, so that a cut-off file is noticed.
CONTAINERS_WITH_DURATION = {"matroska", "webm", "mov", "mp4"}

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "mov", "m4v", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "mts", "m2ts"),
        *("wmv", "flv", "3gp", "ogv"),
    )
)


@dataclass(frozen=True)
class Clip:
    """Frames sampled from one video, evenly in time.

    ``frames`` holds each distinct frame once, (U, h, w, 3) uint8 RGB, upright, at most
    ``MAX_SIDE_PX`` on the long side. ``frame_of`` (T,) is the index in ``frames`` for each of the T
    sampled times; so a video of 3 frames needs memory for 3 frames.
    """

    path: Path
    width: int  # px of the upright video; ``frames`` may be smaller by one factor
    height: int
    times_s: np.ndarray  # (U,) time of each distinct frame
    indices: np.ndarray  # (U,) index of each distinct frame in the file, from 0
    frame_of: np.ndarray  # (T,) int, indices of ``frames``
    frames: np.ndarray
    start_s: float
    end_s: float
    length: int  # number of the file's frames from start_s to end_s
    warnings: tuple[str, ...] = ()


def read_timeline(path: str | Path) -> Timeline:
    """The timeline of a file, from memory or the cache if the file was read before.

    Otherwise its packets are scanned. PevlError when the file is not a readable video.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        with _open(path) as container:  # raises the error that tells the reason
            return _scan(container, path)
    return _timeline(path, path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=TIMELINES_IN_MEMORY)
def _timeline(path: Path, absolute: Path, size: int, modified_ns: int) -> Timeline:
    """`read_timeline`; the arguments determine the result.

    ``absolute``: the path again, as the current folder may change.
    """
    timeline = load_timeline(path, size, modified_ns)
    if timeline is None:
        with _open(path) as container:
            timeline = _scan(container, path)
        store_timeline(timeline, size, modified_ns)
    for array in (timeline.pts, timeline.is_key):
        array.flags.writeable = False  # shared by all callers
    return timeline


def check_opens(path: str | Path) -> None:
    """PevlError when a file does not exist or its header is not a video's. Fast."""
    with _open(Path(path)) as container:
        if not container.streams.video:
            raise PevlError(f"{path}: no video stream in this file.")


@contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    if not path.exists():
        raise PevlError(f"{path}: no such file.")
    if path.is_dir():
        raise PevlError(f"{path}: this is a folder; give a video file.")
    if path.stat().st_size == 0:
        raise PevlError(f"{path}: the file is empty (0 bytes); copy or record it again.")
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise PevlError(f"{path}: no permission to read it.") from error
        raise PevlError(
            f"{path}: not a readable video ({_reason(error)}); it may be cut off, damaged "
            "or not a video. Copy it again, or convert it with ffmpeg."
        ) from error


def sample_clip(
    path: str | Path, count: int = 48, start_s: float | None = None, end_s: float | None = None
) -> Clip:
    """Sample ``count`` frames of ``[start_s, end_s)``: the middle of ``count`` equal time spans.

    Example: 4 frames of a 2 s clip are the frames shown at 0.25, 0.75, 1.25 and 1.75 s. If some
    frames cannot be decoded, the samples are taken from the others, and ``warnings`` reports it.
    PevlError when no frame can be decoded, or when the span is outside the video.
    """
    timeline = read_timeline(path)
    start_s, end_s = _span(timeline, start_s, end_s)
    times_s = timeline.times_s
    usable = np.arange(len(timeline))
    inside = _inside(timeline, start_s, end_s)
    picks = _pick(times_s, usable, start_s, end_s, count)
    decoded, readable = _collect(timeline, picks, inside)
    warnings = []
    if len(decoded) < len(np.unique(picks)):
        if not readable.any():
            raise PevlError(f"{timeline.path}: none of its frames can be decoded; it is damaged.")
        warnings.append(
            f"damaged video: only {int((readable & inside).sum())} of {int(inside.sum())} frames "
            "could be decoded; the result uses these"
        )
        usable = np.flatnonzero(readable)
        last = usable[-1]
        readable_end_s = times_s[last + 1] if last + 1 < len(times_s) else timeline.duration_s
        span = max(start_s, times_s[usable[0]]), min(end_s, readable_end_s)
        picks = _pick(times_s, usable, *span, count)
        decoded, _ = _collect(timeline, picks, inside)
        picks = _nearest(picks, np.array(sorted(decoded)))
    distinct, frame_of = np.unique(picks, return_inverse=True)
    return Clip(
        path=timeline.path,
        width=timeline.width,
        height=timeline.height,
        times_s=times_s[distinct],
        indices=distinct,
        frame_of=frame_of,
        frames=np.stack([decoded[int(i)] for i in distinct]),
        start_s=start_s,
        end_s=end_s,
        length=int(inside.sum()),
        warnings=tuple(warnings),
    )


def frames_in_span(
    timeline: Timeline, start_s: float | None = None, end_s: float | None = None
) -> np.ndarray:
    """Indices of the frames shown in ``[start_s, end_s)`` seconds, (n,) int.

    PevlError when the span is outside the video.
    """
    return np.flatnonzero(_inside(timeline, *_span(timeline, start_s, end_s)))


def iter_frames(timeline: Timeline, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, upright frame (H, W, 3) uint8 RGB) for sorted distinct ``indices``.

    A frame that cannot be decoded is left out, and so are the frames after it up to the next key
    frame: they are predicted from it and show artefacts. Only one frame is in memory at a time.
    PevlError when reading stops.
    """
    try:
        with av.open(str(timeline.path)) as container:
            yield from _decode(container, timeline, list(indices))
    except av.FFmpegError as error:
        raise PevlError(
            f"{timeline.path}: reading stopped ({_reason(error)}); the file may be damaged."
        ) from error


def find_videos(inputs: Sequence[str | Path]) -> list[Path]:
    """The video files of a list of paths, folders (with subfolders) and patterns, each once.

    PevlError for a folder without videos and a pattern without a match.
    """
    videos: dict[Path, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
            if not inside:
                raise PevlError(f"{path}: no video files in this folder.")
            videos.update(dict.fromkeys(inside))
        elif not path.exists() and any(c in str(item) for c in "*?["):
            matches = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
            if not matches:
                raise PevlError(f"{item}: nothing matches this pattern.")
            videos.update(dict.fromkeys(matches))
        else:
            videos[path] = None
    return list(videos)


def _scan(container: av.container.InputContainer, path: Path) -> Timeline:
    stream = container.streams.best("video")
    if stream is None:
        raise PevlError(f"{path}: no video stream in this file.")
    if container.format.name == "tty":  # FFmpeg renders any text file as a terminal
        raise PevlError(f"{path}: this is a text file, not a video.")
    assert stream.time_base is not None
    base = float(stream.time_base)
    pts, keys, last_duration, end_s, chunks = [], [], 0, 0.0, 0
    for packet in container.demux():
        # Count also frames hidden by an edit list, and empty packets for frames dropped by a
        # webcam.
        chunks += packet.stream is stream and (packet.size > 0 or packet.dts is not None)
        if packet.size == 0 or packet.is_discard:
            continue
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.time_base is not None:
            end_s = max(end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream:
            pts.append(stamp)
            keys.append(packet.is_keyframe)
            last_duration = packet.duration or 0
    if not pts:
        raise PevlError(f"{path}: its video has no frames; it may be cut off.")
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    has_timestamps = None not in pts and container.format.name != "avi"
    if None in pts:  # a raw stream: times from the nominal frame rate
        stamps = np.round(np.arange(len(pts)) / rate / base).astype(np.int64)
    else:
        stamps = np.array(pts, np.int64)
    order = np.argsort(stamps, kind="stable")
    width, height, rotation = _upright(container, stream)
    return Timeline(
        path=path,
        pts=stamps[order],
        is_key=np.array(keys, bool)[order],
        time_base_s=base,
        last_duration_s=last_duration * base or 1 / rate,
        width=width,
        height=height,
        rotation_deg=rotation,
        has_timestamps=has_timestamps,
        cut_off_s=_cut_off_time(container, stream, chunks, end_s),
    )


def _cut_off_time(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    frames: int,
    end_s: float,
) -> float | None:
    """The end of a cut-off file in seconds; None for a complete file.

    A cut-off file has fewer frames than its header says, or ends much earlier.
    """
    # An AVI header counts dropped frames of a webcam, which have a duration but no packet.
    expected = round(end_s * float(stream.average_rate or 0))
    if stream.frames > max(frames, expected) + 1:
        return end_s
    names = set(container.format.name.split(","))
    if stream.frames == 0 and names & CONTAINERS_WITH_DURATION and container.duration:
        header_s = container.duration / av.time_base + (container.start_time or 0) / av.time_base
        if end_s < header_s - max(0.5, 0.1 * header_s):
            return end_s
    return None


def _upright(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> tuple[int, int, int]:
    """Width and height of the upright video in px, and the rotation to it in degrees.

    Phones store the rotation in the file. Sizes are in stored px, as in other tools, also if pixels
    are not square.
    """
    rotation, width, height = 0, stream.width, stream.height
    container.seek(0)
    try:
        first = next(container.decode(stream))
        rotation = round(first.rotation / 90) * 90 % 360
        width, height = first.width, first.height
    except (av.FFmpegError, StopIteration):
        pass  # the frames that follow may still be readable
    return (height, width, rotation) if rotation in (90, 270) else (width, height, rotation)


def _span(timeline: Timeline, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    path, duration_s = timeline.path, timeline.duration_s
    for name, value in (("start", start_s), ("end", end_s)):
        if value is not None and math.isnan(value):
            raise PevlError(f"{path}: --{name} is not a number.")
    start, end = start_s or 0.0, duration_s if end_s is None else min(end_s, duration_s)
    missing = timeline.cut_off_s
    if missing is not None and (end_s is None or end_s > missing):
        usable_s = math.floor(missing * 10) / 10
        raise PevlError(
            f"{path}: the file is cut off: it has {usable_s:.1f} s, less than its header says. "
            f"Copy it again, or use the first part with --end {usable_s:.1f}."
        )
    if start < 0 or start >= duration_s:
        raise PevlError(f"{path}: --start {start:g} s is outside the video's {duration_s:.2f} s.")
    if end <= start:
        raise PevlError(f"{path}: --end {end:g} s must come after --start {start:g} s.")
    return start, end


def _inside(timeline: Timeline, start_s: float, end_s: float) -> np.ndarray:
    times_s = timeline.times_s
    shown_until_s = np.append(times_s[1:], timeline.duration_s)
    return (times_s < end_s) & (shown_until_s > start_s)


def _pick(
    times_s: np.ndarray, usable: np.ndarray, start_s: float, end_s: float, count: int
) -> np.ndarray:
    """Index of the frame shown at the middle of each of ``count`` equal time spans."""
    middles_s = start_s + (np.arange(count) + 0.5) * (end_s - start_s) / count
    # Rounding of timestamps must not select the frame before the one on screen.
    position = np.searchsorted(times_s[usable], middles_s + 1e-6, side="right") - 1
    return usable[np.clip(position, 0, len(usable) - 1)]


def _nearest(values: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return candidates[np.abs(values[:, None] - candidates[None]).argmin(1)]


def _collect(
    timeline: Timeline, picks: np.ndarray, inside: np.ndarray
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The decoded picked frames, by index; and (N,) bool, which frames are decodable.

    The second is complete only if some picked frame cannot be decoded.
    """
    decoded = dict(iter_frames(timeline, np.unique(picks).tolist()))
    readable = np.zeros(len(timeline), bool)
    readable[list(decoded)] = True
    if len(decoded) < len(np.unique(picks)):
        readable[[i for i, _ in iter_frames(timeline, np.flatnonzero(inside).tolist())]] = True
    return decoded, readable


def _decode(
    container: av.container.InputContainer,
    timeline: Timeline,
    indices: list[int],
    can_seek: bool = True,
) -> Iterator[tuple[int, np.ndarray]]:
    stream = container.streams.best("video")
    assert stream is not None
    stream.thread_type = "AUTO"
    keys = np.flatnonzero(timeline.is_key)
    # MPEG streams have no index and lack timestamps: after a seek, frame numbers are wrong.
    no_index = container.format.name in {"mpeg", "mpegts"}
    can_seek = can_seek and timeline.has_timestamps and not no_index
    position, goal, queue = -1, -1, indices[::-1]
    while queue:
        place = int(np.searchsorted(keys, queue[-1], side="right"))
        key = int(keys[place - 1]) if place else 0
        seeks = can_seek and key > position + SEEK_WORTH_FRAMES
        landed = None
        if seeks:
            container.seek(int(timeline.pts[key]), stream=stream)
            goal = key  # a seek may land before the key frame; a second seek would not help
        for position, frame in _decode_on(container, stream, timeline):
            landed = position if landed is None else landed
            if seeks and landed > queue[-1]:
                break
            while queue and queue[-1] < position:  # damaged, or skipped by a seek
                queue.pop()
            if queue and queue[-1] == position:
                queue.pop()
                yield position, _to_rgb(frame, timeline)
            far = queue and queue[-1] > _next_key(keys, position) + SEEK_WORTH_FRAMES
            if not queue or (can_seek and far and position >= goal):
                break
        else:
            if not seeks or landed is not None:
                return
        if queue and seeks and (landed is None or landed > queue[-1]):
            # Without an index, a seek is an estimate; this one landed after the wanted frame.
            with av.open(str(timeline.path)) as reopened:
                yield from _decode(reopened, timeline, queue[::-1], can_seek=False)
            return


def _next_key(keys: np.ndarray, position: int) -> int:
    place = np.searchsorted(keys, position, side="right")
    return int(keys[place]) if place < len(keys) else 1 << 62


def _decode_on(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    timeline: Timeline,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the container's position; leave out frames after a broken packet."""
    damaged, count = False, 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged = True
            continue
        for frame in frames:
            damaged = damaged and not frame.key_frame
            index = count
            if timeline.has_timestamps and frame.pts is not None:
                index = int(np.searchsorted(timeline.pts, frame.pts, side="right")) - 1
            count += 1
            if not damaged and index >= 0:
                yield index, frame


def _to_rgb(frame: av.VideoFrame, timeline: Timeline) -> np.ndarray:
    factor = min(1.0, MAX_SIDE_PX / max(timeline.width, timeline.height))
    width, height = round(timeline.width * factor), round(timeline.height * factor)
    if timeline.rotation_deg in (90, 270):
        width, height = height, width
    rgb = frame.reformat(max(width, 1), max(height, 1), "rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, timeline.rotation_deg // 90))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()
