"""Models, batches and similarities small enough for a test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Batch, Features
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
BODY: dict[str, Any] = {**POSE_STEM, "class_token": "body", "joints": 17}
GRID = 3  # patches a side
ALL_KINDS = {"vs", "ps", "fw"}
# Changed fields, and the similarities that the model then has.
SWITCHES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "mini": ({}, ALL_KINDS),
    "on clip": (ON_CLIP, ALL_KINDS),
    "no video": ({"video": False}, {"ps", "fw"}),
    "no pose": ({"pose": False}, {"vs"}),
    "no text": ({"text": False, "classes": 3}, {"vs", "ps"}),
    "no text, no pose": ({"text": False, "classes": 3, "pose": False}, {"vs"}),
    "no video adapters": ({"video_adapters": False}, ALL_KINDS),
    "no pose adapters": ({"pose_adapters": False}, ALL_KINDS),
    "no text adapters": ({"text_adapters": False}, ALL_KINDS),
    "trained on clip": (ON_CLIP | {"train_base": True}, ALL_KINDS),
    "no p2v": ({"p2v": False}, ALL_KINDS),
    "no v2p": ({"v2p": False}, ALL_KINDS),
    "no ucmr": ({"p2v": False, "v2p": False, "refinement_loss": False}, ALL_KINDS),
    "p2v in two places": ({"p2v_layers": (0,)}, ALL_KINDS),
    "p2v last named": ({"p2v_layers": (0, 1)}, ALL_KINDS),
    "no refinement loss": ({"refinement_loss": False}, ALL_KINDS),
    "vs": ({"similarities": ("vs",)}, {"vs"}),
    "ps": ({"similarities": ("ps",)}, {"ps"}),
    "fw": ({"similarities": ("fw",)}, {"fw"}),
    "vs ps": ({"similarities": ("vs", "ps")}, {"vs", "ps"}),
    "ps fw": ({"similarities": ("ps", "fw")}, {"ps", "fw"}),
    "concat": ({"similarities": ("concat",)}, {"concat"}),
    "projected video": ({"similarities": ("concat",), "pose": False}, {"concat"}),
    "projected pose": ({"similarities": ("concat",), "video": False}, {"concat"}),
    "heatmap": ({"pose_features": "heatmap", "video": False}, {"ps", "fw"}),
    "heatmap beside video": ({"pose_features": "heatmap", "p2v": False}, ALL_KINDS),
    "vanilla contrast": ({"semantic_loss": False}, ALL_KINDS),
    "xy": ({"pose_features": "xy"}, ALL_KINDS),
    "branch losses": ({"branch_loss_weight": 0.7}, ALL_KINDS),
    "gelu": ({"quick_gelu": False}, ALL_KINDS),
}
SWITCHED = pytest.mark.parametrize("name", SWITCHES)


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


@torch.no_grad()
def answer(model: PeVL, batch: Batch, labels: tuple[str, ...] = LABELS) -> Tensor:
    """S (N, C), without gradients."""
    return model(batch, model.encode_text(labels))


@torch.no_grad()
def features_of(model: PeVL, batch: Batch) -> Features:
    """The features of a batch, without gradients."""
    return model.encode(batch)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=0)


def no_nan(model: PeVL) -> bool:
    """Whether all gradients are finite."""
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def hooked(model: PeVL, module: torch.nn.Module, batch: Batch) -> tuple[Any, ...]:
    """The arguments of the last call of a module of the model."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    features_of(model, batch)
    handle.remove()
    return calls[-1]
