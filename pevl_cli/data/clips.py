"""The labelled clips of a split as samples: checked before training, decoded once and cached."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pevl_cli.cache import atomic_write
from pevl_cli.data.loader import Loader, Unreadable, worker_count
from pevl_cli.data.manifest import Item
from pevl_cli.data.sample_cache import SampleCache
from pevl_cli.data.samples import Sample, pose_sample, read_sample
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.media.video import check_opens
from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.actor import CACHE_VERSION as POSE_CACHE_VERSION
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import PoseStore

# Part of each cache key; to be increased when the code changes the samples of a clip.
CACHE_VERSION = 5
GIBIBYTE = 1 << 30
MAX_POSE_SAMPLES = 50_000  # maximum number of pose-only samples in memory, 10 kB each


@dataclass(frozen=True)
class LeftOut:
    """A clip that cannot be used, and why."""

    item: Item
    reason: str


class Clips(Dataset[Sample]):
    """Labelled clips as samples. ``labels``: index of each clip's label in ``names``.

    Joints come from ``poses`` if the clip has stored poses, otherwise from ``detector``; without
    both no joint is visible. A clip is stored in the disk cache when it is first decoded; the cache
    keeps at most ``cache_bytes``. With 0, nothing is stored except by `check`, which stores whether
    a clip is readable.
    """

    def __init__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        config: ModelConfig,
        detector: PoseDetector | None,
        cache_bytes: float = 20 * GIBIBYTE,
        poses: PoseStore | None = None,
    ) -> None:
        index = {name: i for i, name in enumerate(names)}
        self.items = list(items)
        self.labels = [index[item.label] for item in items]
        self.config, self.detector, self.poses = config, detector, poses
        self._cache = SampleCache(cache_bytes)
        self._pose_samples: dict[Item, Sample] = {}  # samples of pose-only clips

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the samples in memory; a loader process reads its own."""
        return {**vars(self), "_pose_samples": {}}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Sample:
        """The sample of clip i, see `read`."""
        return self.read(self.items[i])

    def read(self, item: Item) -> Sample:
        """The sample of a clip, from the cache if possible. PevlError or OSError if unreadable.

        ``item`` may also be a clip of another split.
        """
        if self._needs_no_video(item):
            sample = self._pose_samples.get(item) or self._read(item)
            if self._cache.limit_bytes and len(self._pose_samples) < MAX_POSE_SAMPLES:
                self._pose_samples[item] = sample
            return sample
        entry = self._entry(item)
        cached = self._cache.load(entry, item.path)
        if cached is not None:
            return cached
        return self._read_and_store(item, entry) if self._cache.limit_bytes else self._read(item)

    def _needs_no_video(self, item: Item) -> bool:
        """Whether the sample is made of stored poses only."""
        if self.poses is None or not self.config.pose:
            return False
        if self.poses.find(item.name) is None:
            return False
        return not self.config.video or not item.on_disk or not item.path.exists()

    def _read(self, item: Item) -> Sample:
        stored = None
        if self.poses is not None and self.config.pose:
            stored = self.poses.get(item.name)
            if stored is None and not self.config.video:
                raise PevlError(f"{item.name}: has no poses in {self.poses.source}.")
            if stored is not None and self._needs_no_video(item):
                return pose_sample(item.path, stored, self.config)
        span_s = item.start_s, item.end_s
        return read_sample(item.path, self.config, self.detector, *span_s, stored)

    def _read_and_store(self, item: Item, entry: Path) -> Sample:
        """Read a clip into the cache. PevlError with the stored reason if it is unreadable."""
        reason = self._cache.reason(entry)
        if reason:
            raise PevlError(reason)
        try:
            sample = self._read(item)
        except UsageError:  # of the device or the weights, not of the clip
            raise
        except PevlError as error:
            self._cache.store_reason(entry, str(error))
            raise
        if not self._cache.store(entry, sample) and reason is None:
            self._cache.store_reason(entry, "")
        return sample

    def check(
        self,
        listener: Callable[[int, int], None],
        workers: int | None = None,
        decode: bool = True,
        rank: int = 0,
        world: int = 1,
        merge: Callable[[dict[int, str]], dict[int, str]] = lambda reasons: reasons,
    ) -> list[LeftOut]:
        """Read every clip once, keep the readable clips, and return the others.

        ``listener`` is called with the number of checked clips and the total. Results are cached,
        so a second check of the same files decodes nothing. Without ``decode`` files are only
        opened; a clip that later cannot be decoded is replaced by another one of its class.
        ``workers`` as in `worker_count`, for the device of the detector.

        ``rank`` and ``world``: number of this process, and of all processes that check these clips.
        Each reads its part; ``merge`` joins their reasons, by index of the clip.
        """
        detector, total = self.detector, len(self)
        device = "cpu" if detector is None else detector.device or "cpu"
        self._cache.make_room()
        part = range(rank, total, world)
        verify = partial(self._verify, decode=decode)
        items = [self.items[i] for i in part]
        reasons: dict[int, str] = {}
        for i, result in zip(
            part, Loader(verify, items, worker_count(workers, device), detector), strict=True
        ):
            if isinstance(result, Unreadable):
                reasons[i] = result.reason
            # The other processes are about as far.
            listener(min(i - rank + world, total), total)
        reasons = merge(reasons)
        left_out = [LeftOut(self.items[i], reasons[i]) for i in sorted(reasons)]
        self.keep([i for i in range(total) if i not in reasons])
        return left_out

    def _verify(self, item: Item, decode: bool) -> None:
        """Read a clip into the cache, unless it is already there. PevlError if unreadable."""
        if self._needs_no_video(item):
            self._read(item)
            return
        entry = self._entry(item)
        reason = self._cache.reason(entry)
        if reason is None and not decode:
            check_opens(item.path)
        elif reason != "":
            self._read_and_store(item, entry)

    def _entry(self, item: Item) -> Path:
        """The clip's file in the cache; its key holds everything that determines the sample."""
        stat, config = item.path.stat(), self.config
        pose = None
        if self.detector is not None:
            pose = (self.detector.digest(), asdict(self.detector.settings) | {"batch": 0})
        if self.poses is not None:
            pose = (self.poses.digest(), {"name": item.name})
        return self._cache.entry(
            (
                (CACHE_VERSION, POSE_CACHE_VERSION, config.video),
                (str(item.path.resolve()), stat.st_size, stat.st_mtime_ns),
                (item.start_s, item.end_s),
                (config.pose_frames, config.image_size, config.crop),
                (config.layout, config.joints, config.allow_missing_joints),
                pose,
            )
        )

    def keep(self, chosen: Sequence[int]) -> None:
        """Keep only the clips with the indices ``chosen``, in this order."""
        self.items = [self.items[i] for i in chosen]
        self.labels = [self.labels[i] for i in chosen]

    def keep_shots(self, shots: int, seed: int) -> None:
        """Keep at most ``shots`` clips of each class, chosen at random by ``seed``."""
        self.keep(self._draw(range(len(self)), shots, seed))

    def draw_examples(self, count: int, seed: int) -> list[int]:
        """Indices of up to ``count`` clips with video of each class, chosen by ``seed``; sorted."""
        with_video = [i for i, item in enumerate(self.items) if not self._needs_no_video(item)]
        return self._draw(with_video, count, seed)

    def _draw(self, candidates: Sequence[int], count: int, seed: int) -> list[int]:
        """Indices of up to ``count`` clips of each class, sorted."""
        by_label: dict[int, list[int]] = {}
        for i in candidates:
            by_label.setdefault(self.labels[i], []).append(i)
        chosen: list[int] = []
        for label, members in by_label.items():
            order = np.random.default_rng([seed, label]).permutation(len(members))
            chosen += [members[k] for k in order[:count]]
        return sorted(chosen)


def readable_items(items: Sequence[Item], poses: PoseStore | None) -> list[Item]:
    """The items with a video on disk or stored poses."""
    return [i for i in items if i.on_disk or (poses is not None and poses.find(i.name) is not None)]


def write_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """Write a CSV of the clips that are left out: path, label, split, reason."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split", "reason"))
    for clip in left_out:
        rows.writerow((clip.item.path, clip.item.label, clip.item.split, clip.reason))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
