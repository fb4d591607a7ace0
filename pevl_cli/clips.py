"""A split's clips: checked before training, decoded once, varied anew each time they are shown."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pevl_cli.cache import cache_folder, write_aside
from pevl_cli.datasets.manifest import Item
from pevl_cli.errors import PevlError
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.pevl import Batch
from pevl_cli.pose import CACHE_VERSION as POSE_CACHE_VERSION
from pevl_cli.pose import PoseDetector
from pevl_cli.recorded import RecordedPoses
from pevl_cli.samples import Sample, pose_sample, read_sample, vary
from pevl_cli.settings import Augmentation
from pevl_cli.video import check_opens

# Entries made by another way of cutting out are of no use.
CACHE_VERSION = 4
GIGABYTE = 1 << 30
POSED_AT_MOST = 50_000  # of 10 kB each


@dataclass(frozen=True)
class LeftOut:
    """A clip that cannot be used, and why."""

    item: Item
    reason: str


class Clips(Dataset[Sample]):
    """Labelled clips as samples, read from the cache where they were decoded before.

    Raises PevlError for one that cannot be read; after `check` those are left out.
    """

    def __init__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        config: ModelConfig,
        detector: PoseDetector | None,
        cache_bytes: float = 20 * GIGABYTE,
        poses: RecordedPoses | None = None,
    ) -> None:
        index = {name: i for i, name in enumerate(names)}
        self.items = list(items)
        self.labels = [index[item.label] for item in items]
        self.config, self.detector, self.cache_bytes = config, detector, cache_bytes
        self.poses = poses
        self._room = 0.0  # bytes that may still be written to the cache
        self._posed: dict[Item, Sample] = {}  # clips of poses only, where a cache is wanted

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Sample:
        item = self.items[i]
        if self._needs_no_video(item):
            sample = self._posed.get(item) or self._read(item)
            if self.cache_bytes and len(self._posed) < POSED_AT_MOST:
                self._posed[item] = sample
            return sample
        entry = self._entry(item)
        try:
            sample = _load(entry, item.path)
            os.utime(entry)  # used lately: the last to be removed
            return sample
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            pass  # not there, or damaged: made again
        return self._read(item)

    def _needs_no_video(self, item: Item) -> bool:
        """Whether its recorded poses are all that is wanted, or all that there is."""
        if self.poses is None or not self.config.pose:
            return False
        if self.poses.find(item.name) is None:
            return False
        return not self.config.video or not item.there or not item.path.exists()

    def _read(self, item: Item) -> Sample:
        recording = None
        if self.poses is not None and self.config.pose:
            recording = self.poses.get(item.name)
            if recording is None and not self.config.video:
                raise PevlError(f"{item.name}: has no poses in {self.poses.source}.")
            if recording is not None and self._needs_no_video(item):
                return pose_sample(item.path, recording, self.config)
        times = item.start_s, item.end_s
        return read_sample(item.path, self.config, self.detector, *times, recording)

    def check(
        self,
        listener: Callable[[int, int], None],
        threads: int | None = None,
        decode: bool = True,
    ) -> list[LeftOut]:
        """Read every clip once and keep the readable ones; says which are left out and why.

        ``listener`` is told how many are done, of how many. What was found is kept, so that a
        second check of the same files only looks for entries. Without ``decode`` files are opened
        only: what is damaged inside is met later, and replaced then.
        """
        found: list[LeftOut] = []
        kept: list[int] = []
        self._room = self.cache_bytes - trim_cache(self.cache_bytes)
        with ThreadPoolExecutor(threads or max(os.cpu_count() or 1, 1)) as pool:
            reasons = pool.map(partial(self._reason, decode=decode), self.items)
            for i, reason in enumerate(reasons):
                if reason is None:
                    kept.append(i)
                else:
                    found.append(LeftOut(self.items[i], reason))
                listener(i + 1, len(self.items))
        self.keep(kept)
        return found

    def keep(self, chosen: Sequence[int]) -> None:
        """Only these, in this order."""
        self.items = [self.items[i] for i in chosen]
        self.labels = [self.labels[i] for i in chosen]

    def _reason(self, item: Item, decode: bool) -> str | None:
        """Why a clip cannot be used; None if it can."""
        if self._needs_no_video(item):
            try:
                self._read(item)
            except PevlError as error:
                return str(error)
            return None
        try:
            entry = self._entry(item)
        except OSError as error:
            return f"{item.path}: {(error.strerror or str(error)).lower()}."
        verdict = entry.with_suffix(".txt")
        if entry.exists():
            return None
        if verdict.exists():
            return verdict.read_text(encoding="utf-8") or None
        reason = ""
        if not decode:
            try:
                check_opens(item.path)
            except PevlError as error:
                return str(error)
            return None
        try:
            sample = self._read(item)
        except PevlError as error:
            reason = str(error)
        else:
            pictures = 0 if sample.frames is None else sample.frames.nbytes
            size = pictures + sample.joints.nbytes + 4096
            if size <= self._room:
                self._room -= size
                with suppress(PevlError):  # a full disk makes it slower, not wrong
                    _store(entry, sample)
                    return None
        with suppress(PevlError), write_aside(verdict) as temporary:
            temporary.write_text(reason, encoding="utf-8")
        return reason or None

    def _entry(self, item: Item) -> Path:
        """Where a clip's sample lies: by the file as it stands, and all that shapes the sample."""
        stat, config = item.path.stat(), self.config
        pose = None
        if self.detector is not None:
            pose = (self.detector.digest(), asdict(self.detector.settings) | {"batch": 0})
        if self.poses is not None:
            pose = (self.poses.digest(), {"name": item.name})
        parts = (
            (CACHE_VERSION, POSE_CACHE_VERSION, config.video),
            (str(item.path.resolve()), stat.st_size, stat.st_mtime_ns),
            (item.start_s, item.end_s),
            (config.pose_frames, config.image_size, config.crop),
            (config.layout, config.joints, config.lacking_joints),
            pose,
        )
        name = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        return cache_folder("samples") / name[:2] / f"{name}.npz"

    def few(self, shots: int, seed: int) -> None:
        """Keep ``shots`` clips of each class, drawn by ``seed``."""
        self.keep(self._drawn(range(len(self)), shots, seed))

    def examples(
        self, each: int, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[int, Sample]]:
        """Up to ``each`` clips with video of every class, drawn by ``seed``, with their labels: the
        share of one of ``world`` processes."""
        filmed = [i for i, item in enumerate(self.items) if not self._needs_no_video(item)]
        for i in self._drawn(filmed, each, seed)[rank::world]:
            with suppress(PevlError, OSError):  # no longer readable: left out
                yield self.labels[i], self[i]

    def _drawn(self, among: Sequence[int], each: int, seed: int) -> list[int]:
        of_label: dict[int, list[int]] = {}
        for i in among:
            of_label.setdefault(self.labels[i], []).append(i)
        chosen: list[int] = []
        for label, own in of_label.items():
            order = np.random.default_rng([seed, label]).permutation(len(own))
            chosen += [own[k] for k in order[:each]]
        return sorted(chosen)


def _load(entry: Path, path: Path) -> Sample:
    with np.load(entry, allow_pickle=False) as stored:
        box = stored["box"]
        return Sample(
            path=path,
            frames=stored["frames"] if stored["frames"].size else None,
            joints=stored["joints"],
            size=(int(stored["size"][0]), int(stored["size"][1])),
            side_px=float(stored["side_px"]),
            start_s=float(stored["start_s"]),
            end_s=float(stored["end_s"]),
            seen=int(stored["seen"]),
            people=int(stored["people"]),
            box=box.tolist() if len(box) else None,
            warnings=tuple(stored["warnings"].tolist()),
        )


def _store(entry: Path, sample: Sample) -> None:
    facts = {k: v for k, v in vars(sample).items() if k != "path"}
    facts["box"] = np.array(sample.box or [])
    facts["frames"] = np.zeros(0, np.uint8) if sample.frames is None else sample.frames
    facts["warnings"] = np.array(sample.warnings, dtype=np.str_)
    with write_aside(entry) as temporary, temporary.open("wb") as file:
        np.savez(file, **facts)


def trim_cache(limit_bytes: float) -> int:
    """Remove the decoded clips used longest ago, down to ``limit_bytes``; the bytes that remain."""
    entries = []
    for entry in cache_folder("samples").glob("*/*.npz"):
        with suppress(OSError):  # removed by another run
            stat = entry.stat()
            entries.append((stat.st_mtime, stat.st_size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= limit_bytes:
            break
        entry.unlink(missing_ok=True)
        total -= size
    return total


def write_left_out(path: Path, found: Sequence[LeftOut]) -> None:
    """A CSV of the clips that are left out, with the reason."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split", "reason"))
    for clip in found:
        rows.writerow((clip.item.path, clip.item.label, clip.item.split, clip.reason))
    with write_aside(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


@dataclass(frozen=True)
class Place:
    """One showing of a clip: the ``position``-th of an epoch. It alone decides the variation."""

    epoch: int
    position: int
    clip: int


class Order(Sampler[list[Place]]):
    """The clips of all epochs to come, a list a batch: a pure function of the seed.

    Nothing is drawn while training, so that a run can be continued at any step, and so that the
    same clips are shown however many processes share them. With ``balance`` the rarer classes
    come more often.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        batches: int,
        epochs: int,
        balance: float,
        seed: int,
    ) -> None:
        self.labels, self.batch_size, self.batches = labels, batch_size, batches
        self.epochs, self.balance, self.seed = epochs, balance, seed
        self.start = 0  # batches already done
        self.rank, self.world = 0, 1
        self._drawn: tuple[int, np.ndarray] | None = None

    def epoch(self, epoch: int) -> np.ndarray:
        """The clips of an epoch, counted from 1, in the order in which all processes show them."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> np.ndarray:
        count, clips = self.batches * self.batch_size, len(self.labels)
        rng = np.random.default_rng([self.seed, epoch])
        if not self.balance:
            rounds = [rng.permutation(clips) for _ in range(-(-count // clips))]
            return np.concatenate(rounds)[:count]
        sizes = Counter(self.labels)
        weight = np.array([sizes[c] ** -self.balance for c in self.labels], float)
        weight /= weight.sum()
        # Without repeats as long as there are clips, with as few as can be beyond.
        rounds = []
        while count > 0:
            rounds.append(rng.choice(clips, min(count, clips), replace=False, p=weight))
            count -= clips
        return np.concatenate(rounds)

    def batch(self, epoch: int, batch: int) -> list[Place]:
        """One batch of an epoch, of all processes together."""
        order, start = self.epoch(epoch), batch * self.batch_size
        return [Place(epoch, p, int(order[p])) for p in range(start, start + self.batch_size)]

    def __iter__(self) -> Iterator[list[Place]]:
        own = self.batch_size // self.world
        first, skipped = divmod(self.start, self.batches)
        for epoch in range(first + 1, self.epochs + 1):
            for batch in range(skipped, self.batches):
                whole = self.batch(epoch, batch)
                yield whole[self.rank * own : (self.rank + 1) * own]
            skipped = 0

    def __len__(self) -> int:
        return self.batches * self.epochs - self.start


class Variations(Dataset[Batch]):
    """Clips as they are shown in training: place -> random variation, a batch of one."""

    def __init__(self, clips: Clips, augmentation: Augmentation, seed: int) -> None:
        self.clips, self.augmentation, self.seed = clips, augmentation, seed

    def __getitem__(self, place: Place) -> Batch:
        rng = np.random.default_rng([self.seed, place.epoch, place.position])
        return vary(self._sample(place.clip), self.clips.config, self.augmentation, rng)

    def _sample(self, i: int) -> Sample:
        """The clip, or, where it can no longer be read, another one of its class."""
        clips, first = self.clips, None
        for k in (i, *(k for k, label in enumerate(clips.labels) if label == clips.labels[i])):
            try:
                return clips[k]
            except (PevlError, OSError) as error:
                first = first or PevlError(f"{clips.items[k].path}: {error}")
        assert first is not None
        raise first


def quiet_worker(_: int) -> None:
    """A loader process computes nothing that more threads would speed up."""
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
