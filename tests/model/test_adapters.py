"""What adapters and refinements change, and what a frozen base learns."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    LABELS,
    ON_CLIP,
    SWITCHES,
    answer,
    features_of,
    near,
    stir,
    tiny_batch,
    tiny_model,
)


@pytest.mark.parametrize("name", ["mini", "on clip"])
def test_fresh_adapters_change_nothing(name: str) -> None:
    changes, _ = SWITCHES[name]
    fresh = tiny_model(stirred=False, **changes)
    off = {"video_adapters": False, "pose_adapters": False, "text_adapters": False}
    without = tiny_model(seed=1, stirred=False, **changes | off)
    missing, unexpected = without.load_state_dict(fresh.state_dict(), strict=False)
    assert not missing
    assert all("_adapters." in key for key in unexpected)
    batch = tiny_batch()
    # Torch's attention rounds otherwise where no parameter on the way wants a gradient.
    assert near(answer(without, batch), answer(fresh, batch))
    before = answer(fresh, batch)
    for part in (fresh.video_adapters, fresh.pose_adapters, fresh.text_adapters):
        for adapters in part:
            for adapter in adapters.values():  # type: ignore[operator]
                kept = copy.deepcopy(adapter.state_dict())
                stir(adapter)
                assert not near(answer(fresh, batch), before)
                adapter.load_state_dict(kept)


def test_fresh_refinements_change_nothing() -> None:
    fresh, batch = tiny_model(stirred=False), tiny_batch()
    features = features_of(fresh, batch)
    assert features.video is not None and features.video_before is not None
    assert features.pose is not None and features.pose_before is not None
    assert near(features.video, F.normalize(features.video_before, dim=-1))
    assert near(features.pose, F.normalize(features.pose_before, dim=-1))
    stir(fresh)
    features = features_of(fresh, batch)
    assert features.video is not None and features.video_before is not None
    assert features.pose is not None and features.pose_before is not None
    assert not near(features.video, F.normalize(features.video_before, dim=-1))
    assert not near(features.pose, F.normalize(features.pose_before, dim=-1))


def test_a_frozen_base_learns_only_what_is_added() -> None:
    model = tiny_model(stirred=False, **ON_CLIP).train()
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    labels = torch.tensor([0, 1, 2])
    loss, _ = model.loss(tiny_batch(), model.encode_text(LABELS), labels)
    loss.backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    base = {key for key in grads if key.startswith(("visual.", "text."))}
    assert base
    assert all(grads[key] is None for key in base)
    # At the start only what stands behind a zero learns: the ways out, not the ways in.
    starting = [key for key in grads if key not in base and ".down." not in key]
    starting = [key for key in starting if not key.startswith(("p2v.", "v2p.")) or ".out." in key]
    assert {"logit_scale", "refinement_scale", "pose_embedding.joint.weight"} <= set(starting)
    assert any(key.endswith("up.weight") for key in starting)
    for key in starting:
        grad = grads[key]
        assert grad is not None and grad.any(), key
    optimiser.step()
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in base)
    ups = [key for key in after if key.endswith("up.weight")]
    assert len(ups) == 2 * 2 + 2 * 3 + 2 * 2
    for key in (*ups, "p2v.1.out.weight", "v2p.out.weight"):
        assert not before[key].any() and after[key].any(), key


def test_a_free_base_learns_too() -> None:
    model = tiny_model()
    loss, _ = model.loss(tiny_batch(), model.encode_text(LABELS), torch.tensor([0, 1, 2]))
    loss.backward()
    for key, p in model.named_parameters():
        if key.startswith(("visual.", "text.")):
            assert p.grad is not None and p.grad.any(), key


def test_the_guiding_weights_learn_through_the_video() -> None:
    """M is made of the pose encoder's attention, so the video's similarity alone trains it."""
    model = tiny_model(similarities=("vs",), v2p=False, refinement_loss=False)
    loss, _ = model.loss(tiny_batch(), model.encode_text(LABELS), torch.tensor([0, 1, 2]))
    loss.backward()
    grad = model.pose_embedding.joint.weight.grad
    assert grad is not None and grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_does_not_use_torchs_attention_module(dtype: torch.dtype) -> None:
    """Under autocast on the CPU it copies its weights for each token: eleven times the time."""
    model, calls = tiny_model(**SWITCHES["on clip"][0]).cast(dtype), []
    for block in model.visual.transformer.blocks:
        block.attn.register_forward_pre_hook(lambda *_: calls.append(1))
    features_of(model, tiny_batch())
    assert bool(calls) == (dtype == torch.float32)
