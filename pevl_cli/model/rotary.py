"""Rotary position embedding of image patches, as in Perception Encoder."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0  # of the frequencies


def rotary_embedding(grid: int, trained_grid: int, channels: int) -> Tensor:
    """Sine and cosine of each patch's angles: (2, P, c), patches row by row.

    grid: patches along a side; trained_grid: those of the tower's training, on which the positions
    of another grid are laid. channels c: those of an attention head, a multiple of 4: the first
    half turns with the column, the second with the row.
    """
    bands = 1 / BASE ** (torch.arange(channels // 4).float() / (channels // 4))
    place = (torch.arange(grid).float() + 1) / grid * trained_grid
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    angles = torch.stack([columns, rows], -1).reshape(-1, 2, 1) * bands
    angles = angles.flatten(1).repeat_interleave(2, -1)
    return torch.stack([angles.sin(), angles.cos()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn queries or keys (…, n, c) of the patches, the last P of n tokens; rotary (2, P, c).

    Tokens before the patches have no place and stay as they are.
    """
    sine, cosine = rotary
    before, patches = x[..., : -len(sine), :], x[..., -len(sine) :, :]
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], -1).flatten(-2)
    return torch.cat([before, (patches * cosine + turned * sine).to(x.dtype)], -2)
