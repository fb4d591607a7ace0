"""Seconds of reading a clip: decoding, and detecting the pose; without any cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import Item
from pevl_cli.data.samples import Sample, make_sample
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import PoseStore

TIMED_CLIPS = 8


@dataclass(frozen=True)
class TimedSample:
    """A clip's sample and the seconds of its stages."""

    sample: Sample
    decode_s: float | None  # decoding and cropping; None for a clip that is poses only
    pose_s: float | None  # detector; None if it was not used


@dataclass(frozen=True)
class ReadingTime:
    """Mean seconds of reading a clip in this process."""

    clips: int  # number of timed clips
    decode_s: float
    pose_s: float | None  # None without a detector
    sample_bytes: float  # mean size of a decoded clip in the cache


def timed_sample(
    item: Item, config: ModelConfig, detector: PoseDetector | None, poses: PoseStore | None
) -> TimedSample:
    """Read a clip as training does, without caches. PevlError or OSError if it is unreadable."""
    stored = None if poses is None else poses.get(item.name)
    has_video = item.on_disk and item.path.exists()
    if not has_video or (stored is not None and not config.video):
        sample = Clips([item], [item.label], config, detector, 0, poses)[0]
        return TimedSample(sample, None, None)
    times = [time.perf_counter()]
    clip = sample_clip(item.path, config.pose_frames, item.start_s, item.end_s)
    times.append(time.perf_counter())
    actor = None
    if stored is not None:
        actor = stored.actor_in(clip)
    elif detector is not None:
        actor = detector.actor(clip, use_cache=False)
    times.append(time.perf_counter())
    sample = make_sample(clip, actor, config)
    times.append(time.perf_counter())
    detected = detector is not None and stored is None
    return TimedSample(
        sample,
        decode_s=times[1] - times[0] + times[3] - times[2],
        pose_s=times[2] - times[1] if detected else None,
    )


def measure_reading(
    items: Sequence[Item],
    config: ModelConfig,
    detector: PoseDetector | None,
    poses: PoseStore | None,
    limit_s: float,
) -> ReadingTime | None:
    """The mean over clips from all parts of the list ``items``; None if none of them is readable.

    No clip is begun after ``limit_s`` seconds, except the first.
    """
    start_s = time.perf_counter()
    if detector is not None:  # the first use loads the network
        list(detector.detect([(0, np.zeros((64, 64, 3), np.uint8))], 64))
    timed: list[TimedSample] = []
    step = max(len(items) // TIMED_CLIPS, 1)
    for item in items[::step][:TIMED_CLIPS]:
        if timed and time.perf_counter() - start_s > limit_s:
            break
        try:
            one = timed_sample(item, config, detector, poses)
        except (PevlError, OSError):
            continue  # training leaves it out
        if one.decode_s is not None:
            timed.append(one)
    if not timed:
        return None
    pose_s = [one.pose_s for one in timed if one.pose_s is not None]
    arrays = [(one.sample.frames, one.sample.joints) for one in timed]
    return ReadingTime(
        clips=len(timed),
        decode_s=float(np.mean([one.decode_s for one in timed])),
        pose_s=float(np.mean(pose_s)) if pose_s else None,
        sample_bytes=float(np.mean([sum(a.nbytes for a in p if a is not None) for p in arrays])),
    )
