"""Models, batches and similarities small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL

T, S, J = 4, 12, 5
LABELS = ("jump over the beam", "turn", "split leap with a half turn")

_SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "image_size": 48,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "context_length": 16,
    "vocab_size": 400,
    "video_frames": T,
    "pose_frames": S,
    "joints": J,
    # Not sizes, but fields whose value in `mini` may change.
    "stem": "patch",
    "patch_size": 16,
    "image_mean": (0.48, 0.46, 0.41),
    "image_std": (0.27, 0.26, 0.28),
    "class_token": "learned",
    "flip_at_test": False,
    "pose_pool": "mean",
    "pose_layers": None,
    "dropout": 0.0,
    "quick_gelu": True,
    "semantic_loss": True,
    "contrast": "batch",
    "fine_temperature": 0.1,
    "branch_loss_weight": 0.5,
}
# The paper's model: a frozen base, all parts on, none of `mini`'s additions.
ON_CLIP: dict[str, Any] = {
    "base": "clip",
    "train_base": False,
    "pose_features": "xy",
    "branch_loss_weight": 0.0,
}
POSE_STEM: dict[str, Any] = {"stem": "pose", "patch_size": 32, "image_size": 96}


def tiny_config(**changes: Any) -> ModelConfig:
    """`mini` made tiny, with some fields set otherwise."""
    return ModelConfig.model_validate(CONFIGS["mini"].model_dump() | _SIZES | changes)


def tiny_model(seed: int = 0, stirred: bool = True, **changes: Any) -> PeVL:
    """A tiny model in evaluation mode; ``stirred``: what starts at zero is not zero any more."""
    torch.manual_seed(seed)
    model = PeVL(tiny_config(**changes))
    if stirred:
        stir(model)
    return model.eval()


def stir(model: nn.Module, strength: float = 0.3) -> None:
    """Give random values to parameters that start at zero, so that their parts do something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=strength)


def tiny_batch(clips: int = 3, seed: int = 0, has_video: Tensor | None = None) -> Batch:
    """Random pictures (uint8), and joints of which about one in seven is not visible."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, T, 3, 48, 48), generator=generator, dtype=torch.uint8)
    points = torch.rand(clips, S, J, 2, generator=generator)
    visible = (torch.rand(clips, S, J, 1, generator=generator) > 0.15).float()
    return Batch(frames, torch.cat([points * visible, visible], -1), has_video)


def unseen(joints: Tensor) -> Tensor:
    """The same joints, none of them visible."""
    return joints * torch.tensor([1.0, 1.0, 0.0])


def drawn_labels(
    clips: int, labels: int, temperature: float, seed: int = 0
) -> tuple[Tensor, list[int]]:
    """Similarities (N, C), and true labels drawn from softmax(S/τ): calibrated at τ."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(clips, labels, generator=generator) * 0.2
    scores = (similarity / temperature).softmax(1)
    return similarity, torch.multinomial(scores, 1, generator=generator)[:, 0].tolist()
