"""Time per clip, stage by stage, and peak memory."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pevl_cli.data.manifest import Item
from pevl_cli.data.samples import Sample
from pevl_cli.data.timing import TIMED_CLIPS, timed_sample
from pevl_cli.labels import LabelSet
from pevl_cli.pose.files import PoseStore
from pevl_cli.recognise import Recogniser


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
    timed = timed_sample(item, recogniser.model.config, recogniser.detector, poses)
    if timed.decode_s is not None:
        stages["decode"].append(timed.decode_s)
    if timed.pose_s is not None:
        stages["pose"].append(timed.pose_s)
    return timed.sample


def _peak_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
