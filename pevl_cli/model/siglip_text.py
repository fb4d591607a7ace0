"""SigLIP 2's text tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pevl_cli.model.adapters import Transformer
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.precision import FullPrecisionLinear, full_precision
from pevl_cli.model.tokeniser import GEMMA_SPECIAL


class SigLIPTextTower(nn.Module):
    """SigLIP 2's text tower, with optional adapters: as CLIP's `TextTower`, but each token attends
    to all tokens, padding included, and the last one is the sentence.

    A test compares it with open_clip's `encode_text`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, length = config.text_width, config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer = Transformer(
            *(width, config.text_layers, config.text_heads, False, config.dropout),
            tanh_gelu=True,
            eps=1e-6,
        )
        self.ln_final = nn.LayerNorm(width, 1e-6)
        self.text_projection = FullPrecisionLinear(width, config.embed_dim)

    def forward(
        self, ids: Tensor, adapters: Sequence[nn.ModuleDict | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (C, L), padded to the context length -> sentences (C, e), tokens (C, L, e),
        word mask (C, L) bool: not padding, start or end.

        ``adapters``: one entry per block, None = no adapters.
        """
        x = self.token_embedding(ids) + self.positional_embedding
        for block, pair in zip(self.transformer.blocks, adapters, strict=True):
            x = block(x, pair)
        with full_precision(x.device):
            words = self.text_projection(self.ln_final(x))
        special = torch.tensor(sorted(GEMMA_SPECIAL), device=ids.device)
        return words[:, -1], words, ~torch.isin(ids, special)
