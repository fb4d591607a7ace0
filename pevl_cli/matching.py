"""Similarities of clips with a label set, and prototypes: the mean video feature of each label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice, product

import torch
import torch.nn.functional as F
from torch import Tensor

from pevl_cli.data.samples import Sample, collate, view
from pevl_cli.labels import LabelSet
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch, Texts
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities


def encode_labels(model: PeVL, labels: LabelSet) -> Texts:
    """All phrasings of all C labels, encoded on the model's device.

    ``Texts.label`` is the index of the label of each phrasing; None when each label has one
    phrasing only.
    """
    groups = labels.phrasings
    texts = model.encode_text([prompt for group in groups for prompt in group])
    if not labels.others or model.text is None:
        return texts
    label_of = [i for i, group in enumerate(groups) for _ in group]
    return replace(texts, label=torch.tensor(label_of, device=texts.sentences.device))


def flips_at_test(model: PeVL, labels: LabelSet) -> bool:
    """Whether the mirrored clip is matched, too: never when a label contains "left" or "right"."""
    return model.config.flip_at_test and not labels.mentions_left_or_right


def cut_views(
    sample: Sample, config: ModelConfig, views: int = 1, flip_at_test: bool = False
) -> list[Batch]:
    """The V views of a sample that are matched, each a batch of one.

    ``views`` crops (1 or 3), and with ``flip_at_test`` also the mirror image after each crop.
    """
    crops: Sequence[int | None] = [None] if views == 1 else range(views)
    variants = product(crops, (False, True) if flip_at_test else (False,))
    return [view(sample, config, *variant) for variant in variants]


@torch.inference_mode()
def match_views(model: PeVL, clips: Sequence[Sequence[Batch]], texts: Texts) -> Similarities:
    """Match N clips, V views each, with C labels, in V forward passes.

    Values (N, B, C) and video features (N, e) or None, on the CPU: the means over the views, the
    features of unit length again.
    """
    device = model.logit_scale.device
    matches = [
        model.match(collate(list(variant)).to(device), texts)
        for variant in zip(*clips, strict=True)
    ]
    values = torch.stack([match.values for match in matches]).mean(0).float().cpu()
    videos = [m.video_features for m in matches if m.video_features is not None]
    if not videos:
        return Similarities(values)
    return Similarities(values, F.normalize(torch.stack(videos).mean(0), dim=-1).cpu())


@torch.inference_mode()
def match_samples(
    model: PeVL,
    samples: Sequence[Sample],
    texts: Texts,
    views: int = 1,
    batch: int = 16,
    with_detector: bool = False,
    flip_at_test: bool = False,
) -> Similarities:
    """Match N samples with C labels: values (N, B, C), video features (N, e) or None, on the CPU.

    ``views`` and ``flip_at_test`` as in `cut_views`. ``batch`` samples go through the model at a
    time.

    ``with_detector``: the joints come from a detector. In a clip without a detected person, the
    similarities that need a pose are then 0 for all labels instead of NaN; this lowers the scores.
    """
    rows = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        clips = [cut_views(sample, model.config, views, flip_at_test) for sample in part]
        match = match_views(model, clips, texts)
        if with_detector:
            without_person = torch.tensor([s.seen == 0 for s in part])[:, None, None]
            values = torch.where(without_person & match.values.isnan(), 0.0, match.values)
            match = replace(match, values=values)
        rows.append(match)
    return Similarities.concatenate(rows)


@torch.inference_mode()
def sum_video_features(
    model: PeVL,
    clips: Iterable[tuple[int, Batch]],
    classes: int,
    batch: int = 16,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """The sum of the video features V of each class's clips, (C, e), on the CPU.

    ``clips``: pairs of class number and view, a batch of one. The model must have a video encoder;
    a clip without video adds nothing. ``context`` is active while the model computes, such as
    autocast.
    """
    total = torch.zeros(classes, model.config.embed_dim)
    remaining = iter(clips)
    while part := list(islice(remaining, batch)):
        together = collate([one for _, one in part])
        with context():
            features = model.encode(together.to(model.logit_scale.device))
        assert features.video is not None
        video = features.video.float().cpu()
        if together.has_video is not None:
            video = video * together.has_video[:, None]
        total.index_add_(0, torch.tensor([label for label, _ in part]), video)
    return total


def normalise_prototypes(summed: Tensor) -> Tensor:
    """Sums of `sum_video_features` (C, e) -> prototypes (C, e) of unit length.

    NaN for a class without any video.
    """
    return summed / summed.norm(dim=1, keepdim=True)
