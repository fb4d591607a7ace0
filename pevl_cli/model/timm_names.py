"""timm's names of the weights of an image tower, as open_clip keeps SigLIP 2's and PE's."""

from __future__ import annotations

import re

from torch import Tensor

TRUNK = "visual.trunk."
# Patterns of timm's names -> ours, which are CLIP's where CLIP has the same part.
NAMES = {
    r"patch_embed\.proj\.": "conv1.",
    r"cls_token$": "class_embedding",
    r"pos_embed$": "positional_embedding",
    r"norm_pre\.": "ln_pre.",
    r"blocks\.(\d+)\.norm(\d)\.": r"transformer.resblocks.\1.ln_\2.",
    r"blocks\.(\d+)\.attn\.qkv\.": r"transformer.resblocks.\1.attn.in_proj_",
    r"blocks\.(\d+)\.attn\.proj\.": r"transformer.resblocks.\1.attn.out_proj.",
    r"blocks\.(\d+)\.mlp\.fc1\.": r"transformer.resblocks.\1.mlp.c_fc.",
    r"blocks\.(\d+)\.mlp\.fc2\.": r"transformer.resblocks.\1.mlp.c_proj.",
    r"norm\.": "ln_post.",
    r"attn_pool\.": "pool.",
}


def from_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights `visual.trunk.…` under our names `visual.…`; others are unchanged.

    Dimensions of size 1 before a token are removed: class token (1, 1, d) -> (d,), position
    embeddings (1, n, d) -> (n, d).
    """
    renamed = {}
    for name, value in state.items():
        if not name.startswith(TRUNK):
            renamed[name] = value
            continue
        inside = name.removeprefix(TRUNK)
        for pattern, ours in NAMES.items():
            if re.match(pattern, inside):
                inside = re.sub(f"^{pattern}", ours, inside)
                break
        if inside == "positional_embedding":
            value = value[0]
        elif inside in {"class_embedding", "pool.latent"}:
            value = value[0, 0]
        renamed[f"visual.{inside}"] = value
    return renamed
