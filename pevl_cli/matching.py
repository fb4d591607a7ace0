"""How a model matches many clips with a label set, and what clips of a label look like to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice, product

import torch
from torch import Tensor

from pevl_cli.data.samples import Sample, collate, view
from pevl_cli.labels import LabelSet
from pevl_cli.model.features import Texts
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities


def encode_labels(model: PeVL, labels: LabelSet) -> Texts:
    """All phrasings of all labels, as the model matches clips with them."""
    groups = labels.phrasings
    texts = model.encode_text([prompt for group in groups for prompt in group])
    if not labels.others or model.text is None:
        return texts
    owner = [i for i, group in enumerate(groups) for _ in group]
    return replace(texts, label=torch.tensor(owner, device=texts.sentences.device))


def flips_at_test(model: PeVL, labels: LabelSet) -> bool:
    """Whether clips are judged mirrored, too: not where a label says left or right."""
    return model.config.flip_at_test and not labels.names_a_side


@torch.inference_mode()
def match_samples(
    model: PeVL,
    samples: Sequence[Sample],
    texts: Texts,
    views: int = 1,
    batch: int = 16,
    looked: bool = False,
    flip_at_test: bool = False,
) -> Similarities:
    """How each sample matches each label, averaged over its views, on the CPU.

    ``looked`` says that somebody was looked for. Where nobody was found, then, all labels are alike
    to those similarities that rest on a body, which makes the scores low. ``flip_at_test``: each
    view is looked at as it is and mirrored.
    """
    device = model.logit_scale.device
    rows = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        looks = list(product(range(views), (False, True) if flip_at_test else (False,)))
        per_view = [
            model.match(collate([view(s, model.config, *look) for s in part]).to(device), texts)
            for look in looks
        ]
        found = torch.stack([one.values for one in per_view]).mean(0).float().cpu()
        if looked:
            nobody = torch.tensor([s.seen == 0 for s in part])[:, None, None]
            found = torch.where(nobody & found.isnan(), 0.0, found)
        videos = [one.video_features for one in per_view if one.video_features is not None]
        rows.append(Similarities(found, torch.stack(videos).mean(0).cpu() if videos else None))
    return Similarities.concatenate(rows)


@torch.inference_mode()
def sum_video_features(
    model: PeVL,
    samples: Iterable[tuple[int, Sample]],
    classes: int,
    batch: int = 16,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """The sum of V over each class's samples, (C, e), on the CPU; for a model that sees videos.

    ``context``: in which the model, and not what reads the samples, is to compute.
    """
    total = torch.zeros(classes, model.config.embed_dim)
    todo = iter(samples)
    while part := list(islice(todo, batch)):
        together = collate([view(sample, model.config) for _, sample in part])
        with context():
            features = model.encode(together.to(model.logit_scale.device))
        assert features.video is not None
        video = features.video.float().cpu()
        if together.has_video is not None:
            video = video * together.has_video[:, None]
        total.index_add_(0, torch.tensor([label for label, _ in part]), video)
    return total


def normalise_prototypes(summed: Tensor) -> Tensor:
    """What each class looks like, (C, e), unit length; NaN of one without a video."""
    return summed / summed.norm(dim=1, keepdim=True)
