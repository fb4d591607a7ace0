"""The optimiser, the learning rate schedule, and the number of steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from pevl_cli.training.settings import OptimSettings, TrainSettings


def make_optimiser(model: nn.Module, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW for a model's trainable parameters.

    Weight decay for matrices only, not for biases, norms and temperatures.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr)


def steps_per_epoch(settings: TrainSettings, clips: int) -> int:
    """Number of optimiser steps in an epoch of ``clips`` training clips, at least 1."""
    optim = settings.optim
    return max(
        clips // (optim.batch_size * optim.accumulate), -(-optim.min_steps // optim.epochs), 1
    )


def make_schedule(optimiser: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """Learning rate schedule over ``steps``: linear warm-up, then a cosine decay to 0."""
    warmup_steps = min(warmup_steps, max(steps - 1, 0))
    cosine = CosineAnnealingLR(optimiser, max(steps - warmup_steps, 1))
    if not warmup_steps:
        return cosine
    rise = LinearLR(optimiser, 1e-3, total_iters=warmup_steps)
    return SequentialLR(optimiser, [rise, cosine], [warmup_steps])
