"""From joints to the tokens of the pose encoder: coordinates, body features, or heatmaps."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.body_streams import BodyMeasures, BodyStreams
from pevl_cli.model.config import HEATMAP_PX, ModelConfig

# Standard deviation of a joint's Gaussian: PoseConv3D's 0.6 px, on a grid twice as fine.
HEATMAP_SIGMA_PX = 1.2


class PoseEmbedding(nn.Module):
    """Joints to tokens, (N, S, J, 3) -> (N, S, 1 + J, d): a linear map of each joint, a learned
    joint and time embedding, and a class token per frame.

    ``pose_features`` "body" and "streams" add features that a small model cannot learn from a few
    hundred clips: to each joint's token, the offsets to all other joints and its motion; to each
    class token, features of the whole body. "body": two convolutions over time of distances between
    joints and their motion, as in DD-Net (Yang et al. 2019); "streams": `BodyStreams`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body = config.has_body_features
        width, joints = config.width, config.joints
        size = 3 + (2 + 2 * joints + 4 if self.body else 0)
        self.joint = nn.Linear(size, width)
        scale = width**-0.5
        self.joint_embedding = nn.Parameter(scale * torch.randn(joints + 1, width))
        self.time_embedding = nn.Parameter(scale * torch.randn(config.pose_frames, width))
        self.norm = nn.LayerNorm(width)
        if config.pose_features == "streams":
            self.frame: nn.Module = BodyStreams(config)
        elif self.body:
            self.frame = nn.Sequential(
                nn.Conv1d(joints * 7 + joints * joints, 2 * width, 1, bias=False),
                nn.BatchNorm1d(2 * width),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Conv1d(2 * width, width, 5, padding=2, bias=False),
                nn.BatchNorm1d(width),
                nn.GELU(),
                nn.Dropout(config.dropout),
                nn.Conv1d(width, width, 5, padding=2, bias=False),
                nn.BatchNorm1d(width),
            )

    def forward(self, joints: Tensor) -> Tensor:
        """joints (N, S, J, 3), x and y in [0, 1] of the view, 1 = visible -> (N, S, 1 + J, d)."""
        visible = joints[..., 2:]
        # The coordinates of a joint that is not visible, also NaN, must have no effect.
        joints = torch.cat([torch.where(visible > 0, joints[..., :2], 0), visible], -1)
        if self.body:
            measures = BodyMeasures(joints)
            motion = torch.cat([measures.relative, *measures.motion.values()], -1)
            tokens = self.joint(torch.cat([joints, motion, measures.offsets.flatten(-2)], -1))
            class_token = self._class_token(measures, motion)[:, :, None]
        else:
            tokens = self.joint(joints)
            class_token = torch.zeros_like(tokens[:, :, :1])
        tokens = torch.cat([class_token, tokens], 2) + self.joint_embedding
        tokens = tokens + self.time_embedding[: tokens.shape[1], None]
        out: Tensor = self.norm(tokens)
        return out

    def _class_token(self, measures: BodyMeasures, motion: Tensor) -> Tensor:
        """Features of the whole body: motion (N, S, J, 6) -> (N, S, d)."""
        if isinstance(self.frame, BodyStreams):
            return self.frame(measures)
        parts = motion, measures.visible, measures.distances
        body = torch.cat([part.flatten(2) for part in parts], -1)
        out: Tensor = self.frame(body.transpose(1, 2)).transpose(1, 2)
        return out


class HeatmapEmbedding(nn.Module):
    """Joints to the patches of their heatmaps: (N, S, J, 3) -> (N, S, 1 + P, d).

    One channel per joint, split into patches as CLIP splits images, with a learned position and
    time embedding and a class token per frame.

    Source: PeVL Table 9, whose heatmaps follow PoseConv3D (Duan et al. 2022).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, size = config.width, config.heatmap_patch
        self.patch = nn.Conv2d(config.joints, width, size, size)
        scale = width**-0.5
        tokens = 1 + (HEATMAP_PX // size) ** 2
        self.place_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.time_embedding = nn.Parameter(scale * torch.randn(config.pose_frames, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, joints: Tensor) -> Tensor:
        """joints (N, S, J, 3), x and y in [0, 1] of the view, 1 = visible -> (N, S, 1 + P, d)."""
        n, s = joints.shape[:2]
        patches = self.patch(heatmaps(joints).flatten(0, 1))
        tokens = rearrange(patches, "(n s) d r c -> n s (r c) d", n=n)
        tokens = torch.cat([torch.zeros_like(tokens[:, :, :1]), tokens], 2) + self.place_embedding
        tokens = tokens + self.time_embedding[:s, None]
        out: Tensor = self.norm(tokens)
        return out


def heatmaps(joints: Tensor) -> Tensor:
    """Heatmap of each joint, a Gaussian with maximum 1: (N, S, J, 3) -> (N, S, J, 112, 112).

    0 for a joint that is not visible. The standard deviation is HEATMAP_SIGMA_PX.
    """
    centre = (torch.arange(HEATMAP_PX, device=joints.device) + 0.5) / HEATMAP_PX
    # The coordinates of a joint that is not visible, also NaN, must have no effect.
    point = torch.where(joints[..., 2:] > 0, joints[..., :2], 0)
    distance = (centre - point[..., None]) * (HEATMAP_PX / HEATMAP_SIGMA_PX)
    x, y = (-distance.square() / 2).exp().unbind(-2)
    return (y * joints[..., 2:])[..., :, None] * x[..., None, :]
