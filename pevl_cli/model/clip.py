"""CLIP's image and text towers with open_clip's parameter names.

open_clip's tower classes are not used, because adapters are inside the blocks and pose tokens pass
through the same blocks. A test compares the towers with open_clip's `encode_image` and
`encode_text`, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.adapters import Transformer
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.mini.body_token import BodyToken
from pevl_cli.model.mini.stem import STEM_CHANNELS, I3DStem, PoseStem
from pevl_cli.model.precision import full_precision


class VisualTower(nn.Module):
    """CLIP's image tower: embedding, blocks, final norm and projection."""

    prefix_tokens = 1  # class tokens before the patches
    rotary: Tensor | None = None  # the patches have no rotary position embedding

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.add_patch_mean = config.class_token == "body"
        scale = width**-0.5
        if config.stem == "patch":
            size = config.patch_size
            self.conv1: nn.Module = nn.Conv2d(3, width, size, size, bias=False)
        elif config.video:
            self.conv1 = (I3DStem if config.stem == "i3d" else PoseStem)(config)
        else:
            self.conv1 = nn.Identity()
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.grid**2 + 1, width))
        self.body: BodyToken | None = None
        if config.has_body_token:
            self.body = BodyToken(STEM_CHANNELS if config.stem == "pose" else width, config)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, config.layers, config.heads, config.quick_gelu, config.dropout
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def observe(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Normalised frames (N, T, 3, H, W) -> what the stem makes of them before any weight that
        is always trained; a linear map has no such part, and these are the frames.
        """
        if isinstance(self.conv1, PoseStem | I3DStem):
            return self.conv1.observe(rearrange(frames, "n t c h w -> n c t h w"))
        return (frames,)

    def embed(self, observed: Sequence[Tensor], joints: Tensor | None = None) -> Tensor:
        """What `observe` gives -> tokens (N·T, 1 + P, d), the class token first.

        A tower with a body token uses ``joints`` (N, T, J, 3); without joints no body token is
        added.
        """
        maps: list[Tensor] = []
        if isinstance(self.conv1, PoseStem | I3DStem):
            patches, maps = self.conv1(observed)
            patches = rearrange(patches, "n d t r c -> (n t) d r c")
        else:
            patches = self.conv1(rearrange(observed[0], "n t c h w -> (n t) c h w"))
        # The residual stream, in float32 from here on.
        x = patches.flatten(2).permute(0, 2, 1).to(self.class_embedding.dtype)
        class_token = self.class_embedding.expand(len(x), 1, -1)
        if self.add_patch_mean:
            class_token = class_token + x.mean(1, keepdim=True)
        if self.body is not None and joints is not None:
            body = self.body(maps or [patches], joints).to(x.dtype)
            class_token = class_token + rearrange(body, "n t d -> (n t) 1 d")
        x = torch.cat([class_token, x], 1) + self.positional_embedding
        out: Tensor = self.ln_pre(x)
        return out

    def project(self, tokens: Tensor) -> Tensor:
        """CLIP's final norm and projection into the joint space, in float32: (…, d) -> (…, e)."""
        with full_precision(tokens.device):
            out: Tensor = self.ln_post(tokens) @ self.proj
        return out

    def frame_feature(self, tokens: Tensor) -> Tensor:
        """The feature of a video frame, from its class and patch tokens: (…, n, d) -> (…, e)."""
        return self.project(tokens[..., 0, :])

    def pooled_feature(self, tokens: Tensor, use: Tensor) -> Tensor:
        """The feature of the tokens in use: (…, n, d), bool (…, n), one of n at least -> (…, e)."""
        share = use / use.sum(-1, keepdim=True)
        return self.project((tokens * share[..., None].to(tokens.dtype)).sum(-2))


class TextTower(nn.Module):
    """CLIP's text tower, with optional adapters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, length = config.text_width, config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer = Transformer(
            width, config.text_layers, config.text_heads, config.quick_gelu, config.dropout
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(
        self, ids: Tensor, adapters: Sequence[nn.ModuleDict | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (C, L) -> sentences (C, e), tokens (C, L, e), word mask (C, L) bool.

        ``adapters``: one entry per block, None = no adapters. The sentence is the end-of-text
        token, which has the highest id; the words are the tokens between start-of-text and
        end-of-text.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[:length]
        # Not a buffer: averaging its infinities over training steps would give NaN.
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        for block, pair in zip(self.transformer.blocks, adapters, strict=True):
            x = block(x, pair, mask)
        end = ids.argmax(-1)
        with full_precision(x.device):
            x = self.ln_final(x)
            sentences = x[torch.arange(len(x), device=x.device), end] @ self.text_projection
            words = x @ self.text_projection
        position = torch.arange(length, device=ids.device)[None]
        word_mask = (position > 0) & (position < end[:, None])
        return sentences, words, word_mask
