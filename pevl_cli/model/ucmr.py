"""Unsymmetrical Cross-Modality Refinement: pose guides video (P2V), video enriches pose (V2P)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn


def patch_weights(joints: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """M of Eq. (1): how much body each patch holds, by the weights of the joints that fall on it.

    joints (…, J, 2) x right, y down, in [0, 1] of the picture; weights (…, J) >= 0; grid (rows,
    columns) -> (…, rows·columns) row-major, sum 1, or all 0 where no joint with weight > 0 is
    inside. A joint exactly on the right or lower border belongs to the last patch.

    Source: PeVL Sec. 3.2.1, Fig. 3(a).
    """
    rows, columns = grid
    x, y = joints[..., 0], joints[..., 1]
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    column = (x * columns).floor().nan_to_num().clamp(0, columns - 1).long()
    row = (y * rows).floor().nan_to_num().clamp(0, rows - 1).long()
    used = torch.where(inside, weights, torch.zeros_like(weights))
    mask = used.new_zeros(*used.shape[:-1], rows * columns)
    mask = mask.scatter_add(-1, row * columns + column, used)
    total = mask.sum(-1, keepdim=True)
    return torch.where(total > 0, mask / total.clamp_min(torch.finfo(mask.dtype).tiny), 0.0)


def pose_guided_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """Attention that sees patches only as far as they hold body: Eq. (1).

    q (…, Q, d), k and v (…, N, d), weights (…, N) -> (…, Q, d); zeros where all weights are 0.

    Source: PeVL Eq. (1). Differs: M multiplies the exponential, not the exponent. As printed a
    patch without body would weigh exp(0) = 1, and the indicator would never be needed.
    """
    held = weights > 0
    log_weights = torch.where(held, weights, 1.0).log().masked_fill(~held, float("-inf"))
    nobody = ~held.any(-1)[..., None, None]
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + log_weights[..., None, :]
    alpha = logits.masked_fill(nobody, 0).softmax(-1).masked_fill(nobody, 0)
    return alpha @ v


class _Projections(nn.Module):
    """Queries, keys, values and a zero-initialised way out: the refinement starts as identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def split(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        return rearrange(layer(tokens), "... n (h c) -> ... h n c", h=self.heads)

    def merge(self, tokens: Tensor) -> Tensor:
        return self.out(rearrange(tokens, "... h n c -> ... n (h c)"))


class PoseGuidedVideo(_Projections):
    """P2V: every token of a video frame looks at the patches that hold the body. Sec. 3.2.1."""

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """tokens (N, T, 1 + P, d), patch weights (N, T, P) -> refined tokens, same shape."""
        patches = tokens[:, :, 1:]
        refined = pose_guided_attention(
            self.split(self.query, tokens),
            self.split(self.key, patches),
            self.split(self.value, patches),
            repeat(weights, "n t p -> n t h p", h=self.heads),
        )
        # merge() of zeros would still add the bias to a frame without a person.
        someone = (weights > 0).any(-1)[..., None, None]
        return tokens + self.merge(refined) * someone


class VideoEnrichedPose(_Projections):
    """V2P: the tokens of an indexed pose frame look at the patches of its video frame. Eq. (2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.background = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, pose: Tensor, tokens: Tensor) -> Tensor:
        """pose (N, T, G, d), video tokens (N, T, 1 + P, d) -> refined pose, (N, T, G, d).

        Differs: what the background token gathers is added to the frame's class token. Eq. (2)
        normalises over patches, each query by itself, so it would otherwise change nothing.
        """
        n, t, _, _ = pose.shape
        background = repeat(self.background, "d -> n t 1 d", n=n, t=t).to(pose.dtype)
        patches = tokens[:, :, 1:]
        refined = F.scaled_dot_product_attention(
            self.split(self.query, torch.cat([pose, background], 2)),
            self.split(self.key, patches),
            self.split(self.value, patches),
        )
        added = self.merge(refined)
        frame, joints, context = added[:, :, :1], added[:, :, 1:-1], added[:, :, -1:]
        return pose + torch.cat([frame + context, joints], 2)
