"""The sizes of the two towers: those of a config, and those that weights have."""

from __future__ import annotations

import re
from math import isqrt

from torch import Tensor

from pevl_cli.model.config import ModelConfig

Sizes = dict[str, int | str]  # field of ModelConfig -> its value
# Without the image size: position embeddings can be interpolated.
FIELDS = (
    *("tower", "patch_size", "width", "layers", "embed_dim"),
    *("text_width", "text_layers", "context_length", "vocab_size"),
)


def state_sizes(state: dict[str, Tensor]) -> Sizes:
    """The sizes of the towers with these weights (names `visual.…`, `text.…`).

    KeyError or IndexError if they are no towers' weights.
    """

    def layers(tower: str) -> int:
        blocks = (re.match(rf"{tower}\.transformer\.resblocks\.(\d+)\.", name) for name in state)
        return len({block[1] for block in blocks if block})

    patches, words = state["visual.conv1.weight"], state["text.token_embedding.weight"]
    tower, embed_dim = "siglip", patches.shape[0]
    if "visual.head.weight" in state:
        tower, embed_dim = "pe", state["visual.head.weight"].shape[0]
    elif "visual.pool.latent" not in state:
        tower, embed_dim = "clip", state["visual.proj"].shape[1]
    return {
        "tower": tower,
        "patch_size": patches.shape[3],
        "width": patches.shape[0],
        "layers": layers("visual"),
        "embed_dim": embed_dim,
        "text_width": words.shape[1],
        "text_layers": layers("text"),
        "context_length": state["text.positional_embedding"].shape[0],
        "vocab_size": words.shape[0],
    }


def prefix_tokens(state: dict[str, Tensor]) -> int:
    """Number of class tokens before the patches."""
    return int("visual.class_embedding" in state)


def image_size(state: dict[str, Tensor]) -> int:
    """Side in px of the square image for which the position embeddings are."""
    grid = isqrt(len(state["visual.positional_embedding"]) - prefix_tokens(state))
    return grid * state["visual.conv1.weight"].shape[3]


def config_sizes(config: ModelConfig) -> Sizes:
    """The sizes of a config."""
    return {field: getattr(config, field) for field in FIELDS}


def difference(sizes: Sizes, expected: Sizes) -> str:
    """Which sizes are not as expected, in words; empty if all are. Sizes not given are left out."""
    return ", ".join(
        f"its {field} is {sizes[field]}, not {expected[field]}"
        for field in FIELDS
        if field in sizes and field in expected and sizes[field] != expected[field]
    )
