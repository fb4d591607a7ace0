"""Time per clip, stage by stage, and peak memory."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import Item
from pevl_cli.data.samples import Sample, make_sample
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import sample_clip
from pevl_cli.pose.files import PoseStore
from pevl_cli.recognise import Recogniser

TIMED_CLIPS = 8


@dataclass(frozen=True)
class Speed:
    """Mean seconds per clip of each stage, without parallel work and without caches."""

    clips: int  # number of timed clips
    decode_s: float | None  # decoding and cropping; None without videos
    pose_s: float | None  # detector; None without a detector
    model_s: float
    memory_bytes: int | None  # peak of the process or GPU; None if unknown

    @property
    def clips_per_s(self) -> float:
        """Clips per second."""
        return 1 / ((self.decode_s or 0) + (self.pose_s or 0) + self.model_s)


def measure_speed(
    recogniser: Recogniser,
    labels: LabelSet,
    items: Sequence[Item],
    poses: PoseStore | None,
    views: int,
) -> Speed:
    """Measure the first clips, one at a time in this process, without the pose cache.

    The first of them is not counted, because it also loads weights and kernels.
    """
    if recogniser.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(recogniser.device)
    stages: dict[str, list[float]] = defaultdict(list)  # seconds
    for item in items[: TIMED_CLIPS + 1]:
        sample = _read(item, recogniser, poses, stages)
        start_s = time.perf_counter()
        recogniser.match([sample], labels, views)  # returns when the result is on the CPU
        stages["model"].append(time.perf_counter() - start_s)
    mean = {stage: float(np.mean(times[1:] or times)) for stage, times in stages.items()}
    return Speed(
        clips=max(len(stages["model"]) - 1, 1),
        decode_s=mean.get("decode"),
        pose_s=mean.get("pose"),
        model_s=mean["model"],
        memory_bytes=_peak_memory(recogniser.device),
    )


def _read(
    item: Item, recogniser: Recogniser, poses: PoseStore | None, stages: dict[str, list[float]]
) -> Sample:
    """The clip's sample; appends the seconds of each stage to ``stages``."""
    config, detector = recogniser.model.config, recogniser.detector
    stored = None if poses is None else poses.get(item.name)
    has_video = item.on_disk and item.path.exists()
    if not has_video or (stored is not None and not config.video):
        return Clips([item], [item.label], config, detector, 0, poses)[0]
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
    stages["decode"].append(times[1] - times[0] + times[3] - times[2])
    if detector is not None and stored is None:
        stages["pose"].append(times[2] - times[1])
    return sample


def _peak_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
