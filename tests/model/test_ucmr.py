from __future__ import annotations

import math

import pytest
import torch
from tiny import stir
from torch import Tensor

from pevl_cli.model.ucmr import (
    PoseGuidedVideo,
    VideoEnrichedPose,
    patch_weights,
    pose_guided_attention,
)

torch.set_num_threads(1)
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# --- M: the body's weight on each patch -----------------------------------------------------------


def slow_patch_weights(
    joints: list[list[float]], weights: list[float], rows: int, columns: int
) -> list[float]:
    patches = [0.0] * (rows * columns)
    for (x, y), weight in zip(joints, weights, strict=True):
        if not (0 <= x <= 1 and 0 <= y <= 1):  # also where either is NaN
            continue
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        patches[row * columns + column] += weight
    total = sum(patches)
    return [p / total if total else 0.0 for p in patches]


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (14, 14)])
def test_patch_weights_against_loops(grid: tuple[int, int]) -> None:
    joints = torch.rand(40, 7, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(40, 7, dtype=torch.float64) * (torch.rand(40, 7) > 0.3)
    joints[0, :, 0] = -0.2  # nobody inside
    weights[1] = 0
    actual = patch_weights(joints, weights, grid)
    expected = [
        slow_patch_weights(j, w, *grid)
        for j, w in zip(joints.tolist(), weights.tolist(), strict=True)
    ]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    used = actual.sum(-1)
    assert not used[:2].any()
    assert torch.allclose(used[used > 0], torch.ones_like(used[used > 0]))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_patch_weights_leading_dimensions_are_free(lead: tuple[int, ...]) -> None:
    joints, weights = torch.rand(*lead, 4, 2), torch.rand(*lead, 4)
    actual = patch_weights(joints, weights, (2, 3))
    assert actual.shape == (*lead, 6)
    last = joints.reshape(-1, 4, 2)[-1], weights.reshape(-1, 4)[-1]
    torch.testing.assert_close(actual.reshape(-1, 6)[-1], patch_weights(*last, (2, 3)))


def test_patches_are_counted_along_rows() -> None:
    right_of_the_top_row = torch.tensor([[0.9, 0.1]])
    actual = patch_weights(right_of_the_top_row, torch.ones(1), (2, 3))
    assert actual.tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("joint", "patch"),
    [
        ((0.0, 0.0), 0),
        ((1.0, 0.0), 2),
        ((0.0, 1.0), 3),
        ((1.0, 1.0), 5),
        ((1 - 1e-7, 1 - 1e-7), 5),
        ((-1e-6, 0.5), None),
        ((0.5, 1 + 1e-6), None),
        ((7.0, -3.0), None),
        ((NAN, 0.5), None),
        ((0.5, NAN), None),
        ((INF, 0.5), None),
        ((0.5, -INF), None),
    ],
)
def test_joint_on_or_beyond_the_border(joint: tuple[float, float], patch: int | None) -> None:
    actual = patch_weights(torch.tensor([joint]), torch.ones(1), (2, 3))
    assert actual.tolist() == [float(i == patch) for i in range(6)]


def test_joint_outside_does_not_share_the_weight() -> None:
    joints = torch.tensor([[0.1, 0.1], [NAN, NAN], [0.9, 0.9], [1.2, 0.9]])
    actual = patch_weights(joints, torch.tensor([1.0, 5.0, 3.0, 9.0]), (2, 2))
    torch.testing.assert_close(actual, torch.tensor([0.25, 0, 0, 0.75]))


def test_patch_weights_gradient() -> None:
    joints = torch.rand(2, 4, 2, dtype=torch.float64)
    weights = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: patch_weights(joints, w, (2, 2)), (weights,))


@pytest.mark.parametrize("where", [-1.0, NAN, 0.5])
def test_patch_weights_gradient_is_finite_without_a_body(where: float) -> None:
    """Nobody inside, or (0.5) everybody inside with weight 0."""
    weights = torch.full((3,), float(where != 0.5), requires_grad=True)
    actual = patch_weights(torch.full((3, 2), where), weights, (2, 2))
    (actual * torch.arange(4)).sum().backward()
    assert not actual.any()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


# --- Eq. (1) --------------------------------------------------------------------------------------


def slow_pose_guided_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """One head, one frame: Eq. (1) with M beside the exponential, a scalar at a time."""
    q, k, v = q.detach(), k.detach(), v.detach()
    count, width = k.shape
    indicator = 0.0 if weights.any() else 1.0
    out = []
    for query in q.tolist():
        scores = []
        for key, weight in zip(k.tolist(), weights.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, key, strict=True))
            scores.append(weight * math.exp(dot / math.sqrt(width)))
        alpha = [s / (sum(scores) + indicator) for s in scores]
        out.append([sum(alpha[j] * float(v[j, c]) for j in range(count)) for c in range(width)])
    return torch.tensor(out, dtype=torch.float64)


def test_pose_guided_attention_against_loops() -> None:
    for held in (1, 3, 6):
        q, k, v = rand(4, 5), rand(6, 5), rand(6, 5)
        weights = torch.rand(6, dtype=torch.float64) * (torch.randperm(6) < held)
        actual = pose_guided_attention(q, k, v, weights / weights.sum())
        expected = slow_pose_guided_attention(q, k, v, weights / weights.sum())
        torch.testing.assert_close(actual, expected)


def test_pose_guided_attention_leading_dimensions_are_free() -> None:
    q, k, v = rand(2, 3, 4, 5), rand(2, 3, 6, 5), rand(2, 3, 6, 5)
    weights = torch.rand(2, 3, 6, dtype=torch.float64)
    weights[1, 0] = 0
    actual = pose_guided_attention(q, k, v, weights)
    for n in range(2):
        for t in range(3):
            expected = slow_pose_guided_attention(q[n, t], k[n, t], v[n, t], weights[n, t])
            torch.testing.assert_close(actual[n, t], expected)
    assert not actual[1, 0].any()


def test_even_weights_are_plain_attention() -> None:
    q, k, v = rand(4, 8), rand(6, 8), rand(6, 8)
    plain = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(pose_guided_attention(q, k, v, even), plain)


def test_patches_without_body_are_not_looked_at() -> None:
    q, k, v = rand(4, 8), rand(6, 8), rand(6, 8)
    weights = torch.tensor([0, 0.5, 0, 0.25, 0.25, 0], dtype=torch.float64)
    before = pose_guided_attention(q, k, v, weights)
    k[weights == 0], v[weights == 0] = 1e3, -1e3
    assert torch.equal(pose_guided_attention(q, k, v, weights), before)
    k[1] += 1
    assert not torch.allclose(pose_guided_attention(q, k, v, weights), before)


def test_large_logits_do_not_overflow() -> None:
    """exp(10⁴) is infinite in float32; the attention then goes to the one patch it favours."""
    q, v = torch.full((1, 4), 100.0), torch.eye(3, 4)
    k = torch.tensor([-50.0, 0.0, 50.0])[:, None].expand(3, 4)
    actual = pose_guided_attention(q, k, v, torch.tensor([0.9, 1e-30, 1e-6]))
    torch.testing.assert_close(actual, v[2:])
    actual = pose_guided_attention(q, k, v, torch.tensor([0.9, 0.1, 0.0]))
    torch.testing.assert_close(actual, v[1:2])


def test_attention_without_a_body_is_zero_with_finite_gradients() -> None:
    parts = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(3)]
    weights = torch.zeros(2, 3)
    weights[1, 2] = 1
    weights.requires_grad_()
    actual = pose_guided_attention(*parts, weights)
    assert not actual[0].any()
    assert actual[1].any()
    actual.square().sum().backward()
    for part in (*parts, weights):
        assert part.grad is not None
        assert part.grad.isfinite().all()
        assert not part.grad[0].any()


def test_pose_guided_attention_gradient() -> None:
    parts = [rand(1, 2, 3).requires_grad_() for _ in range(3)]
    weights = torch.tensor([[0.7, 0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pose_guided_attention, (*parts, weights))


# --- the two refinements --------------------------------------------------------------------------


def heads_of(layer: torch.nn.Linear, tokens: Tensor, heads: int) -> list[Tensor]:
    return list(layer(tokens).chunk(heads, -1))


def test_refinements_start_as_identity() -> None:
    tokens, pose = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 4, 8)
    weights = torch.rand(2, 3, 4)
    assert torch.equal(PoseGuidedVideo(8, 2)(tokens, weights), tokens)
    assert not VideoEnrichedPose(8, 2)(pose, tokens).any()


def test_p2v_against_loops() -> None:
    heads = 2
    p2v = PoseGuidedVideo(8, heads).double()
    stir(p2v)
    tokens, weights = rand(2, 3, 5, 8), torch.rand(2, 3, 4, dtype=torch.float64)
    weights[0, 1] = 0
    actual = p2v(tokens, weights)
    for n in range(2):
        for t in range(3):
            frame = tokens[n, t]
            parts = zip(
                heads_of(p2v.query, frame, heads),  # the class token asks too ...
                heads_of(p2v.key, frame[1:], heads),  # ... but only patches answer
                heads_of(p2v.value, frame[1:], heads),
                strict=True,
            )
            seen = [slow_pose_guided_attention(*part, weights[n, t]) for part in parts]
            expected = frame + p2v.out(torch.cat(seen, -1))
            if not weights[n, t].any():  # "a frame with no joint adds nothing"
                expected = frame
            torch.testing.assert_close(actual[n, t], expected)


def test_p2v_leaves_a_frame_without_a_person_as_it_is() -> None:
    p2v = PoseGuidedVideo(8, 2)
    stir(p2v)
    tokens, weights = torch.randn(1, 2, 5, 8), torch.zeros(1, 2, 4)
    weights[0, 1, 3] = 1
    actual = p2v(tokens, weights)
    assert torch.equal(actual[0, 0], tokens[0, 0])
    assert ((actual - tokens)[0, 1].abs().amax(-1) > 0).all()


@torch.no_grad()
def test_v2p_against_loops() -> None:
    heads = 2
    v2p = VideoEnrichedPose(8, heads).double()
    stir(v2p)
    pose, video = rand(2, 3, 4, 8), rand(2, 3, 5, 8)
    actual = v2p(pose, video)
    for n in range(2):
        for t in range(3):
            queries = torch.cat([pose[n, t], v2p.background[None]])
            patches = video[n, t]
            seen = []
            for q, k, v in zip(
                heads_of(v2p.query, queries, heads),
                heads_of(v2p.key, patches, heads),
                heads_of(v2p.value, patches, heads),
                strict=True,
            ):
                alpha = torch.tensor(
                    [[math.exp(float(a @ b) / math.sqrt(4)) for b in k] for a in q],
                    dtype=torch.float64,
                )
                seen.append(alpha / alpha.sum(1, keepdim=True) @ v)
            torch.testing.assert_close(actual[n, t], v2p.out(torch.cat(seen, -1)))


def test_v2p_sees_the_patches_of_its_own_frame_only() -> None:
    v2p = VideoEnrichedPose(8, 2)
    stir(v2p)
    pose, video = torch.randn(1, 3, 4, 8), torch.randn(1, 3, 5, 8)
    before = v2p(pose, video)
    video[0, 1] += 1
    changed = (v2p(pose, video) - before).abs().amax((-1, -2))[0]
    assert (changed > 1e-6).tolist() == [False, True, False]
