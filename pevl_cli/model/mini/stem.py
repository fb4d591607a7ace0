"""The stems of `mini`: patch tokens from I3D, or from the layers of the bundled pose network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.model.mini.i3d import I3D, LAST_CHANNELS, MIDDLE_CHANNELS
from pevl_cli.pose.detector import pose_network_layers

# Layers of the pose network that are pooled by mean or maximum: index -> channels.
MEAN_LAYERS = {4: 128, 6: 128, 10: 256}
MAX_LAYERS = {2: 64, 4: 128}
# Whether each map, in the order of the layers, is pooled by maximum.
POOLED_BY_MAX = [
    by_max
    for layer in sorted({*MEAN_LAYERS, *MAX_LAYERS})
    for by_max, layers in ((False, MEAN_LAYERS), (True, MAX_LAYERS))
    if layer in layers
]
FRAMES_OF_A_MAP = 4  # of I3D
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

    @torch.no_grad()
    def observe(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, 3, T, H, W), normalised -> the pooled feature maps [(N, T, C, h, w)], with
        h = H/16, or H/32 for the last layer.
        """
        n, side = x.shape[0], x.shape[-1] // 32
        frames = rearrange(x, "n c t h w -> (n t) c h w") * self.std + self.mean
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps = []
        for i, layer in enumerate(self.layers):
            frames = layer(frames)
            size = min(2 * side, frames.shape[-1])
            if i in MEAN_LAYERS:
                maps.append(nn.functional.adaptive_avg_pool2d(frames, size))
            if i in MAX_LAYERS:
                maps.append(nn.functional.adaptive_max_pool2d(frames, size))
        return tuple(rearrange(m, "(n t) c h w -> n t c h w", n=n) for m in maps)

    def forward(self, observed: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What `observe` gives -> patches (N, d, T, H/32, W/32) and the maps [(N·T, C, h, w)]."""
        n = observed[0].shape[0]
        maps = [rearrange(m, "n t c h w -> (n t) c h w") for m in observed]
        side = maps[-1].shape[-1]
        pools = nn.functional.adaptive_avg_pool2d, nn.functional.adaptive_max_pool2d
        patches = [pools[by_max](m, side) for m, by_max in zip(maps, POOLED_BY_MAX, strict=True)]
        out: Tensor = self.mix(rearrange(torch.cat(patches, 1), "(n t) d r c -> n d t r c", n=n))
        return out, maps


class I3DStem(nn.Module):
    """Patch tokens from I3D: (N, 3, T, H, W) -> (N, d, T, H/32, W/32).

    The maps of Mixed_4f, pooled to the grid of Mixed_5c, and those of Mixed_5c are normalised and
    mapped to d channels. I3D has one map for 4 frames, or 8: these frames share it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = I3D()
        self.norm = nn.BatchNorm3d(MIDDLE_CHANNELS + LAST_CHANNELS, affine=False)
        self.drop = nn.Dropout3d(min(3 * config.dropout, 0.9))
        self.mix = nn.Conv3d(MIDDLE_CHANNELS + LAST_CHANNELS, config.width, 1)
        self.trunk.requires_grad_(False)
        if config.train_stem:
            self.trunk.late_blocks().requires_grad_(True)

    def observe(self, x: Tensor) -> tuple[Tensor]:
        """x (N, 3, T, H, W) in [-1, 1] -> the maps (N, C, T/4, H/32, W/32)."""
        middle, last = self.trunk(x.contiguous(memory_format=torch.channels_last_3d))
        pooled = nn.functional.avg_pool3d(middle, (1, 2, 2))
        return (torch.cat([pooled, last.repeat_interleave(2, 2)], 1),)

    def forward(self, observed: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What `observe` gives -> patches (N, d, T, H/32, W/32), and no maps of single frames."""
        tokens = self.mix(self.drop(self.norm(observed[0])))
        return tokens.repeat_interleave(FRAMES_OF_A_MAP, 2), []


def frozen_network(stem: nn.Module) -> nn.Module | None:
    """The pretrained network of a stem, if training never changes it; otherwise None."""
    if isinstance(stem, PoseStem):
        return stem.layers
    if isinstance(stem, I3DStem) and not any(p.requires_grad for p in stem.trunk.parameters()):
        return stem.trunk
    return None
