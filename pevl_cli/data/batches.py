"""Training batches: which clips an epoch shows, in which order, and each clip varied anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader, Unreadable, error_reason
from pevl_cli.data.samples import Sample, collate
from pevl_cli.data.variation import augment_sample
from pevl_cli.errors import PevlError
from pevl_cli.model.features import Batch


@dataclass(frozen=True)
class Showing:
    """One showing of a clip: the ``position``-th of an epoch. These three decide the variation."""

    epoch: int  # from 1
    position: int  # from 0
    clip: int  # number in `Clips`


class BatchPlan(Sampler[list[Showing]]):
    """The clips of all epochs, a list a batch: a pure function of the seed.

    Nothing is drawn during training, so a run can be continued at any step, and the same clips are
    shown however many processes share them. ``batches`` is their number in an epoch. ``balance`` in
    [0, 1]: 0 draws every clip as often, 1 every class.
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
        self.start = 0  # batches that are skipped: an earlier session did them
        self.rank, self.world = 0, 1  # of this process, of so many
        self._last_order: tuple[int, np.ndarray] | None = None  # with its epoch

    def batch(self, epoch: int, batch: int) -> list[Showing]:
        """The ``batch``-th batch of an epoch, of all processes together."""
        order, start = self._order(epoch), batch * self.batch_size
        return [Showing(epoch, p, int(order[p])) for p in range(start, start + self.batch_size)]

    def __iter__(self) -> Iterator[list[Showing]]:
        """The batches from ``start`` on: of each the part of this process."""
        size = self.batch_size // self.world
        epochs_done, skipped = divmod(self.start, self.batches)
        for epoch in range(epochs_done + 1, self.epochs + 1):
            for batch in range(skipped, self.batches):
                yield self.batch(epoch, batch)[self.rank * size : (self.rank + 1) * size]
            skipped = 0

    def __len__(self) -> int:
        return self.batches * self.epochs - self.start

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of the clips that an epoch shows, (batches · batch_size,)."""
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
        # Each round shows every clip once before one is shown twice.
        rounds = []
        while count > 0:
            rounds.append(rng.choice(clips, min(count, clips), replace=False, p=weight))
            count -= clips
        return np.concatenate(rounds)


class AugmentedClips(Dataset[Batch]):
    """Clips as training shows them: a showing gives its random variation, a batch of one."""

    def __init__(self, clips: Clips, augmentation: Augmentation, seed: int) -> None:
        self.clips, self.augmentation, self.seed = clips, augmentation, seed

    def __getitem__(self, showing: Showing) -> Batch:
        rng = np.random.default_rng([self.seed, showing.epoch, showing.position])
        return augment_sample(self._sample(showing.clip), self.clips.config, self.augmentation, rng)

    def batch(self, showings: Sequence[Showing]) -> Batch:
        """The batch of several showings, in their order."""
        return collate([self[showing] for showing in showings])

    def _sample(self, i: int) -> Sample:
        """The clip, or another of its class if it has become unreadable. PevlError if all have."""
        clips, reason = self.clips, ""
        same_class = (k for k, label in enumerate(clips.labels) if label == clips.labels[i])
        for k in (i, *same_class):
            try:
                return clips[k]
            except (PevlError, OSError) as error:
                reason = reason or error_reason(error)
        raise PevlError(reason)


def load_batches(clips: AugmentedClips, plan: BatchPlan, workers: int) -> Iterator[Batch]:
    """The planned batches of this process, on the CPU; ``workers`` as in `Loader`.

    PevlError where no clip of a class can be read any more, or a loader process is killed.
    """
    for batch in Loader(clips.batch, plan, workers, clips.clips.detector):
        if isinstance(batch, Unreadable):
            raise PevlError(batch.reason)
        yield batch
