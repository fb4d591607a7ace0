"""The optimiser, the learning rate schedule, and the number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from pevl_cli.model.checkpoint import BASE_PREFIXES
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.settings import OptimSettings, TrainSettings

STEM_PREFIX = "visual.conv1.trunk."  # of I3D's weights
TEMPERATURES = ("logit_scale", "refinement_scale")


def parameter_groups(model: PeVL, optim: OptimSettings) -> list[dict[str, Any]]:
    """The trained parameters in groups of one learning rate and weight decay each.

    "pretrained": CLIP's or I3D's weights, if they are trained; they have a lower rate. "new": all
    others, such as adapters, pose embedding and refinements. Vectors (biases, norms) and
    temperatures have no weight decay. A model that was continued from a checkpoint has the same
    groups.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        on_clip = model.config.base == "clip" and name.startswith(BASE_PREFIXES)
        kind = "pretrained" if on_clip or name.startswith(STEM_PREFIX) else "new"
        if name in TEMPERATURES:
            kind = "temperatures"
        elif parameter.ndim <= 1:
            kind += " vectors"
        groups.setdefault(kind, []).append(parameter)
    return [
        {
            "name": kind,
            "params": parameters,
            "lr": optim.lr * (optim.pretrained_rate if kind.startswith("pretrained") else 1),
            "weight_decay": optim.weight_decay if kind in {"pretrained", "new"} else 0.0,
        }
        for kind, parameters in sorted(groups.items())
    ]


def make_optimiser(model: PeVL, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW for a model's trained parameters, in `parameter_groups`."""
    groups = parameter_groups(model, optim)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(0.9, optim.beta2))


def steps_per_epoch(settings: TrainSettings, clips: int) -> int:
    """Number of optimiser steps in an epoch of ``clips`` training clips, at least 1."""
    optim = settings.optim
    return max(
        clips // (optim.batch_size * optim.accumulate), -(-optim.min_steps // optim.epochs), 1
    )


def growing_average(decay: float) -> Callable[..., None]:
    """The update of weights averaged over steps, for `AveragedModel`.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage: with a fixed one, the weights from before training would still make
    13 % of the average after 400 steps at 0.995.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        if averages[0].is_floating_point():  # all have one type
            torch._foreach_lerp_(averages, currents, 1 - now)
        else:
            torch._foreach_copy_(averages, currents)

    return update


def make_schedule(optimiser: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """Learning rate schedule over ``steps``: linear warm-up, then a cosine decay to 0."""
    warmup_steps = min(warmup_steps, max(steps - 1, 0))
    cosine = CosineAnnealingLR(optimiser, max(steps - warmup_steps, 1))
    if not warmup_steps:
        return cosine
    rise = LinearLR(optimiser, 1e-3, total_iters=warmup_steps)
    return SequentialLR(optimiser, [rise, cosine], [warmup_steps])
