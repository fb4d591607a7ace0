"""Unsymmetrical Cross-Modality Refinement (Sec. 3.2): P2V, pose to video; V2P, video to pose.

Attention weights are computed in float32, whatever the towers compute in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from pevl_cli.model.adapters import Block
from pevl_cli.model.precision import full_precision


def patch_weights(joints: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """M of Eq. (1): the summed weights of the joints in each patch, normalised.

    joints (…, J, 2) x right, y down, in [0, 1] of the crop; weights (…, J) >= 0; grid (rows,
    columns) -> (…, rows·columns) row-major, sum 1, or all 0 if no joint with weight > 0 is
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


def body_weights(
    block: Block | None, flat: Tensor, joints: Tensor, grid: tuple[int, int]
) -> Tensor:
    """M of Eq. (1) at the video's frames: joints (N, S, J, 3) -> (N, T, P).

    ``block``, the last of the pose encoder, and its input ``flat`` (N·S, 1 + J, d) give the weights
    of the joints; None: the model has no pose block, and all visible joints weigh the same.

    Differs: the paper says only "weights of all body joints from the last layer of Pose Encoder"
    (Sec. 3.2.1). Here they are that layer's attention within a frame, of the class token to each
    visible joint, mean of the heads, before the residual sum.
    """
    weights = joints[..., 2]
    if block is not None:
        attention = block.class_attention(flat)[:, 1:]
        weights = weights * rearrange(attention, "(n s) j -> n s j", s=joints.shape[1])
    middle = slice(1, None, 3)  # the middle frames of the 16 triples of 48
    return patch_weights(joints[:, middle, :, :2], weights[:, middle], grid)


def pose_guided_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """Attention to patches, weighted by the body mask M: Eq. (1).

    q (…, Q, d), k and v (…, N, d), weights (…, N) -> (…, Q, d); zeros where all weights are 0.

    Source: PeVL Eq. (1). Differs: M multiplies the exponential, not the exponent. As printed, a
    patch without joints would have the weight exp(0) = 1, and the indicator would have no effect.
    """
    has_joint = weights > 0
    log_weights = torch.where(has_joint, weights, 1.0).log().masked_fill(~has_joint, float("-inf"))
    empty = ~has_joint.any(-1)[..., None, None]
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    with full_precision(q.device):
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + log_weights[..., None, :]
    alpha = logits.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    return alpha.to(v.dtype) @ v


class _Projections(nn.Module):
    """Projections of a refinement: to queries, keys and values, and a zero-initialised output.

    With the residual connection, the refinement starts as the identity.
    """

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
        """Project and split into h heads: (…, n, d) -> (…, h, n, d / h)."""
        return rearrange(layer(tokens), "... n (h c) -> ... h n c", h=self.heads)

    def merge(self, tokens: Tensor) -> Tensor:
        """Join the heads and project: (…, h, n, d / h) -> (…, n, d)."""
        return self.out(rearrange(tokens, "... h n c -> ... n (h c)"))


class PoseGuidedVideo(_Projections):
    """P2V: each token of a video frame attends to the patches that contain joints. Sec. 3.2.1."""

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """tokens (N, T, n, d), the last P are the patches, patch weights (N, T, P) -> refined
        tokens, (N, T, n, d).
        """
        patches = tokens[:, :, -weights.shape[-1] :]
        refined = pose_guided_attention(
            self.split(self.query, tokens),
            self.split(self.key, patches),
            self.split(self.value, patches),
            repeat(weights, "n t p -> n t h p", h=self.heads),
        )
        # Without this factor, merge() would add its bias to a frame without a person.
        has_person = (weights > 0).any(-1)[..., None, None]
        return tokens + self.merge(refined) * has_person


class VideoEnrichedPose(_Projections):
    """V2P: pose tokens and a background token attend to the patches of their frame. Eq. (2).

    "We concatenate one additional token to the pose embedding to represent the background" (Sec.
    3.2.2): the learned vector ``background`` (d,).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.background = nn.Parameter(torch.zeros(width))

    def forward(self, pose: Tensor, patches: Tensor) -> Tensor:
        """What V2P adds to pose tokens (N, T, G, d), and last to the background, from the patches
        (N, T, P, d) of the same frames: (N, T, G + 1, d).
        """
        n, t, _, _ = pose.shape
        background = repeat(self.background, "d -> n t 1 d", n=n, t=t).to(pose.dtype)
        refined = F.scaled_dot_product_attention(
            self.split(self.query, torch.cat([pose, background], 2)),
            self.split(self.key, patches),
            self.split(self.value, patches),
        )
        return self.merge(refined)
