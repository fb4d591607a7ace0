"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.skeletons import LAYOUTS

# A hand holds things so much beyond the wrist, in forearms.
REACH = 0.4


class BodyToken(nn.Module):
    """What the pictures show where the body is: maps (N·T, C, h, w) and joints (N, T, J, 3) ->
    (N, T, d).

    Every joint, and the place beyond each wrist where a ball or a racket is, looks up the stem's
    maps; convolutions over time mix the whole body. Which few of a picture's patches tell what is
    done need not be learnt then, for which a few hundred clips are too few. Joints that are not
    seen show nothing.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        names = LAYOUTS[config.layout].names
        self.hands = [
            (names.index(f"{side}_elbow"), names.index(f"{side}_wrist"))
            for side in ("left", "right")
        ]
        part = width // 2
        self.drop = nn.Dropout(dropout)
        self.look = nn.Linear(channels, part)
        self.norm = nn.LayerNorm(part)
        layers: list[nn.Module] = []
        sizes = [(len(names) + len(self.hands)) * part, 2 * width, width, width]
        for i, kernel in enumerate((1, 3, 3)):
            layers += [
                nn.Conv1d(sizes[i], sizes[i + 1], kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(sizes[i + 1]),
                nn.GELU(),
                nn.Dropout(min(2 * dropout, 0.9)),
            ]
        self.mix = nn.Sequential(*layers[:-2])

    def forward(self, maps: Sequence[Tensor], joints: Tensor) -> Tensor:
        n = joints.shape[0]
        visible = joints[..., 2:].float()
        # What an unseen joint's coordinates happen to hold (even NaN) must not matter.
        point = torch.where(visible > 0, joints[..., :2].float(), 0)
        elbows, wrists = (list(part) for part in zip(*self.hands, strict=True))
        hands = point[:, :, wrists] + REACH * (point[:, :, wrists] - point[:, :, elbows])
        point = torch.cat([point, hands], 2)
        visible = torch.cat([visible, visible[:, :, wrists] * visible[:, :, elbows]], 2)
        grid = rearrange(2 * point - 1, "n t j xy -> (n t) j 1 xy")
        seen = [nn.functional.grid_sample(m.float(), grid, align_corners=False) for m in maps]
        there = rearrange(torch.cat(seen, 1), "(n t) c j 1 -> n t j c", n=n)
        there = self.norm(self.look(self.drop(there.to(self.look.weight.dtype))))
        parts = nn.functional.gelu(there) * visible.to(there.dtype)
        out: Tensor = self.mix(rearrange(parts, "n t j c -> n (j c) t"))
        return out.transpose(1, 2)
