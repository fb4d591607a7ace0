"""A split's clips: checked before training, decoded once, varied anew each time they are shown."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pevl_cli.cache import cache_folder, write_aside
from pevl_cli.data.manifest import Item
from pevl_cli.data.samples import Sample, pose_sample, read_sample
from pevl_cli.errors import PevlError
from pevl_cli.media.video import check_opens
from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.actor import CACHE_VERSION as POSE_CACHE_VERSION
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import PoseStore

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
        poses: PoseStore | None = None,
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
        return not self.config.video or not item.on_disk or not item.path.exists()

    def _read(self, item: Item) -> Sample:
        stored = None
        if self.poses is not None and self.config.pose:
            stored = self.poses.get(item.name)
            if stored is None and not self.config.video:
                raise PevlError(f"{item.name}: has no poses in {self.poses.source}.")
            if stored is not None and self._needs_no_video(item):
                return pose_sample(item.path, stored, self.config)
        times = item.start_s, item.end_s
        return read_sample(item.path, self.config, self.detector, *times, stored)

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
            (config.layout, config.joints, config.allow_missing_joints),
            pose,
        )
        name = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        return cache_folder("samples") / name[:2] / f"{name}.npz"

    def keep_shots(self, shots: int, seed: int) -> None:
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
