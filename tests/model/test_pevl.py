"""The whole model: every switch, missing modalities, independence, size."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import (
    LABELS,
    SWITCHED,
    SWITCHES,
    J,
    S,
    answer,
    near,
    tiny_batch,
    tiny_model,
    unseen,
)
from torch.utils.flop_counter import FlopCounterMode

from pevl_cli.model.config import CONFIGS
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL


def take(batch: Batch, rows: slice) -> Batch:
    return Batch(
        None if batch.frames is None else batch.frames[rows],
        None if batch.joints is None else batch.joints[rows],
        None if batch.has_video is None else batch.has_video[rows],
    )


@SWITCHED
def test_shapes_and_ranges(name: str) -> None:
    changes, kinds = SWITCHES[name]
    model = tiny_model(**changes)
    batch = tiny_batch()
    with torch.no_grad():
        texts = model.encode_text(LABELS)
        features = model.encode(batch)
        parts = model.similarities(features, texts)
        combined = model(batch, texts)
    assert set(parts) == kinds
    for part in (*parts.values(), combined):
        assert part.shape == (3, 3)
        assert part.dtype == torch.float32
        assert (part.abs() <= 1 + 1e-5).all()
    mean = torch.stack(list(parts.values())).mean(0)  # Eq. (4)
    torch.testing.assert_close(combined, mean)
    assert texts.sentences.shape == (3, 24)
    for clip_level in (features.video, features.pose, texts.sentences):
        if clip_level is not None:
            assert clip_level.shape == (3, 24)
            assert near(clip_level.norm(dim=-1), torch.ones(3))
    assert (features.video is None) == (not model.config.video)
    assert (features.pose is None) == (features.frames is None) == (not model.config.pose)
    if features.frames is not None:
        assert features.frames.shape == (3, S, 24)


def test_one_modality_is_a_normal_case() -> None:
    model, batch = tiny_model(), tiny_batch()
    with torch.no_grad():
        texts = model.encode_text(LABELS)
        for part, kinds in (
            (replace(batch, joints=None), {"vs"}),
            (replace(batch, frames=None), {"ps", "fw"}),
        ):
            features = model.encode(part)
            parts = model.similarities(features, texts)
            assert set(parts) == kinds
            mean = torch.stack(list(parts.values())).mean(0)
            torch.testing.assert_close(model(part, texts), mean)
    both, video, pose = (
        answer(model, b) for b in (batch, replace(batch, joints=None), replace(batch, frames=None))
    )
    assert not near(both, video) and not near(both, pose) and not near(video, pose)


@pytest.mark.parametrize(("switch", "part"), [("pose", "joints"), ("video", "frames")])
def test_a_switched_off_modality_may_still_be_in_the_batch(switch: str, part: str) -> None:
    model, batch = tiny_model(**{switch: False}), tiny_batch()
    assert torch.equal(answer(model, batch), answer(model, replace(batch, **{part: None})))


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither"):
        answer(tiny_model(), Batch(None, None))
    with pytest.raises(ValueError, match="neither"):
        answer(tiny_model(video=False), replace(tiny_batch(), joints=None))


@pytest.mark.parametrize("missing", ["frames", "joints"])
def test_similarities_that_the_batch_cannot_give_are_an_error(missing: str) -> None:
    model = tiny_model(similarities=("concat",))
    with pytest.raises(ValueError, match="modalities"):
        answer(model, replace(tiny_batch(), **{missing: None}))


@pytest.mark.parametrize("p2v_layers", [(), (0,)])
def test_nobody_seen_leaves_the_answer_to_the_video(p2v_layers: tuple[int, ...]) -> None:
    model, batch = tiny_model(p2v_layers=p2v_layers), tiny_batch()
    assert batch.joints is not None
    nobody = replace(batch, joints=unseen(batch.joints))
    expected = answer(model, replace(batch, joints=None))
    assert near(answer(model, nobody), expected)
    assert near(answer(model, replace(batch, joints=torch.zeros(3, S, J, 3))), expected)
    # One such clip among others.
    batch.joints[1] = unseen(batch.joints[1])
    mixed = answer(model, batch)
    assert near(mixed[1], expected[1])
    assert not near(mixed[0], expected[0])


def test_a_clip_without_video_is_judged_by_its_pose() -> None:
    model = tiny_model()
    batch = tiny_batch(has_video=torch.tensor([True, False, True]))
    assert batch.frames is not None
    mixed = answer(model, batch)
    pose_only = answer(model, replace(batch, frames=None, has_video=None))
    both = answer(model, replace(batch, has_video=None))
    assert near(mixed[1], pose_only[1])
    assert near(mixed[[0, 2]], both[[0, 2]])
    assert not near(mixed[0], pose_only[0])
    batch.frames[1] = 255 - batch.frames[1]  # whatever stands in for its pictures
    assert near(answer(model, batch), mixed)


def test_neither_video_nor_a_person() -> None:
    model = tiny_model()
    batch = tiny_batch(has_video=torch.tensor([False, True, True]))
    assert batch.joints is not None
    batch.joints[0] = 0
    actual = answer(model, batch)
    assert actual.isfinite().all()
    assert not actual[0].any()


def test_concat_ignores_what_stands_in_for_a_missing_video() -> None:
    model = tiny_model(similarities=("concat",))
    batch = tiny_batch(has_video=torch.tensor([True, False, True]))
    assert batch.frames is not None
    before = answer(model, batch)
    batch.frames[1] = 255 - batch.frames[1]
    assert near(answer(model, batch), before)


@pytest.mark.parametrize("name", ["mini", "on clip", "concat", "p2v in two places"])
def test_answers_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    changes, _ = SWITCHES[name]
    model, batch = tiny_model(**changes), tiny_batch(4)
    together = answer(model, batch)
    for i in range(4):
        assert near(answer(model, take(batch, slice(i, i + 1))), together[i : i + 1])


def test_evaluation_is_repeatable_and_dropout_is_off() -> None:
    model, batch = tiny_model(dropout=0.5), tiny_batch()
    assert torch.equal(answer(model, batch), answer(model, batch))
    model.train()
    assert not near(answer(model, batch), answer(model, batch))


def test_a_used_model_can_be_copied() -> None:
    """As averaging over weights does."""
    model, batch = tiny_model(), tiny_batch()
    model(batch, model.encode_text(LABELS))
    assert torch.equal(answer(copy.deepcopy(model), batch), answer(model, batch))


@pytest.mark.parametrize("name", ["mini", "on clip"])
def test_half_precision_says_nearly_the_same(name: str) -> None:
    changes, _ = SWITCHES[name]
    model, batch = tiny_model(**changes), tiny_batch()
    full = answer(model, batch)
    half = answer(model.cast(torch.bfloat16), batch)
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, atol=0.06)
    assert batch.frames is not None
    with torch.no_grad():
        assert model.encode_video(batch.frames).dtype == torch.float32


@pytest.fixture(scope="module")
def b16() -> PeVL:
    with torch.device("meta"):
        return PeVL(CONFIGS["vit-b-16"]).eval()


def test_tunable_parameters_of_b16(b16: PeVL) -> None:
    """Table 7 says 32 M: 7 video, 11 pose, 6 text, 5 UCMR and what else there is."""
    parts = {"video": 0, "pose": 0, "text": 0, "ucmr": 0, "other": 0}
    for key, p in b16.named_parameters():
        if p.requires_grad:
            first = key.split(".")[0].split("_")[0]
            part = {"p2v": "ucmr", "v2p": "ucmr"}.get(first, first)
            parts[part if part in parts else "other"] += p.numel()
    assert sum(parts.values()) == pytest.approx(32e6, rel=0.1)
    millions = {part: round(count / 1e6) for part, count in parts.items()}
    assert millions == {"video": 7, "pose": 11, "text": 6, "ucmr": 5, "other": 0}


def test_multiply_adds_of_b16(b16: PeVL) -> None:
    """The paper: 510 GFLOPs, 108 of them the pose encoder's; label texts come on top of ours."""
    joints = torch.zeros(1, 48, 17, 3, device="meta")
    frames = torch.zeros(1, 16, 3, 224, 224, device="meta")
    billions = []
    for batch in (Batch(None, joints), Batch(frames, joints)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            b16.encode(batch)
        billions.append(counter.get_total_flops() / 2e9)
    assert billions[0] == pytest.approx(108, rel=0.05)
    assert 350 < billions[1] < 510
