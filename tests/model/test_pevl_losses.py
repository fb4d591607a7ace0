"""The loss of the whole model: its terms, its gradients, missing modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    LABELS,
    ON_CLIP,
    SWITCHED,
    SWITCHES,
    answer,
    near,
    no_nan,
    tiny_batch,
    tiny_model,
    unseen,
)
from torch import Tensor

from pevl_cli.model.features import Batch, Features
from pevl_cli.model.losses import nt_xent, semantic_guided_loss
from pevl_cli.model.pevl import PeVL


@SWITCHED
def test_loss_reaches_every_trained_part(name: str) -> None:
    changes, _ = SWITCHES[name]
    model = tiny_model(**changes)
    batch, labels = tiny_batch(4), torch.tensor([2, 0, 1, 0])
    loss, similarity = model.loss(batch, model.encode_text(LABELS), labels)
    assert loss.ndim == 0 and loss.isfinite()
    assert similarity.shape == (4, 3) and not similarity.requires_grad
    loss.backward()
    assert no_nan(model)
    # The shared tower keeps parts that only pictures use, and there may be no refinement to learn.
    spared = ("visual.", "refinement_scale")
    dead = [
        key
        for key, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any()) and not key.startswith(spared)
    ]
    if name in {"vs", "no refinement loss", "no ucmr"}:
        # M takes the last block's attention only: what follows in that block has no say in "vs".
        dead = [key for key in dead if not key.startswith(("v2p.", "pose_adapters.1."))]
    # Attention does not change when all its logits of a query move together.
    assert [key for key in dead if not key.endswith("key.bias")] == []


@SWITCHED
def test_one_clip_and_one_text(name: str) -> None:
    changes, _ = SWITCHES[name]
    model = tiny_model(**changes)
    texts = model.encode_text(LABELS[:1])
    loss, similarity = model.loss(tiny_batch(1), texts, torch.zeros(1, dtype=torch.long))
    assert loss.isfinite()
    assert similarity.shape == (1, len(texts.sentences))
    loss.backward()
    assert no_nan(model)


@pytest.mark.parametrize("missing", ["frames", "joints"])
def test_loss_of_one_modality(missing: str) -> None:
    model = tiny_model()
    batch = replace(tiny_batch(), **{missing: None})
    labels = torch.tensor([0, 1, 1])
    texts = model.encode_text(LABELS)
    loss, similarity = model.loss(batch, texts, labels)
    assert loss.isfinite()
    torch.testing.assert_close(similarity, answer(model, batch))
    loss.backward()
    assert no_nan(model)


@SWITCHED
def test_missing_parts_never_make_nan(name: str) -> None:
    """One clip without video, one without a person, one without either; one frame seen."""
    changes, _ = SWITCHES[name]
    model = tiny_model(**changes)
    batch = tiny_batch(5, has_video=torch.tensor([True, False, True, False, True]))
    assert batch.frames is not None and batch.joints is not None
    batch.frames[[1, 3]] = 0
    batch.joints[[2, 3]] = unseen(batch.joints[[2, 3]])
    batch.joints[4, 1:] = 0
    batch.joints[4, 0, 1:] = 0
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss, similarity = model.loss(batch, model.encode_text(LABELS), labels)
    assert similarity.isfinite().all()
    loss.backward()
    assert loss.isfinite()
    assert no_nan(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"refinement_loss": True, "branch_loss_weight": 0.0},
        {"refinement_loss": False, "branch_loss_weight": 0.5},
    ],
)
def test_loss_ignores_what_stands_in_for_a_missing_video(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    batch = tiny_batch(has_video=torch.tensor([True, False, True]))
    assert batch.frames is not None
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        texts = model.encode_text(LABELS)
        before, _ = model.loss(batch, texts, labels)
        batch.frames[1] = 255 - batch.frames[1]
        after, _ = model.loss(batch, texts, labels)
    assert near(before, after)


def scaled_loss(model: PeVL, batch: Batch, labels: Tensor) -> tuple[Tensor, Features, Tensor]:
    with torch.no_grad():
        loss, similarity = model.loss(batch, model.encode_text(LABELS), labels)
        return loss, model.encode(batch), similarity


def test_loss_is_contrast_and_refinement() -> None:
    labels = torch.tensor([2, 0, 2, 1])
    model = tiny_model(branch_loss_weight=0.0, refinement_weight=0.3)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.refinement_scale.fill_(1.0)
    loss, features, similarity = scaled_loss(model, tiny_batch(4), labels)
    texts = model.encode_text(LABELS).sentences[labels]
    tau = torch.tensor(-2.0).exp()
    contrast = semantic_guided_loss(similarity[:, labels], texts @ texts.T, labels, tau)
    assert features.video is not None and features.video_before is not None
    assert features.pose is not None and features.pose_before is not None
    tau = torch.tensor(-1.0).exp()
    refinement = nt_xent(features.video_before, features.video, tau)
    refinement = refinement + nt_xent(features.pose_before, features.pose, tau)
    torch.testing.assert_close(loss, (contrast + 0.3 * refinement).detach())


def test_vanilla_contrast_is_cross_entropy() -> None:
    model = tiny_model(branch_loss_weight=0.0, refinement_loss=False, semantic_loss=False)
    labels = torch.tensor([2, 0, 1])
    loss, _, similarity = scaled_loss(model, tiny_batch(), labels)
    logits = similarity[:, labels] / model.temperature.detach()
    own = torch.arange(3)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(loss, expected)
    semantic = tiny_model(branch_loss_weight=0.0, refinement_loss=False)
    assert not near(scaled_loss(semantic, tiny_batch(), labels)[0], loss)


def test_branch_losses_are_each_similaritys_own_contrast() -> None:
    labels, batch = torch.tensor([2, 0, 1]), tiny_batch()
    changes = {"refinement_loss": False, "semantic_loss": False}
    model = tiny_model(branch_loss_weight=0.25, **changes)
    whole, features, _ = scaled_loss(model, batch, labels)
    with torch.no_grad():
        parts = model.similarities(features, model.encode_text(LABELS))
    alone = scaled_loss(tiny_model(branch_loss_weight=0.0, **changes), batch, labels)[0]
    own = torch.arange(3)
    for part in parts.values():
        logits = part[:, labels] / model.temperature.detach()
        branch = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        alone = alone + 0.25 * branch
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("off", ["p2v", "v2p"])
def test_without_a_refinement_there_is_no_refinement_loss(off: str) -> None:
    """z and z^R are the same then; the loss would only push clips of one class apart."""
    both_off = {"p2v": False, "v2p": False}
    labels, batch = torch.tensor([0, 1, 0]), tiny_batch()
    with_loss = scaled_loss(tiny_model(**both_off), batch, labels)[0]
    without = scaled_loss(tiny_model(refinement_loss=False, **both_off), batch, labels)[0]
    assert near(with_loss, without)
    # One refinement: its own term alone.
    model = tiny_model(**{off: False}, refinement_weight=1.0)
    one = scaled_loss(model, batch, labels)
    none = scaled_loss(tiny_model(**{off: False}, refinement_loss=False), batch, labels)[0]
    before, after = (
        (one[1].pose_before, one[1].pose) if off == "p2v" else (one[1].video_before, one[1].video)
    )
    assert before is not None and after is not None
    scale = (-model.refinement_scale).exp()
    torch.testing.assert_close(one[0] - none, nt_xent(before, after, scale).detach())


def test_temperature_has_a_floor() -> None:
    model = tiny_model()
    assert model.temperature.item() == pytest.approx(0.07)
    with torch.no_grad():
        model.logit_scale.fill_(50.0)
        model.refinement_scale.fill_(50.0)
    model.limit_temperatures()
    assert model.refinement_scale.item() == model.logit_scale.item()
    assert model.temperature.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{"semantic_loss": False}, ON_CLIP, {"video": False, "semantic_loss": False}]
)
def test_a_small_batch_is_learnt_by_heart(changes: dict[str, Any]) -> None:
    """A text tower that learns gets the plain contrast, as `mini` does: Eq. (5) may let two texts
    become one, between which nothing pushes any more."""
    model = tiny_model(stirred=False, **changes).train()
    batch, labels = tiny_batch(4), torch.tensor([2, 0, 1, 0])
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0
    )
    losses: list[float] = []
    for _ in range(80):
        loss, similarity = model.loss(batch, model.encode_text(LABELS), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if losses[-1] < 0.5 * losses[0] and similarity.argmax(1).tolist() == labels.tolist():
            return
    raise AssertionError(f"still {losses[-1]:.2f} from {losses[0]:.2f}, {similarity}")


def test_recomputing_activations_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = tiny_model(**ON_CLIP, p2v_layers=(0,)).train()
        model.checkpointing = checkpointing
        loss, _ = model.loss(tiny_batch(), model.encode_text(LABELS), torch.tensor([0, 1, 2]))
        loss.backward()
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
