"""What a frozen stem makes of the training clips: computed once per clip and variation, on disk.

A network that training does not change gives the same for the same view. So each clip is shown in a
few views drawn in advance, and the network sees each of them once, not at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader
from pevl_cli.data.samples import collate
from pevl_cli.data.variation import augment_view
from pevl_cli.model.features import Batch

TOGETHER = 8  # views that go through the network at a time

Observe = Callable[[Batch], Batch]  # `PeVL.observe`, with ``observed`` on any device


@dataclass(frozen=True)
class Observations:
    """K views of each of N clips. Files in ``folder``: 0.npy, 1.npy, …, each (N·K, …) float16.

    Can be pickled: a loader process opens the files anew.
    """

    folder: Path
    seed: int
    variations: int  # K
    readable: tuple[bool, ...]  # (N,): whether the clip has a video that could be read

    def generator(self, clip: int, variation: int) -> np.random.Generator:
        """The generator that `augment_view` draws this view from."""
        return _generator(self.seed, clip, variation)

    def read(self, clip: int, variation: int) -> tuple[Tensor, ...]:
        """What the network made of a view, each (1, …) float16."""
        row = clip * self.variations + variation
        files = sorted(self.folder.glob("*.npy"))
        return tuple(torch.from_numpy(np.load(f, mmap_mode="r")[row][None].copy()) for f in files)


@dataclass(frozen=True)
class _ViewReader:
    """Reads view (clip, variation) of the clips."""

    clips: Clips
    augmentation: Augmentation
    seed: int

    def __call__(self, place: tuple[int, int]) -> Batch:
        """A batch of one. PevlError or OSError if the clip is unreadable."""
        clip, variation = place
        rng = _generator(self.seed, clip, variation)
        return augment_view(self.clips[clip], self.clips.config, self.augmentation, rng)


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
    readable = [False] * len(clips)
    files: list[np.ndarray] = []
    done = 0
    while group := list(islice(views, TOGETHER)):
        usable = [(p, v) for p, v in group if isinstance(v, Batch) and _has_frames(v)]
        if usable:
            made = observe(collate([view for _, view in usable])).observed or ()
            if len(places) * sum(part[0].nbytes for part in made) > limit_bytes:
                return None
            files = files or list(_create(folder, len(places), made))
            for (clip, k), *parts in zip(
                [place for place, _ in usable], *(part.cpu().numpy() for part in made), strict=True
            ):
                readable[clip] = True
                for file, part in zip(files, parts, strict=True):
                    file[clip * variations + k] = part
        done += len(group)
        listener(done, len(places))
    for file in files:
        file.flush()  # type: ignore[attr-defined]
    return Observations(folder, seed, variations, tuple(readable))


def _has_frames(view: Batch) -> bool:
    return view.frames is not None and (view.has_video is None or bool(view.has_video.all()))


def _create(folder: Path, rows: int, made: tuple[Tensor, ...]) -> Iterator[np.ndarray]:
    for i, part in enumerate(made):
        shape = rows, *part.shape[1:]
        yield np.lib.format.open_memmap(folder / f"{i}.npy", "w+", np.float16, shape)


def _generator(seed: int, clip: int, variation: int) -> np.random.Generator:
    return np.random.default_rng([seed, 1 << 20, clip, variation])
