"""Validation, divided among the processes: accuracy, prototypes, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pevl_cli.data.clips import Clips
from pevl_cli.data.loader import Loader, Unreadable
from pevl_cli.data.manifest import Item
from pevl_cli.labels import LabelSet
from pevl_cli.matching import (
    cut_views,
    encode_labels,
    flips_at_test,
    match_views,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.metrics import Accuracy, accuracy
from pevl_cli.model.calibration import Calibration, fit_calibration
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch, Texts
from pevl_cli.model.mini.stem import frozen_network
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities

# Maximum number of training clips per label for its prototype; in total about the number of
# validation clips, so that prototypes do not take longer than the validation.
PROTOTYPE_CLIPS = 8
BATCH = 16
MAX_KEPT_BYTES = 1 << 30  # of what a frozen stem makes of clips, kept between validations


@dataclass(frozen=True)
class Validation:
    """Similarities of N validation clips with the labels, and the accuracy."""

    accuracy: Accuracy
    similarities: Similarities
    labels: list[int]  # (N,) indices of the true labels

    def calibrate(self, prototypes: Tensor | None = None) -> Calibration:
        """Fit a calibration to these clips; ``prototypes`` (C, e) of the labels or None."""
        near = self.similarities.prototype_similarity(prototypes)
        return fit_calibration(self.similarities.values, self.labels, "val", near)


@dataclass(frozen=True)
class ViewReader:
    """Reads a clip of ``clips``, or of another split of the same set, as the views to match."""

    clips: Clips
    config: ModelConfig
    flip_at_test: bool

    def __call__(self, item: Item) -> list[Batch]:
        """As in `cut_views`. PevlError or OSError if the clip is unreadable."""
        views = self.config.views_at_test
        return cut_views(self.clips.read(item), self.config, views, self.flip_at_test)


class Validator:
    """Matches clips with one label set; each process takes every ``world_size``-th clip.

    The same loader processes read the clips of all validations and prototypes.
    """

    def __init__(
        self,
        labels: LabelSet,
        fabric: Fabric,
        precision: Callable[[], AbstractContextManager[None]],
        workers: int = 0,
    ) -> None:
        """``precision``: a context for the model's computation. ``workers`` as in `Loader`."""
        self.labels, self.fabric, self.precision = labels, fabric, precision
        self.workers = workers
        self._loader: Loader[Item, list[Batch]] | None = None  # from the first validation on
        # Views of clips as a frozen stem sees them, which no later validation needs to read again.
        self._kept: dict[Item, list[Batch]] = {}
        self._kept_bytes = 0

    def close(self) -> None:
        """End the loader processes and forget the clips; a later validation reads them anew."""
        self._loader = None
        self._kept, self._kept_bytes = {}, 0

    @torch.inference_mode()
    def test(self, model: PeVL, clips: Clips) -> Validation | None:
        """Validate a model on clips.

        Unreadable clips are left out; None when all are unreadable.
        """
        if not len(clips):
            return None
        model.eval()
        with self.precision():
            texts = encode_labels(model, self.labels)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        # All processes take the same number, so some take the last clip twice.
        count = -(-len(clips) // world)
        indices = [min(rank + i * world, len(clips) - 1) for i in range(count)]
        part = self._match(model, texts, clips, indices)
        values, video = part.values, part.video_features
        assert video is not None
        if world > 1:
            values, video = (self._interleave(rows)[: len(clips)] for rows in (values, video))
        readable = ~values.isnan().all(2).all(1)
        if not readable.any():
            return None
        pairs = zip(clips.labels, readable.tolist(), strict=True)
        true = [label for label, is_readable in pairs if is_readable]
        values = values[readable]
        return Validation(
            accuracy(values, true, self.labels.names),
            Similarities(values, video[readable] if model.config.video else None),
            true,
        )

    def _match(self, model: PeVL, texts: Texts, clips: Clips, indices: list[int]) -> Similarities:
        """One row per index; NaN for a clip that is unreadable or has no video."""
        kinds = len(model.config.used_similarities)
        values = torch.full((len(indices), kinds, len(self.labels)), torch.nan)
        video = torch.full((len(indices), model.config.embed_dim), torch.nan)
        rows = enumerate(self._read(model, clips, indices))
        while group := list(islice(rows, BATCH)):
            views = {row: clip for row, clip in group if not isinstance(clip, Unreadable)}
            if not views:
                continue
            with self.precision():
                part = match_views(model, list(views.values()), texts)
            values[list(views)] = part.values
            if part.video_features is not None:
                video[list(views)] = part.video_features
        return Similarities(values, video)

    def _read(
        self, model: PeVL, clips: Clips, indices: Sequence[int]
    ) -> Iterator[list[Batch] | Unreadable]:
        """The views of clips, see `ViewReader`. All clips must be of one set."""
        if self._loader is None:
            flip = flips_at_test(model, self.labels)
            reader = ViewReader(clips, model.config, flip)
            self._loader = Loader(reader, workers=self.workers, detector=clips.detector)
        items = [clips.items[i] for i in indices]
        keeps = model.config.video and frozen_network(model.visual.conv1) is not None
        read = iter(self._loader.over([item for item in items if item not in self._kept]))
        kept = {item: self._kept[item] for item in items if item in self._kept}
        for item in items:
            if item in kept:
                yield kept[item]
                continue
            views = next(read)
            if keeps and not isinstance(views, Unreadable):
                with self.precision():
                    views = [model.observe(view.to(model.device)).to("cpu") for view in views]
                if self._kept_bytes < MAX_KEPT_BYTES:
                    self._kept[item] = views
                    self._kept_bytes += sum(p.nbytes for view in views for p in view.observed or ())
            yield views

    def _interleave(self, rows: Tensor) -> Tensor:
        """Join the rows (n, …) of all processes in the order of the clips."""
        gathered = self.fabric.all_gather(rows.to(self.fabric.device))
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1).cpu()

    def prototypes(self, model: PeVL, clips: Clips, tested: int, seed: int) -> Tensor:
        """The mean V of some training clips of each label, (C, e), unit length.

        ``tested``: number of validation clips. ``seed`` chooses the clips. NaN for a label without
        a clip with video. The model must use video.
        """
        fabric, classes = self.fabric, len(self.labels)
        each = max(min(PROTOTYPE_CLIPS, tested // classes), 1)
        indices = clips.draw_examples(each, seed)[fabric.global_rank :: fabric.world_size]
        examples = zip(
            [clips.labels[i] for i in indices], self._read(model, clips, indices), strict=True
        )
        # Prototypes are means over the plain views; unreadable clips are left out.
        plain = ((label, v[0]) for label, v in examples if not isinstance(v, Unreadable))
        summed = sum_video_features(model.eval(), plain, classes, context=self.precision)
        if fabric.world_size > 1:
            total = fabric.all_reduce(summed.to(fabric.device), reduce_op="sum")
            assert isinstance(total, Tensor)
            summed = total.cpu()
        return normalise_prototypes(summed)
