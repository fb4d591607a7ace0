"""The timeline of a video file: time and order of its frames; and its cache on disk.

The packets of a whole file give the timeline, so without a cache every clip of a long film would
read the film once more. This file does not know how a video is read.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from pevl_cli.cache import atomic_write, cache_folder, mark_used, trim_folder
from pevl_cli.errors import PevlError

# Part of each cache key; to be increased when the code changes the timeline of a file.
CACHE_VERSION = 1
# A file with fewer frames is scanned in milliseconds: not worth a file on disk.
MIN_FRAMES_ON_DISK = 1000
MAX_DISK_BYTES = 256 << 20
TRIM_EVERY = 100  # files written by a process between two checks of the limit


@dataclass(frozen=True)
class Timeline:
    """Time and order of all frames of a video stream, read from packets without decoding."""

    path: Path
    pts: np.ndarray  # (N,) int64, presentation order, in units of time_base_s
    is_key: np.ndarray  # (N,) bool: key frame
    time_base_s: float
    last_duration_s: float  # duration of the last frame
    width: int  # px of the upright frame
    height: int
    rotation_deg: int  # counter-clockwise rotation that makes a frame upright: 0, 90, 180, 270
    has_timestamps: bool  # False: frames have no timestamps (AVI) and are counted
    cut_off_s: float | None  # end of a file that is shorter than its header says; otherwise None

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def times_s(self) -> np.ndarray:
        """Time of each frame in seconds, (N,); the first is 0."""
        return (self.pts - self.pts[0]) * self.time_base_s

    @property
    def duration_s(self) -> float:
        """End of the last frame in seconds."""
        return float(self.times_s[-1]) + self.last_duration_s


_written = count()  # numbers of the timelines that this process has written


def load_timeline(path: Path, size: int, modified_ns: int) -> Timeline | None:
    """The stored timeline of a file with this size and time of change; None if there is none."""
    entry = _entry(path, size, modified_ns)
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            pts, is_key = arrays["pts"], arrays["is_key"]
            time_base_s, last_duration_s, cut_off_s = arrays["seconds"].tolist()
            width, height, rotation_deg, has_timestamps = arrays["sizes"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # missing or damaged
    mark_used(entry)
    return Timeline(
        path=path,
        pts=pts,
        is_key=is_key,
        time_base_s=time_base_s,
        last_duration_s=last_duration_s,
        width=width,
        height=height,
        rotation_deg=rotation_deg,
        has_timestamps=bool(has_timestamps),
        cut_off_s=None if math.isnan(cut_off_s) else cut_off_s,
    )


def store_timeline(timeline: Timeline, size: int, modified_ns: int) -> None:
    """Store the timeline of a long file; a cache that cannot be written is no error."""
    if len(timeline) < MIN_FRAMES_ON_DISK:
        return
    cut_off_s = math.nan if timeline.cut_off_s is None else timeline.cut_off_s
    sizes = timeline.width, timeline.height, timeline.rotation_deg, timeline.has_timestamps
    entry = _entry(timeline.path, size, modified_ns)
    with suppress(PevlError), atomic_write(entry) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            pts=timeline.pts,
            is_key=timeline.is_key,
            seconds=np.array([timeline.time_base_s, timeline.last_duration_s, cut_off_s]),
            sizes=np.array(sizes, np.int64),
        )
    if next(_written) % TRIM_EVERY == 0:
        trim_folder(cache_folder("timelines"), "*.npz", MAX_DISK_BYTES)


def _entry(path: Path, size: int, modified_ns: int) -> Path:
    key = repr((CACHE_VERSION, str(path.resolve()), size, modified_ns))
    name = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return cache_folder("timelines") / f"{name}.npz"
