"""Which parts of a model fit together, and which do not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tiny import POSE_STEM, T, tiny_config

from pevl_cli.model.config import CONFIGS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": False, "pose": False}, "needs video or pose"),
        ({"text": False}, "classes must be"),
        ({"pose": False, "similarities": ("ps", "fw")}, "none of the similarities"),
        ({"pose_features": "heatmap"}, "p2v needs joint tokens"),
        ({"pose_frames": 3 * T + 1}, "three times video_frames"),
        ({"image_size": 50}, "multiple of patch_size"),
        ({"heads": 5}, "heads must divide width"),
        ({"stem": "pose"}, "needs patch_size 32"),
        ({"stem": "i3d", "patch_size": 32, "image_size": 96}, "multiple of 8 video_frames"),
        ({"pose_layers": 3}, "pose_layers must be from 0 to 2"),
        ({"pose_layers": 0, "pose_features": "xy"}, "pose_layers=0 needs pose_features"),
        ({"p2v_layers": (2,)}, "p2v_layers must name blocks from 0 to 1"),
        ({"base": "clip", **POSE_STEM}, "needs stem 'patch'"),
        ({"base": "none", "train_base": False}, "train_base=true"),
        ({"tower": "pe"}, "tower 'pe' needs trained_grid"),
        ({"tower": "siglip"}, "embed_dim must be width"),
        ({"tower": "pe", "class_token": "body", "trained_grid": 3}, "needs stem 'patch'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_such_field": 1},
        {"base": "mini"},
        {"stem": "convolution"},
        # Removed: nobody measured a gain for them.
        {"frozen_base": False},
        {"stem": "conv3d"},
        {"class_token": "patches"},
        {"crop": "actor"},
        {"video_temporal": False},
    ],
)
def test_fields_and_values_that_do_not_exist_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(changes))}"):
        tiny_config(**changes)


def test_a_base_is_kept_or_trained() -> None:
    for train_base in (False, True):
        assert tiny_config(base="clip", train_base=train_base).train_base is train_base
    for name, config in CONFIGS.items():
        expected = ("none", True) if name.startswith("mini") else ("clip", False)
        assert (config.base, config.train_base) == expected


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        CONFIGS["mini"].width = 64
