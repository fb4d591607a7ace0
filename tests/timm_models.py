"""open_clip's own models with timm image towers, made small."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip_models import livelier
from tiny import ON_CLIP, tiny_config

from pevl_cli.model.config import ModelConfig

# Config -> open_clip's name.
NAMES = {
    "pe-core-b-16": "PE-Core-B-16",
    "pe-core-l-14": "PE-Core-L-14-336",
    "siglip2-b-16": "ViT-B-16-SigLIP2",
}
VOCABULARY = 49408  # SigLIP 2's has five times as many


def open_clip_model(
    name: str, monkeypatch: pytest.MonkeyPatch, text: dict[str, int], **trunk: Any
) -> open_clip.CustomTextCLIP:
    """open_clip's model ``name`` with other sizes: timm's for the image tower, and ``text``."""
    given = open_clip.get_model_config(name)
    given.pop("custom_text")
    given["text_cfg"] |= {"vocab_size": VOCABULARY} | text
    given["vision_cfg"]["image_size"] = trunk.get("img_size", given["vision_cfg"]["image_size"])
    if "embed_dim" in trunk:
        given["embed_dim"] = 24 if "PE" in name else trunk["embed_dim"]
    create = timm.create_model
    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", lambda *a, **options: create(*a, **options, **trunk))
        torch.manual_seed(2)
        model = livelier(open_clip.CustomTextCLIP(**given))
    with torch.no_grad():  # timm's initial matrices are so small that the blocks do next to nothing
        for parameter in model.visual.parameters():
            if parameter.ndim > 1:
                single = parameter.shape[0] == 1  # class token, positions, query of the pooling
                parameter.normal_(std=0.5 if single else parameter[0].numel() ** -0.5)
    return model


def tiny_open_clip_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[open_clip.CustomTextCLIP, ModelConfig]:
    """A tiny model of this kind, and our config for it."""
    pe = "PE" in name
    trunk: dict[str, Any] = {"img_size": 48, "embed_dim": 32, "depth": 3, "num_heads": 4}
    if pe:
        trunk["ref_feat_shape"] = (3, 3)
    text = {"width": 16, "heads": 2, "layers": 2, "context_length": 12}
    config = tiny_config(
        **ON_CLIP
        | {
            "name": name,
            "tower": "pe" if pe else "siglip",
            "embed_dim": 24 if pe else 32,
            "layers": 3,
            "context_length": 12,
            "vocab_size": VOCABULARY,
            "tokenizer": "clip" if pe else "gemma",
            "quick_gelu": False,
            "trained_grid": 3 if pe else 0,
        }
    )
    return open_clip_model(name, monkeypatch, text, **trunk), config
