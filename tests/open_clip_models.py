"""open_clip's own models, small enough for a test, and PeVL with their weights."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from tiny import ON_CLIP, tiny_config
from torch import Tensor, nn
from torchvision.transforms import Normalize

from pevl_cli.model.config import ModelConfig
from pevl_cli.model.pevl import PeVL

NAME, CONFIG_NAME = "ViT-Tiny-16", "vit-tiny-16"  # NAME-quickgelu: with OpenAI's activation
GEOMETRY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}
TEXTS = [
    "Leg separation 180 degree on the diagonal to the floor, a video of gymnastic action",
    "turn",
    "don't \u00fcber-rotate (3.5 somersaults)",
]


def clip_config(**changes: Any) -> ModelConfig:
    return tiny_config(
        **ON_CLIP
        | {
            "name": CONFIG_NAME,
            "layers": 3,
            "context_length": 77,
            "vocab_size": 49408,
            "tokenizer": "clip",
        }
        | changes
    )


def tiny_clip(quick_gelu: bool) -> open_clip.CLIP:
    torch.manual_seed(1)
    clip = open_clip.CLIP(
        GEOMETRY["embed_dim"],
        open_clip.CLIPVisionCfg(**GEOMETRY["vision_cfg"]),
        open_clip.CLIPTextCfg(**GEOMETRY["text_cfg"]),
        quick_gelu=quick_gelu,
    )
    return livelier(clip)


def livelier(clip: nn.Module) -> Any:
    """Untrained norms and biases are all 1 or 0, which would hide that one is left out.

    Frozen like our towers: torch chooses another matrix product, with other rounding, for weights
    that require a gradient.
    """
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.ndim == 1 and name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return clip.eval().requires_grad_(False)


def with_weights(config: ModelConfig, state: dict[str, Tensor]) -> PeVL:
    model = PeVL(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith(("visual.", "text."))]
    return model.eval()


def class_tokens(model: PeVL, frames: Tensor) -> Tensor:
    """The video branch's answer to each frame, in the joint space."""
    return model.visual.project(model.encode_video(frames)[:, :, 0])


def image_features(clip: Any, frames: Tensor, config: ModelConfig) -> Tensor:
    pictures = Normalize(config.image_mean, config.image_std)(frames.flatten(0, 1))
    features: Tensor = clip.encode_image(pictures)
    return features.unflatten(0, frames.shape[:2])
