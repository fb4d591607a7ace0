"""A model's similarities of many clips with a label set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


@torch.inference_mode()
def similarities(
    model: PeVL, samples: Sequence[Sample], texts: Texts, views: int = 1, batch: int = 16
) -> Tensor:
    """S of each sample with each text, averaged over its views: (clips, C), on the CPU."""
    device = model.logit_scale.device
    rows = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        total = None
        for place in range(views):
            together = collate([view(s, model.config, place) for s in part]).to(device)
            one = model(together, texts)
            total = one if total is None else total + one
        assert total is not None
        rows.append((total / views).float().cpu())
    return torch.cat(rows)
