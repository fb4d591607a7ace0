"""Image towers with attention pooling: those of SigLIP 2 and Perception Encoder.

A test compares them with open_clip's `encode_image`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.adapters import Transformer
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.precision import FullPrecisionLinear, full_precision
from pevl_cli.model.rotary import rotary_embedding

PE_POOL_HEADS = 8  # in all sizes of Perception Encoder


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, followed by an MLP, in float32."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(width**-0.5 * torch.randn(width))
        self.q = FullPrecisionLinear(width, width)
        self.kv = FullPrecisionLinear(width, 2 * width)
        self.proj = FullPrecisionLinear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = nn.ModuleDict(
            {
                "fc1": FullPrecisionLinear(width, 4 * width),
                "fc2": FullPrecisionLinear(4 * width, width),
            }
        )

    def forward(self, tokens: Tensor, use: Tensor | None = None) -> Tensor:
        """tokens (…, n, d), bool (…, n): those to attend to, None: all -> (…, d)."""
        q = rearrange(self.q(self.latent), "(h c) -> h 1 c", h=self.heads)
        k, v = rearrange(self.kv(tokens), "... n (two h c) -> two ... h n c", two=2, h=self.heads)
        q = q.expand(*k.shape[:-2], 1, -1)
        mask = None if use is None else use[..., None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, mask)
        x = self.proj(rearrange(x, "... h 1 c -> ... (h c)"))
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm(x))))
        return out


class PooledTower(nn.Module):
    """Image tower of SigLIP 2 or Perception Encoder, with the methods of CLIP's `VisualTower`.

    SigLIP 2 has no class token and no projection. Perception Encoder has both, and a rotary
    position embedding of the patches beside the learned one.
    """

    rotary: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, size, scale = config.width, config.patch_size, config.width**-0.5
        pe = config.tower == "pe"
        eps = 1e-5 if pe else 1e-6
        self.prefix_tokens = int(pe)  # class tokens before the patches
        self.conv1 = nn.Conv2d(3, width, size, size, bias=not pe)
        self.class_embedding = nn.Parameter(scale * torch.randn(width)) if pe else None
        tokens = self.prefix_tokens + config.grid**2
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width, eps) if pe else nn.Identity()
        self.transformer = Transformer(
            width, config.layers, config.heads, False, config.dropout, eps=eps
        )
        self.ln_post = nn.LayerNorm(width, eps)
        self.pool = AttentionPool(width, PE_POOL_HEADS if pe else config.heads, eps)
        self.head = FullPrecisionLinear(width, config.embed_dim) if pe else nn.Identity()
        rotary = None
        if pe:
            channels = width // config.heads
            rotary = rotary_embedding(config.grid, config.trained_grid, channels)
        self.register_buffer("rotary", rotary, persistent=False)

    def observe(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Normalised frames (N, T, 3, H, W), as they are."""
        return (frames,)

    def embed(self, observed: Sequence[Tensor], joints: Tensor | None = None) -> Tensor:
        """The frames that `observe` gives -> tokens (N·T, n, d): class token, if any, and patches.

        ``joints`` are not used.
        """
        patches = self.conv1(rearrange(observed[0], "n t c h w -> (n t) c h w"))
        # The residual stream, in float32 from here on.
        x = rearrange(patches, "n d r c -> n (r c) d").to(self.positional_embedding.dtype)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        out: Tensor = self.ln_pre(x + self.positional_embedding)
        return out

    def frame_feature(self, tokens: Tensor) -> Tensor:
        """The feature of a frame, from all of its tokens, in float32: (…, n, d) -> (…, e)."""
        return self._pooled(tokens, None)

    def pooled_feature(self, tokens: Tensor, use: Tensor) -> Tensor:
        """The feature of the tokens in use: (…, n, d), bool (…, n), one of n at least -> (…, e)."""
        return self._pooled(tokens, use)

    def _pooled(self, tokens: Tensor, use: Tensor | None) -> Tensor:
        with full_precision(tokens.device):
            out: Tensor = self.head(self.pool(self.ln_post(tokens), use))
        return out
