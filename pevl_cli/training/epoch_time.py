"""How long an epoch of a run would take, from measured parts: decoding, pose, step."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pevl_cli.data.clips import GIBIBYTE
from pevl_cli.data.loader import worker_count
from pevl_cli.data.manifest import Manifest
from pevl_cli.data.timing import ReadingTime, measure_reading
from pevl_cli.hardware import choose_device
from pevl_cli.pose.files import PoseStore
from pevl_cli.training.plan import Plan
from pevl_cli.training.settings import TrainSettings
from pevl_cli.training.step_time import StepTime, measure_step
from pevl_cli.training.train import make_detector

READING_LIMIT_S = 5.0  # no clip is begun later
STEP_LIMIT_S = 9.0  # no step is begun that would probably end later


@dataclass(frozen=True)
class EpochTime:
    """The measured parts of an epoch, and what they add up to; without validation."""

    clips: int  # to train and to validate: each is read once in the first epoch
    train_clips: int
    steps: int  # of an epoch
    batch_size: int  # clips of a step, of all processes
    processes: int
    workers: int  # loader processes of each process
    cache_bytes: float  # limit of decoded clips on disk
    reading: ReadingTime | None
    step: StepTime | None
    notes: tuple[str, ...]  # what was not measured, and why

    @property
    def cached_share(self) -> float:
        """The share of the clips that the cache holds, 0 to 1."""
        if self.reading is None:
            return 1.0
        return min(self.cache_bytes / (self.reading.sample_bytes * max(self.clips, 1)), 1.0)

    @property
    def steps_s(self) -> float | None:
        """Seconds of the steps of an epoch; None if not measured."""
        return None if self.step is None else self.steps * self.step.seconds

    def reading_s(self, first: bool) -> float:
        """Seconds of reading the clips of the first epoch, or of a later one; 0 if not measured.

        Processes decode side by side, but not more than there are cores. Loader processes share
        one detector's device, so only processes of training detect side by side.
        """
        if self.reading is None:
            return 0.0
        readers = min(self.processes * max(self.workers, 1), os.cpu_count() or 1)
        if not first:
            decoded = self.train_clips * (1 - self.cached_share)
            return decoded * self.reading.decode_s / readers
        pose_s = (self.reading.pose_s or 0.0) / self.processes
        return self.clips * (self.reading.decode_s / readers + pose_s)

    def seconds(self, first: bool) -> float | None:
        """Seconds of the first epoch, or of a later one; None if the step was not measured.

        Loader processes read while the model computes; without them, one follows the other.
        """
        if self.steps_s is None:
            return None
        reading_s = self.reading_s(first)
        return max(reading_s, self.steps_s) if self.workers else reading_s + self.steps_s

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text, for a table."""
        rows = []
        for name, first in (("first epoch", True), ("later epochs", False)):
            seconds, parts = self.seconds(first), []
            if self.reading is not None:
                parts.append(self._reading_text(first))
            if self.steps_s is not None:
                parts.append(f"{self.steps:,} steps {_duration(self.steps_s)}")
            joined = ", at the same time ".join(parts) if self.workers else ", ".join(parts)
            total = "unknown" if seconds is None else f"about {_duration(seconds)}"
            rows.append((name, f"{total}{joined and ': '}{joined}"))
        return [*rows, ("measured", "; ".join((*self._measurements(), *self.notes)))]

    def _reading_text(self, first: bool) -> str:
        duration = _duration(self.reading_s(first))
        if first:
            return f"reading {self.clips:,} clips {duration}"
        if self.cached_share == 1:
            return "clips from the cache"
        again = f"{1 - self.cached_share:.0%} of the clips"
        return f"decoding {again} again {duration} (see data.cache_gb)"

    def _measurements(self) -> list[str]:
        texts = []
        if self.reading is not None:
            pose_s = self.reading.pose_s
            pose = "" if pose_s is None else f", pose {_duration(pose_s)} (first epoch only)"
            texts.append(
                f"decoding {_duration(self.reading.decode_s)} a clip{pose}, by "
                f"{self.reading.clips} clips"
            )
        if self.step is not None:
            step = f"step {_duration(self.step.seconds)} for {self.batch_size} clips"
            texts.append(f"{step}, {self.step.measured}")
        return [*texts, "without validation"]


def measure_epoch(
    settings: TrainSettings, manifest: Manifest, poses: PoseStore | None, plan: Plan
) -> EpochTime:
    """Measure some clips of the data set and a step; takes about 20 s at most on two cores.

    Nothing is written, except timelines of long films into the cache. PevlError for a device or a
    precision that this machine does not support.
    """
    notes = []
    device = choose_device(settings.run.device)
    on_disk = [item for item in manifest.in_split("train") if item.on_disk]
    reading, step = None, None
    if on_disk and (settings.model.video or poses is None):
        detector = make_detector(settings, poses)
        if detector is not None:
            detector.device = device
        reading = measure_reading(on_disk, settings.model, detector, poses, READING_LIMIT_S)
        if reading is None:
            notes.append("reading was not measured, as no clip could be read")
    else:
        notes.append("reading was not measured, as no video is read")
    try:
        step = measure_step(settings, manifest.labels, STEP_LIMIT_S)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        notes.append("no step was measured, as the memory is too small for it")
    return EpochTime(
        clips=plan.train_clips + plan.val_clips,
        train_clips=plan.train_clips,
        steps=plan.steps // settings.optim.epochs,
        batch_size=settings.optim.batch_size * settings.optim.accumulate,
        processes=settings.run.processes,
        workers=worker_count(settings.data.workers, device, settings.run.processes),
        cache_bytes=settings.data.cache_gb * GIBIBYTE,
        reading=reading,
        step=step,
        notes=tuple(notes),
    )


def _duration(seconds: float) -> str:
    """A time in its largest unit with two digits: "0.051 s", "41 s", "12 min", "3.1 h"."""
    for unit_s, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{_two_digits(seconds / unit_s)} {unit}"
    return f"{_two_digits(seconds)} s"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"
