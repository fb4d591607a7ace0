"""Joints to tokens: coordinates, body features, heatmaps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    answer,
    near,
    tiny_batch,
    tiny_model,
)

from pevl_cli.model.pose_embedding import heatmaps


@pytest.mark.parametrize("pose_features", ["xy", "body", "heatmap"])
@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -7.0,
        1e6,
        float("nan"),
        float("inf"),
    ],
)
def test_an_invisible_joints_coordinates_do_not_matter(pose_features: str, value: float) -> None:
    model = tiny_model(pose_features=pose_features, p2v=pose_features != "heatmap")
    batch = tiny_batch()
    assert batch.joints is not None
    joints = batch.joints.clone()
    hidden = joints[..., 2] == 0
    assert hidden.any()
    joints[..., :2][hidden] = value
    assert near(answer(model, replace(batch, joints=joints)), answer(model, batch))


@pytest.mark.parametrize("pose_features", ["xy", "body", "heatmap"])
def test_a_visible_joints_coordinates_matter(pose_features: str) -> None:
    model, batch = tiny_model(pose_features=pose_features, video=False), tiny_batch()
    assert batch.joints is not None
    joints = batch.joints.clone()
    joints[..., 0] = (joints[..., 0] + 0.4 * joints[..., 2]) % 1
    assert not near(answer(model, replace(batch, joints=joints)), answer(model, batch))


@pytest.mark.parametrize("pose_features", ["xy", "body", "heatmap"])
def test_order_of_pose_frames_matters(pose_features: str) -> None:
    model, batch = tiny_model(pose_features=pose_features, video=False), tiny_batch()
    assert batch.joints is not None
    backwards = replace(batch, joints=batch.joints.flip(1))
    assert not near(answer(model, backwards), answer(model, batch))


def test_a_heatmap_has_its_peak_at_the_joint_and_nothing_where_none_is_seen() -> None:
    joints = torch.zeros(1, 2, 3, 3)
    joints[0, 0, 1] = torch.tensor([0.25, 0.75, 1.0])
    joints[0, 1, 2] = torch.tensor([float("nan"), 0.5, 0.0])
    maps = heatmaps(joints)
    assert maps.shape == (1, 2, 3, 112, 112)
    row, column = divmod(int(maps[0, 0, 1].argmax()), 112)
    assert (row, column) in {(83, 27), (83, 28), (84, 27), (84, 28)}
    assert 0.8 < float(maps[0, 0, 1].max()) <= 1
    # Small: all of it lies within four standard deviations.
    assert float(maps[0, 0, 1, 79:89, 23:33].sum()) > 0.999 * float(maps.sum())
    maps[0, 0, 1] = 0
    assert not maps.any()


def test_body_features_keep_their_size_wherever_the_body_is() -> None:
    """Moved or seen from farther away, "body" says the same of each joint but where it is."""
    model, batch = tiny_model(pose_features="body", video=False), tiny_batch()
    assert batch.joints is not None
    with torch.no_grad():
        model.pose_embedding.joint.weight[:, :3] = 0
    visible = batch.joints[..., 2:]
    farther = torch.cat([(batch.joints[..., :2] * 0.5 + 0.3) * visible, visible], -1)
    before, after = answer(model, batch), answer(model, replace(batch, joints=farther))
    # Steps are in units of the picture times the size, so all is relative to the body.
    assert torch.allclose(before, after, atol=1e-4)
