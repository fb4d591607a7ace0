"""The text tower of `mini`: frozen word vectors, mixed by a few blocks.

A model that learns from a few hundred clips reads a few hundred texts: too few to learn what words
mean. So the vectors of the word pieces are fixed: distilled from a sentence encoder by
`benchmarks/make_words.py`, and bundled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pevl_cli.model.adapters import Transformer
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.precision import FullPrecisionLinear, full_precision
from pevl_cli.weights import WORD_VECTORS


class WordTower(nn.Module):
    """Texts as their words' mean: the order of words counts only as far as it has been learnt.

    ``vectors`` are neither trained nor stored with a model.
    """

    vectors: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stored = load_file(WORD_VECTORS)  # int8 (V, D), and the scale of each row (V,)
        vectors = stored["vectors"].float() * stored["scale"].float()[:, None]
        vectors = vectors / vectors.square().mean().sqrt()
        self.register_buffer("vectors", vectors, persistent=False)
        width = config.text_width
        self.dropout = config.dropout  # of whole words
        self.word = FullPrecisionLinear(vectors.shape[1], width, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.transformer = Transformer(
            width, config.text_layers, config.text_heads, config.quick_gelu, config.dropout
        )
        self.order = nn.Linear(width, width, bias=False)  # zero: at first a text is a bag of words
        nn.init.zeros_(self.order.weight)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(
        self, ids: Tensor, adapters: Sequence[nn.ModuleDict | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (C, L), 0 = padding -> sentences (C, e), words (C, L, e), mask (C, L) bool.

        ``adapters``: one entry per block, None = no adapters.
        """
        use = ids > 0
        if self.training and self.dropout:
            kept = use & (torch.rand(ids.shape, device=ids.device) >= self.dropout)
            use = torch.where(kept.any(1, keepdim=True), kept, use)
        with full_precision(ids.device):
            words = self.word(self.vectors[ids]) * use[..., None]
        length = ids.shape[1]
        x = words + self.positional_embedding[:length]
        # Causal, as in CLIP: no word sees the padding after the text.
        mask = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        for block, pair in zip(self.transformer.blocks, adapters, strict=True):
            x = block(x, pair, mask)
        words = words + self.order(x)
        with full_precision(ids.device):
            words = words.float() @ self.text_projection.float()
            share = use / use.sum(1, keepdim=True).clamp_min(1)
            return (words * share[..., None]).sum(1), words, use
