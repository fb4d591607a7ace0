"""What a frozen stem made of frames gives the same as the frames, apart from half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import BODY, S, features_of, tiny_batch, tiny_model

from pevl_cli.data.samples import collate
from pevl_cli.model.features import Batch
from pevl_cli.model.mini.stem import I3DStem, frozen_network

I3D_STEM: dict[str, Any] = {
    "stem": "i3d",
    "patch_size": 32,
    "image_size": 64,
    "video_frames": 8,
    "pose_frames": 24,
    "class_token": "body",
    "layout": "coco13",
    "joints": 13,
}


def batch_of(kind: str) -> tuple[dict[str, Any], Batch]:
    if kind == "pose":
        batch = tiny_batch(has_video=torch.tensor([True, False, True]))
        joints = torch.rand(3, S, 17, 3).round()
        return BODY, Batch(torch.randint(0, 256, (3, 4, 3, 96, 96)).byte(), joints, batch.has_video)
    frames = torch.randint(0, 256, (2, 8, 3, 64, 64)).byte()
    return I3D_STEM, Batch(frames, torch.rand(2, 24, 13, 3).round(), torch.tensor([True, False]))


@pytest.mark.parametrize("kind", ["pose", "i3d"])
@torch.no_grad()
def test_observed_frames_give_the_same_features(kind: str) -> None:
    torch.manual_seed(0)
    changes, batch = batch_of(kind)
    model = tiny_model(**changes)
    observed = model.observe(batch)
    assert observed.frames is None and observed.observed is not None
    assert all(part.dtype == torch.float16 for part in observed.observed)
    assert model.observe(observed) is observed
    expected, found = features_of(model, batch), features_of(model, observed)
    for name in ("video", "pose"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=5e-3, rtol=5e-3
        )


def test_an_i3d_stem_is_frozen_unless_it_is_trained_and_then_only_its_late_blocks() -> None:
    frozen = tiny_model(**I3D_STEM).visual.conv1
    assert isinstance(frozen, I3DStem) and frozen_network(frozen) is frozen.trunk
    assert not any(p.requires_grad for p in frozen.trunk.parameters())
    assert all(p.requires_grad for p in frozen.mix.parameters())
    trained = tiny_model(**I3D_STEM, train_stem=True).visual.conv1
    assert isinstance(trained, I3DStem) and frozen_network(trained) is None
    learns = {n.split(".")[1] for n, p in trained.trunk.named_parameters() if p.requires_grad}
    assert "Mixed_4b" in learns and "Mixed_5c" in learns
    assert not learns & {"Mixed_3b", "Mixed_3c", "weight"}


def test_a_clip_without_video_stands_beside_observed_ones() -> None:
    part = (torch.ones(1, 2, 3).half(),)
    with_video = Batch(None, torch.ones(1, S, 5, 3), torch.tensor([True]), part)
    without = Batch(None, torch.ones(1, S, 5, 3))
    both = collate([without, with_video])
    assert both.observed is not None and both.has_video is not None
    assert both.has_video.tolist() == [False, True]
    assert not both.observed[0][0].any() and both.observed[0][1].all()
