"""The random augmentation of a sample in training.

Shapes: T video frames, S pose frames, J joints; see `pevl_cli/model/__init__.py`.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.samples import Sample, cut_view
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.pose.skeletons import LAYOUTS


def augment_sample(
    sample: Sample,
    config: ModelConfig,
    augmentation: Augmentation,
    rng: np.random.Generator,
    observed: tuple[np.random.Generator, tuple[Tensor, ...]] | None = None,
) -> Batch:
    """Augment a sample at random; the result is a batch of one, determined by the state of ``rng``.

    frames (1, T, 3, H, W), joints (1, S, J, 3). At most one of video and pose is removed: a sample
    without a visible joint keeps its video.

    ``observed``: the generator from which `augment_view` drew a view, in its state before, and what
    the model's stem made of its frames. They take the place of frames, which the sample lacks then.
    """
    a = augmentation
    if observed is None:
        batch = augment_view(sample, config, a, rng)
    else:
        view = augment_view(sample, config, a, observed[0])
        batch = Batch(None, view.joints, torch.tensor([True]), observed[1])
    assert batch.joints is not None
    joints = _disturb(batch.joints, config.layout, a, rng)
    stream = rng.random()
    if sample.frames is None and observed is None:
        return replace(batch, joints=joints)
    if stream < a.stream_dropout and (joints[..., 2] > 0).any():
        return replace(_without_video(batch), joints=joints)
    if stream > 1 - a.stream_dropout:
        joints = joints * torch.tensor([1.0, 1.0, 0.0])
    return replace(batch, joints=joints, has_video=torch.tensor([True]))


def augment_view(
    sample: Sample, config: ModelConfig, augmentation: Augmentation, rng: np.random.Generator
) -> Batch:
    """A view of a sample drawn at random: place, size, turn, mirror image, time and colours."""
    a = augmentation
    shift = rng.uniform(-a.shift, a.shift, 2) * sample.side_px
    scale = np.exp(rng.uniform(-a.scale, a.scale))
    turn = rng.uniform(-a.turn_deg, a.turn_deg)
    times = _time_map(rng, len(sample.joints), a)
    mirrored = a.mirror and rng.random() < 0.5
    aspect = np.exp(rng.uniform(-a.aspect, a.aspect))
    batch = cut_view(sample, config, shift, scale, turn, mirrored, times, aspect)
    if batch.frames is None or sample.frames is None:
        return batch
    return replace(batch, frames=_recolour(batch.frames, a, rng))


def _without_video(batch: Batch) -> Batch:
    frames = None if batch.frames is None else torch.zeros_like(batch.frames)
    observed = batch.observed and tuple(torch.zeros_like(part) for part in batch.observed)
    return replace(batch, frames=frames, observed=observed, has_video=torch.tensor([False]))


def _time_map(rng: np.random.Generator, count: int, a: Augmentation) -> np.ndarray:
    """Pose frame at each of ``count`` times, (count,) int: a random part of the clip, stretched."""
    length = rng.uniform(a.shortest, 1) * (count - 1)
    first = rng.uniform(0, count - 1 - length)
    phase, warp = rng.uniform(0, 2 * np.pi), rng.uniform(-a.warp, a.warp)
    share = np.linspace(0, 1, count)
    share = share + warp * (np.sin(2 * np.pi * share + phase) - np.sin(phase)) / (2 * np.pi)
    return np.round(first + length * share).astype(int)


def _disturb(
    joints: torch.Tensor, layout: str, a: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    """Move joints and make some invisible, as detectors do: (1, S, J, 3) -> the same shape."""
    shape = joints.shape[1:3]
    moved = rng.normal(0, 1, (*shape, 2)) * rng.uniform(0, 2 * a.joint_noise)
    moved += rng.normal(0, 1, (shape[1], 2)) * a.joint_shift
    dropped = rng.random(shape) < a.joint_dropout
    dropped |= rng.random((shape[0], 1)) < a.frame_dropout
    for limb in LAYOUTS[layout].limbs if a.limb_dropout else ():
        dropped[:, limb] |= rng.random() < a.limb_dropout
    visible = joints[..., 2] * ~torch.from_numpy(dropped)
    points = joints[..., :2] + torch.from_numpy(moved).float()
    return torch.cat([points, visible[..., None]], -1)


def _recolour(frames: torch.Tensor, a: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast and colour and add a blank rectangle, the same in all frames.

    frames (1, T, 3, H, W) uint8 -> the same shape and type.
    """
    grey = 0.0 if rng.random() < a.grey else 1 + rng.uniform(-a.colour, a.colour)
    tint = 1 + rng.uniform(-a.colour, a.colour, 3) * 0.3
    contrast = 1 + rng.uniform(-a.contrast, a.contrast)
    brightness = 1 + rng.uniform(-a.brightness, a.brightness)
    # One affine map of a pixel's colours.
    colours = tint[:, None] * (np.full((3, 3), (1 - grey) / 3) + np.eye(3) * grey)
    pixels = frames[0].permute(0, 2, 3, 1).numpy()
    mean = float(cv2.mean(pixels[len(pixels) // 2])[0])
    matrix = np.concatenate([colours * contrast, np.full((3, 1), mean * (1 - contrast))], 1)
    x = np.stack([cv2.transform(image, matrix * brightness) for image in pixels])
    if rng.random() < a.erase:
        size = frames.shape[-1]
        h, w = (rng.uniform(0.15, 0.4, 2) * size).astype(int)
        top, left = rng.integers(0, size - h), rng.integers(0, size - w)
        x[:, top : top + h, left : left + w] = mean
    return torch.from_numpy(x).permute(0, 3, 1, 2)[None].contiguous()
