"""The stem of `mini`: patch tokens by the layers of the package's pose network."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.detector import pose_network_layers

# Which layers of the pose network make patch tokens: index, channels.
STEM_MEANS = {4: 128, 6: 128, 10: 256}
STEM_PEAKS = {2: 64, 4: 128}
STEM_CHANNELS = sum(STEM_MEANS.values()) + sum(STEM_PEAKS.values())


class PoseStem(nn.Module):
    """Patch tokens by a network that knows bodies: (N, 3, T, H, W) -> (N, d, T, H/32, W/32).

    The layers before a YOLO11n-pose network's head, which training fills with the package's own
    weights and leaves as they are: where a few hundred clips tell what is done, they cannot also
    tell what a body is. Several layers, brought onto the last one's grid by their mean and, of
    those where a ball is still to be seen, their maximum, are mixed by convolutions over space
    and time.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        # What the tower's pictures were normalised by: this network takes them in [0, 1].
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
        super().train(mode)
        self.layers.eval()  # their statistics are those of the pose network's own training
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Also the maps (N·T, C, h, w) they are made of, twice as fine where the layers are."""
        n, side = x.shape[0], x.shape[-1] // 32
        frames = rearrange(x, "n c t h w -> (n t) c h w") * self.std + self.mean
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps, seen = [], []
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                frames = layer(frames)
                size = min(2 * side, frames.shape[-1])
                if i in STEM_MEANS:
                    maps.append(nn.functional.adaptive_avg_pool2d(frames, size))
                    seen.append(nn.functional.adaptive_avg_pool2d(maps[-1], side))
                if i in STEM_PEAKS:
                    maps.append(nn.functional.adaptive_max_pool2d(frames, size))
                    seen.append(nn.functional.adaptive_max_pool2d(maps[-1], side))
        out: Tensor = self.mix(rearrange(torch.cat(seen, 1), "(n t) d r c -> n d t r c", n=n))
        return out, maps
