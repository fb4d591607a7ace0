"""The part of a training step that one process computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pevl_cli.model.features import Batch, Features
from pevl_cli.model.pevl import PeVL


@dataclass(frozen=True)
class StepResult:
    """Result of one optimiser step, over all processes (except ``wait_s``)."""

    loss: float
    right: int  # clips with a correct answer
    clips: int
    wait_s: float  # time that this process waited for clips


@dataclass(frozen=True)
class Targets:
    """The texts that a batch is contrasted with: C labels, one phrasing each."""

    prompts: list[str]  # (C,)
    classes: Tensor  # (C,) indices of these labels in the label set
    labels: Tensor  # (N,) index in ``prompts`` of each clip's true label


class BatchLoss(nn.Module):
    """Loss and S of a batch that is divided among all processes.

    It is a module, so that Fabric sums its gradients over the processes.
    """

    def __init__(self, model: PeVL, fabric: Fabric) -> None:
        super().__init__()
        self.model = model
        # As a function, so that Fabric does not become a submodule.
        self._gather: Callable[[Features], Features] = lambda part: gather_features(fabric, part)

    def forward(
        self,
        frames: Tensor | None,
        joints: Tensor | None,
        has_video: Tensor | None,
        prompts: list[str],
        classes: Tensor,
        labels: Tensor,
        clips: Tensor,
        observed: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and S (N, C) of all N clips.

        frames, joints, has_video, observed: the part of this process; prompts, classes, labels: of
        the whole batch, as in `Targets`; clips (N,) int: the same number for a clip that occurs
        twice.
        """
        texts = self.model.encode_text(prompts)
        if self.model.text is None:
            texts = texts[classes]
        batch = Batch(frames, joints, has_video, observed)
        return self.model.loss(batch, texts, labels, self._gather, clips)


def gather_features(fabric: Fabric, part: Features) -> Features:
    """The features of all processes, (N, …), in the order of processes; with gradients.

    All processes exchange the same tensors, forward and backward, whichever of their clips have a
    video; otherwise they would wait for each other forever.
    """
    if fabric.world_size == 1:
        return part
    if part.has_video is None and part.video is not None:  # other processes may have clips without
        all_have = torch.ones(len(part.video), dtype=torch.bool, device=part.video.device)
        part = replace(part, has_video=all_have)
    whole: dict[str, Tensor | None] = {}
    for field in fields(part):
        value: Tensor | None = getattr(part, field.name)
        if value is not None:
            learns = torch.is_grad_enabled() and value.is_floating_point()
            if learns and not value.requires_grad:  # such as V of clips that all have no video
                value.requires_grad_()
            gathered = fabric.all_gather(value, sync_grads=learns)
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
    """The texts for clips of the true labels ``classes`` (N,): one phrasing per label, by ``rng``.

    ``all_labels``: texts of the whole label set, otherwise only of the labels of these clips (as in
    the paper).
    """
    if all_labels:
        distinct, labels = torch.arange(len(phrasings)), classes
    else:
        distinct, labels = torch.unique(classes, return_inverse=True)
    groups = [phrasings[int(c)] for c in distinct]
    return Targets([group[int(rng.integers(len(group)))] for group in groups], distinct, labels)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's global generator as a function of the step.

    So a continued run has the same dropout as an uninterrupted run.
    """
    key = (seed, epoch, step, rank)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
