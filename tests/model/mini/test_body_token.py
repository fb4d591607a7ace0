"""The body token of `mini`: where it samples the image features."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny import (
    BODY,
    LABELS,
    S,
    T,
    features_of,
    tiny_config,
    tiny_model,
)
from torch import Tensor

from pevl_cli.model.features import Batch
from pevl_cli.model.mini.body_token import REACH, BodyToken

LEFT_ELBOW, LEFT_WRIST, RIGHT_WRIST = 7, 9, 10


def bodies(*places: tuple[int, float, float]) -> Tensor:
    """One clip in all of whose frames these joints are seen, by index, x and y."""
    joints = torch.zeros(1, S, 17, 3)
    for joint, x, y in places:
        joints[:, :, joint] = torch.tensor([x, y, 1.0])
    return joints


def looked_at(picture: Tensor, joints: Tensor) -> Tensor:
    """What a body token takes from maps (T, 4, h, w): of each joint, then each hand, (J + 2, 4)."""
    token = BodyToken(4, tiny_config(**BODY, width=8)).eval()
    torch.nn.init.eye_(token.look.weight)
    torch.nn.init.zeros_(token.look.bias)
    token.norm = torch.nn.Identity()  # type: ignore[assignment]
    entered: list[Tensor] = []
    token.mix.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        token([picture], joints[:, 1::3])
    parts = entered[0].unflatten(1, (19, 4))
    torch.testing.assert_close(parts, parts[..., :1].expand_as(parts))  # the same in all frames
    return parts[0, :, :, 0]


def test_a_body_token_sees_the_picture_at_each_joint_and_beyond_each_wrist() -> None:
    picture = torch.zeros(T, 4, 12, 12)
    picture[:, :, 3, 9] = 3.0  # its middle lies at x = 9.5 / 12, y = 3.5 / 12
    x, y = 9.5 / 12, 3.5 / 12
    seen = looked_at(picture, bodies((RIGHT_WRIST, x, y), (0, 0.2, 0.8), (5, x, 0.9)))
    expected = torch.zeros(19, 4)
    expected[RIGHT_WRIST] = torch.nn.functional.gelu(torch.tensor(3.0))
    torch.testing.assert_close(seen, expected)  # of an arm without elbow no hand is known
    away = 0.2  # a forearm, to the right
    wrist = x - REACH * away
    seen = looked_at(picture, bodies((LEFT_WRIST, wrist, y), (LEFT_ELBOW, wrist - away, y)))
    torch.testing.assert_close(seen[17], expected[RIGHT_WRIST])
    assert (seen[LEFT_WRIST] < seen[17]).all() and not seen[18].any()


def test_a_body_token_is_not_moved_by_joints_that_are_not_seen() -> None:
    model = tiny_model(**BODY)
    batch = Batch(torch.rand(1, T, 3, 96, 96), bodies((LEFT_WRIST, 0.3, 0.3), (0, 0.5, 0.1)))
    assert batch.joints is not None
    hidden = batch.joints.clone()
    hidden[:, :, 3, :2] = torch.nan
    texts = model.encode_text(LABELS)
    with torch.no_grad():
        before, after = model(batch, texts), model(replace(batch, joints=hidden), texts)
        torch.testing.assert_close(before, after)
        moved = batch.joints.clone()
        moved[:, :, 0, :2] += 0.2
        there = features_of(model, replace(batch, joints=moved)).video
    assert not torch.allclose(features_of(model, batch).video, there)  # type: ignore[arg-type]


def test_a_body_token_belongs_to_the_clip_with_the_video() -> None:
    """Clips without video before it do not shift whose joints are looked at."""
    model = tiny_model(**BODY)
    joints = torch.cat(
        [bodies((LEFT_WRIST, 0.9, 0.9)), bodies((LEFT_WRIST, 0.2, 0.1), (0, 0.4, 0.5))]
    )
    frames = torch.rand(2, T, 3, 96, 96)
    both = features_of(model, Batch(frames, joints, torch.tensor([False, True]))).video
    alone = features_of(model, Batch(frames[1:], joints[1:])).video
    assert both is not None and alone is not None
    torch.testing.assert_close(both[1], alone[0])


def test_without_joints_a_body_token_leaves_the_patches() -> None:
    model = tiny_model(**BODY)
    frames = torch.rand(1, T, 3, 96, 96)
    with torch.no_grad():
        plain = model.encode_video(frames)
        model.visual.body = None
        torch.testing.assert_close(plain, model.encode_video(frames))
