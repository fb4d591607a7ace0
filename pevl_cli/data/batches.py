"""Training batches: the order of the clips in each epoch, and their random augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader, Unreadable, error_reason
from pevl_cli.data.observations import Observations
from pevl_cli.data.samples import Sample, collate
from pevl_cli.data.variation import augment_sample
from pevl_cli.errors import PevlError
from pevl_cli.model.features import Batch


@dataclass(frozen=True)
class Showing:
    """One use of a clip in training. Seed, epoch and position determine its augmentation."""

    epoch: int  # from 1
    position: int  # in the epoch, from 0
    clip: int  # index in `Clips`


class BatchPlan(Sampler[list[Showing]]):
    """The clips of all batches of all epochs: a pure function of the seed.

    So a run can be continued at any step, and any number of processes gets the same clips in total.
    ``batches``: number of batches in an epoch. ``balance`` in [0, 1]: with 0 all clips are equally
    frequent, with 1 all classes.
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
        self.start = 0  # number of batches to skip, already done by an earlier session
        self.rank, self.world = 0, 1  # number of this process, from 0; number of all processes
        self._last_order: tuple[int, np.ndarray] | None = None  # epoch, its order

    def batch(self, epoch: int, batch: int) -> list[Showing]:
        """Batch number ``batch`` (from 0) of an epoch (from 1), for all processes together."""
        order, start = self._order(epoch), batch * self.batch_size
        return [Showing(epoch, p, int(order[p])) for p in range(start, start + self.batch_size)]

    def __iter__(self) -> Iterator[list[Showing]]:
        """From batch ``start`` on, the part of each batch that belongs to this process."""
        size = self.batch_size // self.world
        epochs_done, skipped = divmod(self.start, self.batches)
        for epoch in range(epochs_done + 1, self.epochs + 1):
            for batch in range(skipped, self.batches):
                yield self.batch(epoch, batch)[self.rank * size : (self.rank + 1) * size]
            skipped = 0

    def __len__(self) -> int:
        return self.batches * self.epochs - self.start

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of the clips of an epoch, (batches · batch_size,) int."""
        if self._last_order is None or self._last_order[0] != epoch:
            self._last_order = (epoch, self._draw(epoch))
        return self._last_order[1]

    def _draw(self, epoch: int) -> np.ndarray:
        count, clips = self.batches * self.batch_size, len(self.labels)
        rng = np.random.default_rng([self.seed, epoch])
        if not self.balance:
            rounds = [rng.permutation(clips) for _ in range(-(-count // clips))]
            return np.concatenate(rounds)[:count]
        sizes = Counter(self.labels)
        weight = np.array([sizes[c] ** -self.balance for c in self.labels], float)
        weight /= weight.sum()
        # In each round, every clip occurs once before a clip occurs twice.
        rounds = []
        while count > 0:
            rounds.append(rng.choice(clips, min(count, clips), replace=False, p=weight))
            count -= clips
        return np.concatenate(rounds)


class AugmentedClips(Dataset[Batch]):
    """Augmented training clips: a `Showing` gives the augmented clip as a batch of one."""

    def __init__(
        self,
        clips: Clips,
        augmentation: Augmentation,
        seed: int,
        observations: Observations | None = None,
    ) -> None:
        """``observations``: of the same clips; they take the place of frames."""
        self.clips, self.augmentation, self.seed = clips, augmentation, seed
        self.observations = observations

    def __getitem__(self, showing: Showing) -> Batch:
        rng = np.random.default_rng([self.seed, showing.epoch, showing.position])
        made, clip = self.observations, showing.clip
        sample = None if made is None else made.samples[clip]
        if made is None or sample is None:
            return augment_sample(self._sample(clip), self.clips.config, self.augmentation, rng)
        k = int(rng.integers(made.variations))
        observed = made.generator(clip, k), made.read(clip, k)
        return augment_sample(sample, self.clips.config, self.augmentation, rng, observed)

    def batch(self, showings: Sequence[Showing]) -> Batch:
        """The batch of N showings, in their order: frames (N, T, 3, H, W), joints (N, S, J, 3)."""
        return collate([self[showing] for showing in showings])

    def _sample(self, i: int) -> Sample:
        """The clip; if unreadable, another clip of its class. PevlError if all are unreadable."""
        clips, reason = self.clips, ""
        same_class = (k for k, label in enumerate(clips.labels) if label == clips.labels[i])
        for k in (i, *same_class):
            try:
                return clips[k]
            except (PevlError, OSError) as error:
                reason = reason or error_reason(error)
        raise PevlError(reason)


def load_batches(clips: AugmentedClips, plan: BatchPlan, workers: int) -> Iterator[Batch]:
    """The batches of ``plan`` for this process, on the CPU. ``workers`` as in `Loader`.

    PevlError when no clip of a class can be read, or a loader process is killed.
    """
    for batch in Loader(clips.batch, plan, workers, clips.clips.detector):
        if isinstance(batch, Unreadable):
            raise PevlError(batch.reason)
        yield batch
