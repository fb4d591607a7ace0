"""What a body does, in numbers that do not depend on the camera, and convolutions over time.

Shapes: N clips, S frames, J joints. Lengths are in units of the body's size over the clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.skeletons import LAYOUTS, Layout

LAGS = (1, 3, 6)  # frames between the two frames of a displacement
DILATIONS = (1, 2, 4)  # of a stream's blocks, which see 61 frames in all
LEAST_SIZE = 0.02  # of a body, as a share of the view: a smaller one is noise


class BodyMeasures:
    """Positions, displacements, offsets, bones and angles of the joints of N clips.

    ``joints`` (N, S, J, 3): x, y, 1 = visible; 0 where not visible. Every value of which a joint is
    not visible is 0.
    """

    def __init__(self, joints: Tensor) -> None:
        point, visible = joints[..., :2], joints[..., 2:]
        self.point, self.visible = point, visible
        count = visible.sum(2, keepdim=True).clamp_min(1)
        centre = (point * visible).sum(2, keepdim=True) / count
        relative = (point - centre) * visible
        spread = relative.square().sum((-1, -2)).div(count[..., 0, 0]).sqrt()  # (N, S)
        has_person = visible.amax((-1, -2))
        size = (spread * has_person).sum(1) / has_person.sum(1).clamp_min(1)
        self.size = size.clamp_min(LEAST_SIZE)[:, None, None, None]
        self.relative = relative / self.size  # (N, S, J, 2), to the body's centre
        self.motion = {lag: self._moved(point, lag) for lag in LAGS[:2]}  # lag -> (N, S, J, 2)
        self.relative_motion = {lag: self._moved(relative, lag) for lag in LAGS}
        both = visible[:, :, None] * visible[..., None, :]
        # (N, S, J, J, 2), to every other joint
        self.offsets = (point[:, :, None] - point[:, :, :, None]) * both / self.size[..., None]
        self.path = (centre - centre[:, :1])[:, :, 0] / self.size[:, 0]  # (N, S, 2)

    @property
    def distances(self) -> Tensor:
        """Between all joints, (N, S, J, J)."""
        return self.offsets.square().sum(-1).add(1e-6).sqrt()

    def _moved(self, point: Tensor, lag: int) -> Tensor:
        """Displacement over ``lag`` frames, scaled to a similar size for every lag."""
        lag = min(lag, point.shape[1] - 1)
        seen = self.visible[:, lag:] * self.visible[:, : point.shape[1] - lag]
        step = (point[:, lag:] - point[:, : point.shape[1] - lag]) * seen
        return F.pad(step, (0, 0, 0, 0, lag, 0)) * (2 / max(lag, 1) ** 0.5) / self.size


class BodyStreams(nn.Module):
    """The class token of each frame: the sum of four streams, (N, S, …) -> (N, S, d).

    Joints, motion, distances with angles, and bones each go through convolutions of their own, as
    in multi-stream skeleton networks (Shi et al., Two-stream adaptive graph convolutional networks,
    2019); distances and two speeds of motion are those of DD-Net (Yang et al. 2019).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layout, joints = LAYOUTS[config.layout], config.joints
        self.bones = layout.edge_indices
        self.angles = _angles(layout)
        self.pairs = torch.triu_indices(joints, joints, 1).tolist()
        sizes = {
            "joints": 3 * joints + 4,
            "motion": 2 * joints * (len(LAGS) + 2),
            "distances": len(self.pairs[0]) + 2 * len(self.angles),
            "bones": 4 * len(self.bones),
        }
        self.streams = nn.ModuleDict(
            {name: _Stream(size, config.width, config.dropout) for name, size in sizes.items()}
        )

    def forward(self, measures: BodyMeasures) -> Tensor:
        """The measures of N clips -> (N, S, d)."""
        m = measures
        speed = F.pad(m.path[:, 1:] - m.path[:, :-1], (0, 0, 1, 0)) * 4
        distances = m.distances[:, :, *self.pairs]
        inputs = {
            "joints": torch.cat([m.relative.flatten(2), m.visible.flatten(2), m.path, speed], -1),
            "motion": torch.cat(
                [v.flatten(2) for v in (*m.motion.values(), *m.relative_motion.values())], -1
            ),
            "distances": torch.cat([distances, self._turns(m.offsets).flatten(2)], -1),
            "bones": self._bones(m.offsets).flatten(2),
        }
        features = [self.streams[name](value) for name, value in inputs.items()]
        return torch.stack(features).sum(0)

    def _bones(self, offsets: Tensor) -> Tensor:
        """Each bone, and its direction: (N, S, J, J, 2) -> (N, S, bones, 4)."""
        start, end = zip(*self.bones, strict=True)
        bone = offsets[:, :, list(start), list(end)]
        length = bone.square().sum(-1, keepdim=True).add(1e-6).sqrt()
        return torch.cat([bone, 0.5 * bone / length], -1)

    def _turns(self, offsets: Tensor) -> Tensor:
        """Cosine and sine of each angle: (N, S, J, J, 2) -> (N, S, angles, 2)."""
        middle, first, second = (list(part) for part in zip(*self.angles, strict=True))
        a, b = offsets[:, :, middle, first], offsets[:, :, middle, second]
        length = (a.square().sum(-1) * b.square().sum(-1)).add(1e-6).sqrt()
        sine = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
        return torch.stack([(a * b).sum(-1) / length, sine / length], -1)


class _Stream(nn.Module):
    """Convolutions over time: (N, S, c) -> (N, S, d)."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        drop = min(3 * dropout, 0.9)
        inner = 2 * width // 3
        self.enter = nn.Sequential(
            nn.BatchNorm1d(channels),
            nn.Dropout(drop / 2),
            nn.Conv1d(channels, inner, 1, bias=False),
            nn.BatchNorm1d(inner),
            nn.GELU(),
            nn.Dropout(drop),
            nn.Conv1d(inner, inner, 5, padding=2, bias=False),
            nn.BatchNorm1d(inner),
            nn.GELU(),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(inner, inner, 5, padding=2 * dilation, dilation=dilation, bias=False),
                nn.BatchNorm1d(inner),
                nn.GELU(),
                nn.Conv1d(inner, inner, 1, bias=False),
                nn.BatchNorm1d(inner),
                nn.Dropout(drop),
            )
            for dilation in DILATIONS
        )
        self.leave = nn.Sequential(
            nn.BatchNorm1d(inner), nn.GELU(), nn.Dropout(drop), nn.Conv1d(inner, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, S, c) -> (N, S, d)."""
        h = self.enter(x.transpose(1, 2))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(h).transpose(1, 2)
        return out


def _angles(layout: Layout) -> list[tuple[int, int, int]]:
    """Joints (middle, first, second) of the angles at elbows, shoulders, hips and knees."""
    chains = [
        ("hip", "shoulder", "elbow"),
        ("shoulder", "elbow", "wrist"),
        ("shoulder", "hip", "knee"),
        ("hip", "knee", "ankle"),
    ]
    angles = []
    for side in ("left", "right"):
        for first, middle, second in chains:
            names = [f"{side}_{part}" for part in (middle, first, second)]
            if all(name in layout.names for name in names):
                a, b, c = (layout.names.index(name) for name in names)
                angles.append((a, b, c))
    return angles
