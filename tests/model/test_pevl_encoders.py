"""The encoders and refinements inside the model, against loops and hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    GRID,
    J,
    S,
    T,
    answer,
    features_of,
    hooked,
    near,
    tiny_batch,
    tiny_model,
    unseen,
)
from torch import Tensor

from pevl_cli.model.features import Batch, Texts
from pevl_cli.model.sgmc import fine_similarity
from pevl_cli.model.ucmr import patch_weights


def attend(block: Any, tokens: Tensor) -> Tensor:
    """What one row of tokens (n, d) tell each other in a block."""
    normed = block.ln_1(tokens)[None]
    out: Tensor = block.attn(normed, normed, normed)[0][0]
    return out


@torch.no_grad()
def test_pose_encoder_against_loops() -> None:
    """In each block a token attends over time, then within its frame, then goes through the MLP."""
    model, batch = tiny_model(), tiny_batch(1)
    assert batch.joints is not None
    x = model.pose_embedding(batch.joints)[0]
    assert x.shape == (S, 1 + J, 32)
    blocks: Any = model.visual.transformer.resblocks
    for block, adapters in zip(blocks, model.pose_adapters, strict=True):
        over_time = torch.stack([attend(block, x[:, g]) for g in range(1 + J)], 1)
        x = x + over_time + adapters["time"](over_time)  # type: ignore[index]
        x = torch.stack([block(frame[None], adapters)[0] for frame in x])
    entered, _ = hooked(model, model.v2p, batch)
    torch.testing.assert_close(entered[0], x[1::3, 1:], atol=1e-5, rtol=1e-4)


def test_p2v_gets_the_last_blocks_attention_at_the_middle_frames() -> None:
    """M: the class token's attention to each visible joint, mean of heads, on its patch."""
    model, batch = tiny_model(), tiny_batch()
    assert batch.joints is not None
    attention: Any = model.visual.transformer.resblocks[-1]
    entered: list[Tensor] = []
    # Pose tokens enter the attention twice in each block: over time, then within the frame.
    handle = attention.attn.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    _, weights = hooked(model, model.p2v["1"], batch)
    handle.remove()
    within = [x for x in entered if x.shape[:2] == (3 * S, 1 + J)]
    assert len(within) == 1
    with torch.no_grad():
        heads_mean = attention.attn(within[0], within[0], within[0], need_weights=True)[1]
    to_joints = heads_mean[:, 0, 1:].unflatten(0, (3, S))
    middle = list(range(1, S, 3))
    points, visible = batch.joints[:, middle, :, :2], batch.joints[:, middle, :, 2]
    expected = patch_weights(points, to_joints[:, middle] * visible, (GRID, GRID))
    assert weights.shape == (3, T, GRID * GRID)
    torch.testing.assert_close(weights, expected)


def test_patches_of_joints_are_the_patches_of_the_picture() -> None:
    """A joint seen in the middle frame of a triple points P2V at its patch of that picture."""
    model = tiny_model()
    joints = torch.zeros(1, S, J, 3)
    joints[0, 4, 2] = torch.tensor([0.9, 0.1, 1.0])  # middle of the second triple: upper right
    joints[0, 6, 2] = torch.tensor([0.1, 0.9, 1.0])  # first of the third triple
    _, weights = hooked(model, model.p2v["1"], Batch(tiny_batch(1).frames, joints))
    expected = torch.zeros(1, T, GRID, GRID)
    expected[0, 1, 0, 2] = 1
    torch.testing.assert_close(weights.unflatten(-1, (GRID, GRID)), expected)


@pytest.mark.parametrize("class_token", ["learned", "body"])
def test_patch_tokens_are_row_major(class_token: str) -> None:
    """A change in one corner of the picture shows in that patch's token most."""
    model = tiny_model(class_token=class_token, joints=17)
    frames = torch.full((1, T, 3, 48, 48), 0.5)
    changed = frames.clone()
    changed[:, :, :, 4:12, 36:44] = 1.0  # upper right
    with torch.no_grad():
        moved = model.visual.embed([changed]) - model.visual.embed([frames])
    per_patch = moved[0, 1:].norm(dim=-1)
    assert (moved[0, 0].abs().max() > 1e-5) == (class_token == "body")
    assert per_patch.argmax() == 2


def test_v2p_refines_the_middle_frames_and_leaves_the_rest() -> None:
    model, batch = tiny_model(), tiny_batch()
    with_v2p = features_of(model, batch).frames
    pose, patches = hooked(model, model.v2p, batch)
    assert pose.shape == (3, T, J, 32) and patches.shape == (3, T, GRID * GRID, 32)
    with torch.no_grad():
        model.v2p.out.weight.zero_()
        model.v2p.out.bias.zero_()
    without = features_of(model, batch).frames
    assert with_v2p is not None and without is not None
    changed = (with_v2p - without).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [i % 3 == 1 for i in range(S)]


def test_unseen_frames_are_left_out_of_the_mean() -> None:
    model, batch = tiny_model(), tiny_batch()
    assert batch.joints is not None
    batch.joints[0, 5:] = 0
    features = features_of(model, batch)
    assert features.seen is not None and features.pose is not None and features.frames is not None
    assert features.seen[0].tolist() == [True] * 5 + [False] * (S - 5)
    texts = Texts(torch.eye(24), torch.eye(24)[:, None], torch.ones(24, 1, dtype=torch.bool))
    with torch.no_grad():
        parts = model.similarities(features, texts)
    expected = fine_similarity(features.frames[:1, :5], texts.words, temperature=0.1)
    torch.testing.assert_close(parts["fw"][:1], expected)
    scaled = features.frames[:1, :5].mean(1)  # near the direction of P, whose frames have lengths
    assert F.cosine_similarity(scaled, features.pose[:1]) > 0.97


def test_without_pose_layers_a_frame_knows_only_its_neighbours() -> None:
    """Two convolutions over five frames each reach four frames; attention reaches all."""
    both = {"pose_features": "body", "p2v": True, "v2p": False}
    batch = tiny_batch(1)
    assert batch.joints is not None
    moved = batch.joints.clone()
    moved[:, -1, :, :2] = moved[:, -1, :, :2].flip(-1)  # as large as before
    for layers, frames in ((0, list(range(S - 5, S))), (1, list(range(S))), (None, list(range(S)))):
        model = tiny_model(pose_layers=layers, **both)
        assert len(model.pose_adapters) == (2 if layers is None else layers)
        a, b = (features_of(model, Batch(batch.frames, j)).frames for j in (batch.joints, moved))
        assert a is not None and b is not None
        changed = (a - b).abs().amax((0, 2)).gt(1e-5).nonzero().flatten().tolist()
        assert changed == frames
    # Where the joints are still guides the video.
    model = tiny_model(pose_layers=0, **both)
    moved[:, -2, :, :2] = moved[:, -2, :, :2].flip(-1)  # the middle frame of the last triple
    v, w = (features_of(model, Batch(batch.frames, j)).video for j in (batch.joints, moved))
    assert v is not None and w is not None and not torch.equal(v, w)


def test_the_largest_of_the_seen_frames_makes_the_pose() -> None:
    """Frames in which nobody is seen are there too, and count for nothing."""
    model = tiny_model(pose_pool="max", video=False, similarities=("ps",))
    batch = tiny_batch(1)
    assert batch.joints is not None
    joints = batch.joints.clone()
    joints[:, 5:] = unseen(joints[:, 5:])
    taken: list[Tensor] = []
    project = model.visual.project
    model.visual.project = lambda x: taken.append(project(x)) or taken[-1]  # type: ignore[assignment]
    features = model.encode(Batch(None, joints))
    expected = F.normalize(taken[-1][:, :5].amax(1), dim=-1)
    torch.testing.assert_close(features.pose, expected)


@pytest.mark.parametrize("layers", [(0,), ()])
def test_p2v_layers_act_where_they_stand(layers: tuple[int, ...]) -> None:
    model, batch = tiny_model(p2v_layers=layers), tiny_batch()
    assert list(model.p2v) == [*map(str, layers), "1"]
    before = answer(model, batch)
    places: list[Any] = list(model.p2v.values())
    for refinement in places:
        untouched = copy.deepcopy(refinement.state_dict())
        with torch.no_grad():
            refinement.out.bias += torch.randn(32)
        assert not near(answer(model, batch), before)
        refinement.load_state_dict(untouched)
