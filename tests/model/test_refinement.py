"""Eq. (1) and Eq. (2) in the whole model: every query and every frame's patches reach S."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import GRID, LABELS, J, S, T, features_of, hooked, near, tiny_batch, tiny_model
from torch import Tensor

from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL

CLIPS = 2
PATCHES = GRID * GRID


@pytest.fixture
def model() -> PeVL:
    return tiny_model().double()


@pytest.fixture
def batch() -> Batch:
    """All joints are visible, inside the view, in every frame."""
    batch = tiny_batch(CLIPS)
    assert batch.joints is not None
    joints = torch.rand(batch.joints.shape, dtype=torch.float64)
    joints[..., 2] = 1
    return replace(batch, joints=joints)


# Equation -> the number of its queries in a frame: class token and patches; joints and background.
QUERIES = {"p2v": 1 + PATCHES, "v2p": J + 1}


def query_layer(model: PeVL, equation: str) -> torch.nn.Module:
    refinement = model.p2v["1"] if equation == "p2v" else model.v2p
    layer = refinement.query
    assert isinstance(layer, torch.nn.Module)
    return layer


@pytest.mark.parametrize("equation", QUERIES)
def test_every_query_has_a_gradient(model: PeVL, batch: Batch, equation: str) -> None:
    queries: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> None:
        output.retain_grad()
        queries.append(output)

    query_layer(model, equation).register_forward_hook(keep)
    loss, _ = model.loss(batch, model.encode_text(LABELS), torch.arange(CLIPS))
    loss.backward()
    (query,) = queries
    assert query.shape == (CLIPS, T, QUERIES[equation], 32)
    assert query.grad is not None
    assert (query.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("equation", QUERIES)
def test_s_changes_when_any_query_is_replaced(model: PeVL, batch: Batch, equation: str) -> None:
    def s_with(query: int | None) -> Tensor:
        def replace_query(_: object, __: object, output: Tensor) -> Tensor:
            if query is None:
                return output
            changed = output.clone()
            changed[:, :, query] = output[:, :, query].flip(-1)
            return changed

        handle = query_layer(model, equation).register_forward_hook(replace_query)
        with torch.no_grad():
            s = model(batch, model.encode_text(LABELS))
        handle.remove()
        return s

    as_it_is = s_with(None)
    for query in range(QUERIES[equation]):
        assert ((s_with(query) - as_it_is).abs() > 0).all(), query


def test_v2p_looks_at_the_refined_patches(model: PeVL, batch: Batch) -> None:
    video, weights = hooked(model, model.p2v["1"], batch)
    _, patches = hooked(model, model.v2p, batch)
    with torch.no_grad():
        torch.testing.assert_close(patches, model.p2v["1"](video, weights)[:, :, 1:])


def test_f_pools_class_token_seen_joints_and_background(model: PeVL, batch: Batch) -> None:
    assert batch.joints is not None
    batch.joints[0, :, 3, 2] = 0
    pose, patches = hooked(model, model.v2p, batch)
    features = features_of(model, batch)
    with torch.no_grad():
        _, whole, _ = model._encode(batch.frames, batch.joints, None)
        assert whole is not None
        added = model.v2p(pose, patches)
        background = model.v2p.background + added[:, :, -1]
        for clip, seen in ((0, [0, 1, 2, 4]), (1, range(J))):
            for frame in range(S):
                tokens = [whole[clip, frame, 0], *(whole[clip, frame, 1 + j] for j in seen)]
                middle, offset = divmod(frame, 3)
                if offset == 1:
                    tokens[1:] = [pose[clip, middle, j] + added[clip, middle, j] for j in seen]
                    tokens.append(background[clip, middle])
                expected = model.visual.project(torch.stack(tokens).mean(0))
                actual = features.frames
                assert actual is not None
                torch.testing.assert_close(actual[clip, frame], F.normalize(expected, dim=-1))


def test_a_clip_without_video_has_no_background(model: PeVL, batch: Batch) -> None:
    without = replace(batch, has_video=torch.tensor([True, False]))
    features, pose_only = (
        features_of(model, without),
        features_of(model, replace(batch, frames=None)),
    )
    assert features.frames is not None and pose_only.frames is not None
    torch.testing.assert_close(features.frames[1], pose_only.frames[1])
    assert not near(features.frames[0].float(), pose_only.frames[0].float())


def test_without_pose_blocks_all_visible_joints_weigh_the_same() -> None:
    model = tiny_model(pose_layers=0, pose_features="body")
    joints = torch.zeros(1, S, J, 3)
    joints[..., 0, :] = torch.tensor([0.1, 0.1, 1.0])
    joints[..., 1, :] = torch.tensor([0.9, 0.9, 1.0])
    _, weights = hooked(model, model.p2v["1"], Batch(tiny_batch(1).frames, joints))
    expected = torch.zeros(1, T, PATCHES)
    expected[..., 0] = expected[..., -1] = 0.5
    torch.testing.assert_close(weights, expected)


def test_the_old_pooling_reads_the_class_token_only() -> None:
    """As in pevl-mini: V2P's joints have no say, the background flows into the class token."""
    model, batch = tiny_model(frame_pool="class"), tiny_batch()
    pose, patches = hooked(model, model.v2p, batch)
    video, _ = hooked(model, model.p2v["1"], batch)
    torch.testing.assert_close(patches, video[:, :, 1:])
    with torch.no_grad():
        added = model.v2p(pose, patches)
        class_token = pose[:, :, 0] + added[:, :, 0] + added[:, :, -1]
        expected = F.normalize(model.visual.project(class_token), dim=-1)
    features = features_of(model, batch)
    assert features.frames is not None
    torch.testing.assert_close(features.frames[:, 1::3], expected)
