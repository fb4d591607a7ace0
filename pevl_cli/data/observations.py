"""What a frozen stem makes of the training clips: computed once per clip and variation, on disk.

A network that training does not change gives the same for the same view. So each clip is shown in a
few views drawn in advance, and the network sees each of them once, not at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader
from pevl_cli.data.samples import Sample, collate
from pevl_cli.data.variation import augment_view
from pevl_cli.model.features import Batch

TOGETHER = 8  # views that go through the network at a time

Observe = Callable[[Batch], Batch]  # `PeVL.observe`, with ``observed`` on any device


@dataclass(frozen=True)
class Observations:
    """K views of each of N clips: ``files``, each (N·K, …) float16.

    ``samples`` (N,): the clips without their frames, which no view needs again; None for a clip
    without a video that can be read. Can be pickled: a loader process opens the files anew.
    """

    files: tuple[Path, ...]
    seed: int
    variations: int  # K
    samples: tuple[Sample | None, ...]

    def generator(self, clip: int, variation: int) -> np.random.Generator:
        """The generator that `augment_view` draws this view from."""
        return _generator(self.seed, clip, variation)

    def read(self, clip: int, variation: int) -> tuple[Tensor, ...]:
        """What the network made of a view, each (1, …) float16."""
        row = clip * self.variations + variation
        opened = (np.load(file, mmap_mode="r") for file in self.files)
        return tuple(torch.from_numpy(part[row][None].copy()) for part in opened)


@dataclass(frozen=True)
class _ViewReader:
    """Reads view (clip, variation) of the clips."""

    clips: Clips
    augmentation: Augmentation
    seed: int

    def __call__(self, place: tuple[int, int]) -> tuple[Batch, Sample] | None:
        """A batch of one, and the sample without frames; None for a clip without video.

        PevlError or OSError if the clip is unreadable.
        """
        clip, variation = place
        sample, rng = self.clips[clip], _generator(self.seed, clip, variation)
        if sample.frames is None:
            return None
        view = augment_view(sample, self.clips.config, self.augmentation, rng)
        return view, replace(sample, frames=None)


def observe_clips(
    clips: Clips,
    augmentation: Augmentation,
    observe: Observe,
    folder: Path,
    variations: int,
    seed: int,
    workers: int,
    limit_bytes: float,
    listener: Callable[[int, int], None],
) -> Observations | None:
    """Show ``variations`` views of each clip to the frozen network; ``listener`` counts them.

    A clip without a video, or with one that cannot be read, has no observations. None when all
    would take more than ``limit_bytes``. OSError when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [(clip, k) for clip in range(len(clips)) for k in range(variations)]
    reader = _ViewReader(clips, augmentation, seed)
    views = zip(places, Loader(reader, places, workers, clips.detector), strict=True)
    samples: list[Sample | None] = [None] * len(clips)
    files: list[np.memmap] = []
    done = 0
    while group := list(islice(views, TOGETHER)):
        usable = [(place, *read) for place, read in group if isinstance(read, tuple)]
        if usable:
            made = observe(collate([view for _, view, _ in usable])).observed or ()
            if len(places) * sum(part[0].nbytes for part in made) > limit_bytes:
                return None
            files = files or list(_create(folder, len(places), made))
            for file, part in zip(files, made, strict=True):
                file[[clip * variations + k for (clip, k), _, _ in usable]] = part.cpu().numpy()
            for (clip, _), _, sample in usable:
                samples[clip] = sample
        done += len(group)
        listener(done, len(places))
    for file in files:
        file.flush()
    paths = tuple(Path(str(file.filename)) for file in files)
    return Observations(paths, seed, variations, tuple(samples))


def _create(folder: Path, rows: int, made: tuple[Tensor, ...]) -> Iterator[np.memmap]:
    for i, part in enumerate(made):
        shape = rows, *part.shape[1:]
        yield np.lib.format.open_memmap(folder / f"{i}.npy", "w+", np.float16, shape)


def _generator(seed: int, clip: int, variation: int) -> np.random.Generator:
    return np.random.default_rng([seed, 1 << 20, clip, variation])
