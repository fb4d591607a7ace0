"""CLIP's transformer blocks, and the adapters that are added to frozen blocks.

Shapes: B sequences of n tokens of width d, (B, n, d). The residual stream x is in float32 also if
attention and MLP compute in half precision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pevl_cli.model.precision import computes_in_half
from pevl_cli.model.rotary import rotate


class QuickGELU(nn.Module):
    """x·σ(1.702·x): the approximation of GELU in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """x (…) -> (…)."""
        return x * torch.sigmoid(1.702 * x)


class Adapter(nn.Module):
    """Bottleneck of two linear layers; the second is zero-initialised, so at first it adds 0.

    Source: AIM (Yang et al., Adapting image models for efficient video action recognition, 2023).
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d) -> the term that the adapter adds, (…, d)."""
        return self.up(F.gelu(self.down(x)))


def make_adapters(layers: int, kinds: Sequence[str], width: int, bottleneck: int) -> nn.ModuleList:
    """One adapter of each kind for each layer."""
    return nn.ModuleList(
        nn.ModuleDict({kind: Adapter(width, bottleneck) for kind in kinds}) for _ in range(layers)
    )


def adapter_pairs(adapters: nn.ModuleList, layers: int) -> list[nn.ModuleDict | None]:
    """The adapters of each of the layers; None for each if there are none."""
    return list(adapters) if len(adapters) else [None] * layers  # type: ignore[arg-type]


class Block(nn.Module):
    """One transformer block of CLIP, in two parts (attention, MLP) with an adapter at each.

    ``tanh_gelu`` and ``eps`` (of the norms) are for the blocks of other towers.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        quick_gelu: bool,
        dropout: float = 0.0,
        *,
        tanh_gelu: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        gelu = nn.GELU("tanh" if tanh_gelu else "none")
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else gelu,
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.drop = nn.Dropout(dropout)

    def attend(self, x: Tensor, mask: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Self-attention before the residual sum: x (B, n, d) -> (B, n, d).

        ``mask`` (n, n) is added to the logits. ``rotary`` (2, P, c): the places of the patches, the
        last P tokens (`rotary.py`).

        `nn.MultiheadAttention` gives CLIP's result to the last bit, but under autocast on the CPU
        it copies the weights for each token and takes four times as long as all else.
        """
        x = self.ln_1(x)
        if rotary is None and not computes_in_half(x.device):
            return self.drop(self.attn(x, x, x, need_weights=False, attn_mask=mask)[0])
        q, k, v = self._heads(x)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        out = F.scaled_dot_product_attention(q, k, v, mask)
        return self.drop(self.attn.out_proj(rearrange(out, "b h n c -> b n (h c)")))

    def class_attention(self, x: Tensor) -> Tensor:
        """Attention of the first token to each token: x (B, n, d) -> (B, n), mean of the heads."""
        q, k, _ = self._heads(self.ln_1(x))
        logits = q[:, :, :1] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return logits.to(x.dtype).softmax(-1).mean(1)[:, 0]

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normed tokens: (B, n, d) -> three of (B, h, n, d / h)."""
        qkv = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        heads = self.attn.num_heads
        q, k, v = rearrange(qkv, "b n (three h c) -> three b h n c", three=3, h=heads)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        adapters: nn.ModuleDict | None,
        mask: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """The block with AIM's two adapters: after the attention, beside the MLP (scale 0.5).

        x (B, n, d) -> (B, n, d). ``adapters`` None: the tower's block without adapters.
        """
        attended = self.attend(x, mask, rotary)
        x = x + attended
        if adapters is not None:
            x = x + adapters["attention"](attended)
        return self._feed_forward(x, adapters)

    def _feed_forward(self, x: Tensor, adapters: nn.ModuleDict | None) -> Tensor:
        normed = self.ln_2(x)
        x = x + self.drop(self.mlp(normed))
        return x if adapters is None else x + 0.5 * adapters["mlp"](normed)


class Transformer(nn.Module):
    """The blocks of a tower, under open_clip's parameter names: `transformer.resblocks.0...`."""

    resblocks: nn.ModuleList

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        quick_gelu: bool,
        dropout: float,
        *,
        tanh_gelu: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, heads, quick_gelu, dropout, tanh_gelu=tanh_gelu, eps=eps)
            for _ in range(layers)
        )
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_fc.weight"), std=(2 * width) ** -0.5)
            out = block.mlp.get_parameter("c_proj.weight")
            nn.init.normal_(out, std=width**-0.5 * (2 * layers) ** -0.5)

    @property
    def blocks(self) -> list[Block]:
        """All blocks, in their order."""
        return list(self.resblocks)  # type: ignore[arg-type]
