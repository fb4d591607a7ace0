"""I3D: the pretrained trunk of `mini`'s video stem.

Source: Carreira and Zisserman, Quo vadis, action recognition?, 2017: Inception-v1 with 3D
convolutions, RGB, Kinetics-400. Names of the units are the paper's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of an Inception block's convolutions: 1×1; 1×1, 3×3; 1×1, 3×3; 1×1 after the pool.
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
EARLY = ("Mixed_3b", "Mixed_3c")
MIDDLE_CHANNELS, LAST_CHANNELS = 832, 1024  # of Mixed_4f and Mixed_5c


class Inception(nn.Module):
    """Four branches side by side: (N, C, T, H, W) -> (N, C', T, H, W)."""

    def __init__(self, channels: int, *sizes: int) -> None:
        super().__init__()
        one, reduce_a, three_a, reduce_b, three_b, pooled = sizes
        self.branch_0 = nn.Conv3d(channels, one, 1)
        self.branch_1a = nn.Conv3d(channels, reduce_a, 1)
        self.branch_1b = nn.Conv3d(reduce_a, three_a, 3, padding=1)
        self.branch_2a = nn.Conv3d(channels, reduce_b, 1)
        self.branch_2b = nn.Conv3d(reduce_b, three_b, 3, padding=1)
        self.branch_3b = nn.Conv3d(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W), at least 0 -> (N, C', T, H, W)."""
        a = self.branch_1b(F.relu(self.branch_1a(x)))
        b = self.branch_2b(F.relu(self.branch_2a(x)))
        pooled = self.branch_3b(F.max_pool3d(x, 3, 1, 1))
        return F.relu(torch.cat([self.branch_0(x), a, b, pooled], 1))


class I3D(nn.Module):
    """Frames in [-1, 1], (N, 3, T, H, W), to the maps of Mixed_4f (N, 832, T/4, H/16, W/16) and
    Mixed_5c (N, 1024, T/8, H/32, W/32). T is a multiple of 8, H and W of 32.

    Differs: the batch norms have no scale and are never trained further, so they are in the
    convolutions' weights and biases.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_1a = nn.Conv3d(3, 64, 7, 2)
        self.conv_2b = nn.Conv3d(64, 64, 1)
        self.conv_2c = nn.Conv3d(64, 192, 3, padding=1)
        self.mixed = nn.ModuleDict(
            OrderedDict((name, Inception(*sizes)) for name, sizes in MIXED.items())
        )

    def late_blocks(self) -> nn.ModuleList:
        """The blocks from Mixed_4b on. Those before see edges and colours, in any video."""
        return nn.ModuleList(m for name, m in self.mixed.items() if name not in EARLY)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, T, H, W) -> maps of Mixed_4f and Mixed_5c."""
        # TensorFlow's padding SAME: where it is odd, the end has one more. Values are at least 0
        # before each pool, so 0 is as good as -∞.
        x = F.relu(self.conv_1a(F.pad(x, (2, 3, 2, 3, 2, 3))))
        x = F.max_pool3d(F.pad(x, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))
        x = F.relu(self.conv_2c(F.relu(self.conv_2b(x))))
        x = F.max_pool3d(F.pad(x, (0, 1, 0, 1)), (1, 3, 3), (1, 2, 2))
        x = self.mixed["Mixed_3c"](self.mixed["Mixed_3b"](x))
        x = F.max_pool3d(F.pad(x, (0, 1, 0, 1, 0, 1)), 3, 2)
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            x = self.mixed[name](x)
        return x, self.mixed["Mixed_5c"](self.mixed["Mixed_5b"](F.max_pool3d(x, 2, 2)))
