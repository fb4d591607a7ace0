"""TODO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import Clips
from pevl_cli.data.samples import Sample
from pevl_cli.data.variation import vary
from pevl_cli.errors import PevlError
from pevl_cli.model.features import Batch


@dataclass(frozen=True)
class Showing:
    """One showing of a clip: the ``position``-th of an epoch. It alone decides the variation."""

    epoch: int
    position: int
    clip: int


class BatchPlan(Sampler[list[Showing]]):
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

    def batch(self, epoch: int, batch: int) -> list[Showing]:
        """One batch of an epoch, of all processes together."""
        order, start = self.epoch(epoch), batch * self.batch_size
        return [Showing(epoch, p, int(order[p])) for p in range(start, start + self.batch_size)]

    def __iter__(self) -> Iterator[list[Showing]]:
        own = self.batch_size // self.world
        first, skipped = divmod(self.start, self.batches)
        for epoch in range(first + 1, self.epochs + 1):
            for batch in range(skipped, self.batches):
                whole = self.batch(epoch, batch)
                yield whole[self.rank * own : (self.rank + 1) * own]
            skipped = 0

    def __len__(self) -> int:
        return self.batches * self.epochs - self.start


class AugmentedClips(Dataset[Batch]):
    """Clips as they are shown in training: place -> random variation, a batch of one."""

    def __init__(self, clips: Clips, augmentation: Augmentation, seed: int) -> None:
        self.clips, self.augmentation, self.seed = clips, augmentation, seed

    def __getitem__(self, place: Showing) -> Batch:
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
