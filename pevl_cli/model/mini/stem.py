"""The stem of `mini`: patch tokens from the layers of the bundled pose network."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.detector import pose_network_layers

# Layers of the pose network that are pooled by mean or maximum: index -> channels.
MEAN_LAYERS = {4: 128, 6: 128, 10: 256}
MAX_LAYERS = {2: 64, 4: 128}
STEM_CHANNELS = sum(MEAN_LAYERS.values()) + sum(MAX_LAYERS.values())


class PoseStem(nn.Module):
    """Patch tokens from a frozen pose network: (N, 3, T, H, W) -> (N, d, T, H/32, W/32).

    Uses the layers before the head of a YOLO11n-pose network. A new model gets the bundled weights,
    which training keeps frozen: a few hundred clips are too few to learn what a body looks like.
    Several layers are pooled to the grid of the last layer by their mean; early layers, in which
    small objects such as a ball are visible, by their maximum. Convolutions over space and time mix
    them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        # The input is normalised with these; the pose network needs values in [0, 1].
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], False)
        self.layers = pose_network_layers().requires_grad_(False)
        self.mix = nn.Sequential(
            nn.Conv3d(STEM_CHANNELS, width, 1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
            nn.Dropout3d(min(2 * dropout, 0.9)),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
            nn.Dropout3d(dropout),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.GELU(),
        )

    def train(self, mode: bool = True) -> PoseStem:
        """Set training mode, except for the frozen layers."""
        super().train(mode)
        self.layers.eval()  # keep the batch statistics of the pose network's training
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (N, 3, T, H, W), normalised -> patches (N, d, T, H/32, W/32) and the pooled feature
        maps [(N·T, C, h, w)], with h = H/16, or H/32 for the last layer.
        """
        n, side = x.shape[0], x.shape[-1] // 32
        frames = rearrange(x, "n c t h w -> (n t) c h w") * self.std + self.mean
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps, patches = [], []
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                frames = layer(frames)
                size = min(2 * side, frames.shape[-1])
                if i in MEAN_LAYERS:
                    maps.append(nn.functional.adaptive_avg_pool2d(frames, size))
                    patches.append(nn.functional.adaptive_avg_pool2d(maps[-1], side))
                if i in MAX_LAYERS:
                    maps.append(nn.functional.adaptive_max_pool2d(frames, size))
                    patches.append(nn.functional.adaptive_max_pool2d(maps[-1], side))
        out: Tensor = self.mix(rearrange(torch.cat(patches, 1), "(n t) d r c -> n d t r c", n=n))
        return out, maps
