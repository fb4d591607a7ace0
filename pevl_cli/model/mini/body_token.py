"""The body token of `mini`: image features at the joints, added to a frame's class token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.skeletons import LAYOUTS

# Distance from the wrist to a held ball or racket, as a share of the forearm.
REACH = 0.4


class BodyToken(nn.Module):
    """Image features at the joints, mixed over the body and time: one vector per frame.

    The stem's feature maps are sampled at every joint and at a point beyond each wrist, where a
    ball or a racket is; convolutions over time mix the samples of the whole body. A few hundred
    clips are too few to learn which patches of a frame matter; here the joints select them. Joints
    that are not visible add 0.
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
        """maps [(N·T, C, h, w)], joints (N, T, J, 3), x and y in [0, 1], 1 = visible -> (N, T, d).

        The channels C of all maps sum to ``channels``.
        """
        n = joints.shape[0]
        visible = joints[..., 2:].float()
        # The coordinates of a joint that is not visible, also NaN, must have no effect.
        point = torch.where(visible > 0, joints[..., :2].float(), 0)
        elbows, wrists = (list(part) for part in zip(*self.hands, strict=True))
        hands = point[:, :, wrists] + REACH * (point[:, :, wrists] - point[:, :, elbows])
        point = torch.cat([point, hands], 2)
        visible = torch.cat([visible, visible[:, :, wrists] * visible[:, :, elbows]], 2)
        grid = rearrange(2 * point - 1, "n t j xy -> (n t) j 1 xy")
        samples = [nn.functional.grid_sample(m.float(), grid, align_corners=False) for m in maps]
        at_joints = rearrange(torch.cat(samples, 1), "(n t) c j 1 -> n t j c", n=n)
        at_joints = self.norm(self.look(self.drop(at_joints.to(self.look.weight.dtype))))
        at_joints = nn.functional.gelu(at_joints) * visible.to(at_joints.dtype)
        out: Tensor = self.mix(rearrange(at_joints, "n t j c -> n (j c) t"))
        return out.transpose(1, 2)
