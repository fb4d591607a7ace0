"""What one process computes of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pevl_cli.model.features import Batch, Features
from pevl_cli.model.pevl import PeVL


@dataclass(frozen=True)
class StepResult:
    """One step of the optimiser, over all processes but for the waiting."""

    loss: float
    right: int  # clips whose first answer was right
    clips: int
    wait_s: float  # that this process waited for clips


@dataclass(frozen=True)
class Targets:
    """What a batch is contrasted with: C labels, each in one of its phrasings."""

    prompts: list[str]  # (C,)
    classes: Tensor  # (C,) places of these labels in the label set
    labels: Tensor  # (N,) the right one of each clip, as a place in ``prompts``


class BatchLoss(nn.Module):
    """Loss and S of a whole batch, of which this process holds a part.

    A module, so that Fabric shares its gradients among the processes.
    """

    def __init__(self, model: PeVL, fabric: Fabric) -> None:
        super().__init__()
        self.model = model
        # In a function, so that it does not become a part of the module.
        self._gather: Callable[[Features], Features] = lambda part: gather_features(fabric, part)

    def forward(
        self,
        frames: Tensor | None,
        joints: Tensor | None,
        has_video: Tensor | None,
        prompts: list[str],
        classes: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss and S (N, C) of all N clips; the first three are the part of this process.

        prompts, classes and labels: as in `Targets`, of the whole batch.
        """
        texts = self.model.encode_text(prompts)
        if self.model.text is None:
            texts = texts[classes]
        return self.model.loss(Batch(frames, joints, has_video), texts, labels, self._gather)


def gather_features(fabric: Fabric, part: Features) -> Features:
    """The features of all processes, in their order; gradients flow back to each."""
    if fabric.world_size == 1:
        return part
    whole: dict[str, Tensor | None] = {}
    for field in fields(part):
        value: Tensor | None = getattr(part, field.name)
        if value is not None:
            gathered = fabric.all_gather(value, sync_grads=value.requires_grad)
            assert isinstance(gathered, Tensor)
            value = gathered.flatten(0, 1)
        whole[field.name] = value
    return Features(**whole)


def choose_targets(
    classes: Tensor,
    phrasings: Sequence[Sequence[str]],
    all_labels: bool,
    rng: np.random.Generator,
) -> Targets:
    """Each label that the clips (N,) are contrasted with once, in a phrasing drawn by ``rng``.

    ``all_labels``: the whole label set, else the labels of these clips (the paper's).
    """
    if all_labels:
        distinct, labels = torch.arange(len(phrasings)), classes
    else:
        distinct, labels = torch.unique(classes, return_inverse=True)
    groups = [phrasings[int(c)] for c in distinct]
    return Targets([group[int(rng.integers(len(group)))] for group in groups], distinct, labels)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's global generator by the step alone.

    So a continued run draws the same dropout as an uninterrupted one.
    """
    key = (seed, epoch, step, rank)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
