"""How a model matches many clips with a label set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from pevl_cli.labels import LabelSet
from pevl_cli.model.pevl import PeVL, Texts
from pevl_cli.samples import Sample, collate, view


def encode_labels(model: PeVL, labels: LabelSet) -> Texts:
    """All phrasings of all labels, as the model matches clips with them."""
    groups = labels.phrasings
    texts = model.encode_text([prompt for group in groups for prompt in group])
    if not labels.others or model.text is None:
        return texts
    owner = [i for i, group in enumerate(groups) for _ in group]
    return replace(texts, label=torch.tensor(owner, device=texts.sentences.device))


def looks_both_ways(model: PeVL, labels: LabelSet) -> bool:
    """Whether clips are judged mirrored, too: not where a label says left or right."""
    return model.config.both_ways and not labels.names_a_side


@torch.inference_mode()
def matches(
    model: PeVL,
    samples: Sequence[Sample],
    texts: Texts,
    views: int = 1,
    batch: int = 16,
    looked: bool = False,
    both_ways: bool = False,
) -> Tensor:
    """The B similarities of each sample with each label, averaged over its views: (clips, B, C),
    on the CPU; NaN where one has nothing to go by.

    ``looked`` says that somebody was looked for. Where nobody was found, then, all labels are alike
    to those similarities that rest on a body, which makes the scores low. ``both_ways``: each view
    is looked at as it is and mirrored.
    """
    device = model.logit_scale.device
    rows = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        total = None
        looks = list(product(range(views), (False, True) if both_ways else (False,)))
        for look in looks:
            together = collate([view(s, model.config, *look) for s in part]).to(device)
            one = model.matches(together, texts)
            total = one if total is None else total + one
        assert total is not None
        found = (total / len(looks)).float().cpu()
        if looked:
            nobody = torch.tensor([s.seen == 0 for s in part])[:, None, None]
            found = torch.where(nobody & found.isnan(), 0.0, found)
        rows.append(found)
    return torch.cat(rows)
