"""What the processes of a run exchange in a training step."""

from __future__ import annotations

from typing import Any, cast

import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor

from pevl_cli.model.features import Batch
from pevl_cli.training.step import gather_features


class TwoProcesses:
    """Records what is exchanged; the other process has the same features."""

    world_size = 2

    def __init__(self) -> None:
        self.exchanged: list[tuple[torch.Size, torch.dtype, bool, bool]] = []

    def all_gather(self, value: Tensor, sync_grads: bool) -> Tensor:
        self.exchanged.append((value.shape, value.dtype, sync_grads, value.requires_grad))
        return torch.stack([value, value])


def test_processes_exchange_the_same_whichever_clips_have_a_video() -> None:
    """A process without a clip without video waited forever for one that had such a clip."""
    model = tiny_model().train()
    model.visual.requires_grad_(False)
    batch = tiny_batch(clips=2)
    exchanged = []
    for has_video in (None, torch.tensor([True, False]), torch.tensor([False, False])):
        processes = TwoProcesses()
        features = model.encode(Batch(batch.frames, batch.joints, has_video))
        whole = gather_features(cast(Any, processes), features)
        assert whole.has_video is not None
        expected = [True, True] if has_video is None else has_video.tolist()
        assert whole.has_video.tolist() == expected * 2
        exchanged.append(processes.exchanged)
    assert exchanged[0] == exchanged[1] == exchanged[2]
