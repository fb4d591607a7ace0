"""The measures of a body: the same wherever the camera stands, and only of what is seen."""

from __future__ import annotations

import math

import torch
from tiny import S, tiny_config
from torch import Tensor

from pevl_cli.model.body_streams import BodyMeasures, BodyStreams
from pevl_cli.pose.skeletons import LAYOUTS

J = 13  # of layout coco13


def walking(seed: int = 0) -> Tensor:
    """Joints (2, S, J, 3) in the middle of the view, some not visible."""
    generator = torch.Generator().manual_seed(seed)
    place = 0.4 + 0.2 * torch.rand(2, 1, J, 2, generator=generator)
    moves = 0.02 * torch.randn(2, S, J, 2, generator=generator)
    visible = (torch.rand(2, S, J, 1, generator=generator) > 0.2).float()
    return torch.cat([(place + moves) * visible, visible], -1)


def streams() -> BodyStreams:
    torch.manual_seed(0)
    return BodyStreams(tiny_config(joints=J, layout="coco13")).eval()


@torch.no_grad()
def test_place_and_distance_of_the_camera_change_nothing() -> None:
    network, joints = streams(), walking()
    moved = joints.clone()
    moved[..., :2] = (1.5 * joints[..., :2] - 0.2) * joints[..., 2:]
    torch.testing.assert_close(
        network(BodyMeasures(moved)), network(BodyMeasures(joints)), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_other_movement_changes_the_streams() -> None:
    network, joints = streams(), walking()
    still = joints.clone()
    still[:, 1:, :, :2] = joints[:, :1, :, :2]
    change = (network(BodyMeasures(still)) - network(BodyMeasures(joints))).abs().mean()
    assert change > 0.01


def test_values_of_unseen_joints_are_zero() -> None:
    joints = walking()
    joints[:, :, 3] = 0
    measures = BodyMeasures(joints)
    assert not measures.relative[:, :, 3].any()
    assert not measures.offsets[:, :, 3].any() and not measures.offsets[:, :, :, 3].any()
    for motion in (measures.motion, measures.relative_motion):
        assert not any(values[:, :, 3].any() for values in motion.values())


def test_a_displacement_is_over_its_lag_in_sizes_of_the_body() -> None:
    joints = torch.ones(1, S, J, 3) * 0.5
    joints[..., 2] = 1
    joints[0, :, :, 0] += torch.linspace(-0.1, 0.1, J)
    joints[0, :, :, 1] += 0.01 * torch.arange(S)[:, None]
    measures = BodyMeasures(joints)
    size = joints[0, 0, :, 0].sub(0.5).square().mean().sqrt()
    torch.testing.assert_close(measures.size.squeeze(), size)
    expected = 2 * 0.03 / math.sqrt(3) / size
    torch.testing.assert_close(measures.motion[3][0, 5, 2, 1], expected)
    assert not measures.motion[3][0, :3].any()  # there is no frame three before
    assert measures.relative_motion[3].abs().max() < 1e-5  # the body does not change


@torch.no_grad()
def test_angles_are_those_of_elbows_shoulders_hips_and_knees() -> None:
    layout = LAYOUTS["coco13"]
    network = streams()
    assert len(network.angles) == 8
    joints = torch.zeros(1, 4, J, 3)
    for name, place in (("shoulder", (0.4, 0.3)), ("elbow", (0.4, 0.5)), ("wrist", (0.6, 0.5))):
        joints[:, :, layout.names.index(f"left_{name}")] = torch.tensor([*place, 1.0])
    turns = network._turns(BodyMeasures(joints).offsets)
    number = [layout.names[a[0]] for a in network.angles].index("left_elbow")
    torch.testing.assert_close(turns[0, 0, number], torch.tensor([0.0, 1.0]), atol=1e-2, rtol=0)
