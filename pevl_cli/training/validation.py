"""Validation clips, shared among the processes: accuracy, prototypes, calibration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader
from pevl_cli.data.samples import Sample
from pevl_cli.labels import LabelSet
from pevl_cli.matching import (
    encode_labels,
    flips_at_test,
    match_samples,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.metrics import Accuracy, accuracy
from pevl_cli.model.calibration import Calibration, fit_calibration
from pevl_cli.model.features import Texts
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities

# Training clips of each label that its prototype is the mean of, at most; all together about as
# many as are validated, so that it takes no longer.
PROTOTYPE_CLIPS = 8
BATCH = 16


@dataclass(frozen=True)
class Validation:
    """How N validation clips match the labels."""

    accuracy: Accuracy
    similarities: Similarities
    labels: list[int]  # (N,) the right ones

    def calibrate(self, prototypes: Tensor | None = None) -> Calibration:
        """Fitted to these clips; ``prototypes`` (C, e) are those of the labels."""
        near = self.similarities.prototype_similarity(prototypes)
        return fit_calibration(self.similarities.values, self.labels, "val", near)


class Validator:
    """Matches clips with one label set; each of the processes takes every ``world_size``-th."""

    def __init__(
        self,
        labels: LabelSet,
        fabric: Fabric,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """``precision`` gives the context in which the model computes."""
        self.labels, self.fabric, self.precision = labels, fabric, precision

    @torch.inference_mode()
    def test(self, model: PeVL, clips: Clips) -> Validation | None:
        """Clips that can no longer be read are left out; None when none can."""
        if not len(clips):
            return None
        model.eval()
        with self.precision():
            texts = encode_labels(model, self.labels)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        # All processes take as many, so some take the last clip a second time.
        count = -(-len(clips) // world)
        places = [min(rank + i * world, len(clips) - 1) for i in range(count)]
        part = self._match(model, texts, clips, places)
        values, video = part.values, part.video_features
        assert video is not None
        if world > 1:
            values, video = (self._interleave(rows)[: len(clips)] for rows in (values, video))
        readable = ~values.isnan().all(2).all(1)
        if not readable.any():
            return None
        pairs = zip(clips.labels, readable.tolist(), strict=True)
        right = [label for label, read in pairs if read]
        values = values[readable]
        return Validation(
            accuracy(values, right, self.labels.names),
            Similarities(values, video[readable] if model.config.video else None),
            right,
        )

    def _match(self, model: PeVL, texts: Texts, clips: Clips, places: list[int]) -> Similarities:
        """One row for each place, of NaN where the clip cannot be read or has no video."""
        kinds = len(model.config.used_similarities)
        flip = flips_at_test(model, self.labels)
        values = torch.full((len(places), kinds, len(self.labels)), torch.nan)
        video = torch.full((len(places), model.config.embed_dim), torch.nan)
        rows = enumerate(Loader(clips.__getitem__, places))
        while group := list(islice(rows, BATCH)):
            samples = {row: sample for row, sample in group if isinstance(sample, Sample)}
            if not samples:
                continue
            with self.precision():
                part = match_samples(model, list(samples.values()), texts, flip_at_test=flip)
            values[list(samples)] = part.values
            if part.video_features is not None:
                video[list(samples)] = part.video_features
        return Similarities(values, video)

    def _interleave(self, rows: Tensor) -> Tensor:
        """The rows of all processes, (n, …) each, in the order of the clips."""
        gathered = self.fabric.all_gather(rows.to(self.fabric.device))
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1).cpu()

    def prototypes(self, model: PeVL, clips: Clips, tested: int, seed: int) -> Tensor:
        """The mean V of some training clips of each label, (C, e), unit length.

        ``tested``: how many clips were validated. The clips are drawn by ``seed``. NaN for a label
        without a clip that has video. For a model that sees videos.
        """
        fabric, classes = self.fabric, len(self.labels)
        each = max(min(PROTOTYPE_CLIPS, tested // classes), 1)
        examples = clips.examples(each, seed, fabric.global_rank, fabric.world_size)
        summed = sum_video_features(model.eval(), examples, classes, context=self.precision)
        if fabric.world_size > 1:
            total = fabric.all_reduce(summed.to(fabric.device), reduce_op="sum")
            assert isinstance(total, Tensor)
            summed = total.cpu()
        return normalise_prototypes(summed)
