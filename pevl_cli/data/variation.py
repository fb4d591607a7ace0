"""The random augmentation of a sample in training.

Shapes: T video frames, S pose frames, J joints; see `pevl_cli/model/__init__.py`.
"""

from __future__ import annotations

import numpy as np
import torch

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.samples import Sample, cut_view
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch


def augment_sample(
    sample: Sample, config: ModelConfig, augmentation: Augmentation, rng: np.random.Generator
) -> Batch:
    """Augment a sample at random; the result is a batch of one, determined by the state of ``rng``.

    frames (1, T, 3, H, W), joints (1, S, J, 3). At most one of video and pose is removed: a sample
    without a visible joint keeps its video.
    """
    a = augmentation
    shift = rng.uniform(-a.shift, a.shift, 2) * sample.side_px
    scale = np.exp(rng.uniform(-a.scale, a.scale))
    turn = rng.uniform(-a.turn_deg, a.turn_deg)
    times = _time_map(rng, len(sample.joints), a.shortest)
    mirrored = a.mirror and rng.random() < 0.5
    batch = cut_view(sample, config, shift, scale, turn, mirrored, times)
    frames, joints = batch.frames, batch.joints
    assert joints is not None
    if frames is not None and sample.frames is not None:
        frames = _recolour(frames, a, rng)
    noise = torch.from_numpy(rng.normal(0, a.joint_noise, (*joints.shape[:-1], 2))).float()
    dropped = torch.from_numpy(rng.random(joints.shape[:-1]) < a.joint_dropout)
    visible = joints[..., 2] * ~dropped
    joints = torch.cat([joints[..., :2] + noise, visible[..., None]], -1)
    stream = rng.random()
    if frames is None or sample.frames is None:
        return Batch(frames, joints, batch.has_video)
    if stream < a.stream_dropout and (joints[..., 2] > 0).any():
        return Batch(torch.zeros_like(frames), joints, torch.tensor([False]))
    if stream > 1 - a.stream_dropout:
        joints = joints * torch.tensor([1.0, 1.0, 0.0])
    return Batch(frames, joints, torch.tensor([True]))


def _time_map(rng: np.random.Generator, count: int, shortest: float) -> np.ndarray:
    """Pose frame at each of ``count`` times, (count,) int: a random part of the clip, stretched."""
    length = rng.uniform(shortest, 1) * (count - 1)
    first = rng.uniform(0, count - 1 - length)
    return np.round(np.linspace(first, first + length, count)).astype(int)


def _recolour(frames: torch.Tensor, a: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast and colour and add a blank rectangle, the same in all frames.

    frames (1, T, 3, H, W) uint8 -> the same shape and type.
    """
    x = frames.float()
    grey = x.mean(2, keepdim=True)
    colour = 0.0 if rng.random() < a.grey else 1 + rng.uniform(-a.colour, a.colour)
    x = grey + (x - grey) * colour
    tint = torch.from_numpy(1 + rng.uniform(-a.colour, a.colour, 3) * 0.3).float()
    x = x * tint[:, None, None]
    mean = x.mean()
    x = (x - mean) * (1 + rng.uniform(-a.contrast, a.contrast)) + mean
    x = x * (1 + rng.uniform(-a.brightness, a.brightness))
    if rng.random() < a.erase:
        size = frames.shape[-1]
        h, w = (rng.uniform(0.15, 0.4, 2) * size).astype(int)
        top, left = rng.integers(0, size - h), rng.integers(0, size - w)
        x[..., top : top + h, left : left + w] = mean
    return x.clamp(0, 255).to(torch.uint8)
