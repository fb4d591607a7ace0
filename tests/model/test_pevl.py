from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    LABELS,
    ON_CLIP,
    POSE_STEM,
    J,
    S,
    T,
    stir,
    tiny_batch,
    tiny_config,
    tiny_model,
    unseen,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pevl_cli.model.config import CONFIGS
from pevl_cli.model.features import Batch, Features, Texts
from pevl_cli.model.losses import nt_xent, semantic_guided_loss
from pevl_cli.model.mini.body_token import REACH, BodyToken
from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.pose_embedding import heatmaps
from pevl_cli.model.sgmc import fine_similarity
from pevl_cli.model.ucmr import patch_weights
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.weights import BUNDLED_WEIGHTS

torch.set_num_threads(1)

GRID = 3
ALL_KINDS = {"vs", "ps", "fw"}
# What is switched, and which similarities are left then.
SWITCHES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "mini": ({}, ALL_KINDS),
    "on clip": (ON_CLIP, ALL_KINDS),
    "no video": ({"video": False}, {"ps", "fw"}),
    "no pose": ({"pose": False}, {"vs"}),
    "no text": ({"text": False, "classes": 3}, {"vs", "ps"}),
    "no text, no pose": ({"text": False, "classes": 3, "pose": False}, {"vs"}),
    "no video adapters": ({"video_adapters": False}, ALL_KINDS),
    "no pose adapters": ({"pose_adapters": False}, ALL_KINDS),
    "no text adapters": ({"text_adapters": False}, ALL_KINDS),
    "trained on clip": (ON_CLIP | {"train_base": True}, ALL_KINDS),
    "no p2v": ({"p2v": False}, ALL_KINDS),
    "no v2p": ({"v2p": False}, ALL_KINDS),
    "no ucmr": ({"p2v": False, "v2p": False, "refinement_loss": False}, ALL_KINDS),
    "p2v in two places": ({"p2v_layers": (0,)}, ALL_KINDS),
    "p2v last named": ({"p2v_layers": (0, 1)}, ALL_KINDS),
    "no refinement loss": ({"refinement_loss": False}, ALL_KINDS),
    "vs": ({"similarities": ("vs",)}, {"vs"}),
    "ps": ({"similarities": ("ps",)}, {"ps"}),
    "fw": ({"similarities": ("fw",)}, {"fw"}),
    "vs ps": ({"similarities": ("vs", "ps")}, {"vs", "ps"}),
    "ps fw": ({"similarities": ("ps", "fw")}, {"ps", "fw"}),
    "concat": ({"similarities": ("concat",)}, {"concat"}),
    "projected video": ({"similarities": ("concat",), "pose": False}, {"concat"}),
    "projected pose": ({"similarities": ("concat",), "video": False}, {"concat"}),
    "heatmap": ({"pose_features": "heatmap", "video": False}, {"ps", "fw"}),
    "heatmap beside video": ({"pose_features": "heatmap", "p2v": False}, ALL_KINDS),
    "vanilla contrast": ({"semantic_loss": False}, ALL_KINDS),
    "xy": ({"pose_features": "xy"}, ALL_KINDS),
    "branch losses": ({"branch_loss_weight": 0.7}, ALL_KINDS),
    "gelu": ({"quick_gelu": False}, ALL_KINDS),
}
SWITCHED = pytest.mark.parametrize("name", SWITCHES)


@torch.no_grad()
def answer(model: PeVL, batch: Batch, labels: tuple[str, ...] = LABELS) -> Tensor:
    return model(batch, model.encode_text(labels))


@torch.no_grad()
def features_of(model: PeVL, batch: Batch) -> Features:
    return model.encode(batch)


def take(batch: Batch, rows: slice) -> Batch:
    return Batch(
        None if batch.frames is None else batch.frames[rows],
        None if batch.joints is None else batch.joints[rows],
        None if batch.has_video is None else batch.has_video[rows],
    )


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=0)


def no_nan(model: PeVL) -> bool:
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


# --- every switch ---------------------------------------------------------------------------------


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


# --- missing modalities ---------------------------------------------------------------------------


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
    got = answer(model, batch)
    assert got.isfinite().all()
    assert not got[0].any()


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


def test_concat_ignores_what_stands_in_for_a_missing_video() -> None:
    model = tiny_model(similarities=("concat",))
    batch = tiny_batch(has_video=torch.tensor([True, False, True]))
    assert batch.frames is not None
    before = answer(model, batch)
    batch.frames[1] = 255 - batch.frames[1]
    assert near(answer(model, batch), before)


# --- joints ---------------------------------------------------------------------------------------


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


def hooked(model: PeVL, module: torch.nn.Module, batch: Batch) -> tuple[Any, ...]:
    """What a module of the model was last called with."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    features_of(model, batch)
    handle.remove()
    return calls[-1]


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
    torch.testing.assert_close(entered[0], x[1::3], atol=1e-5, rtol=1e-4)


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
        moved = model.visual.embed(changed) - model.visual.embed(frames)
    per_patch = moved[0, 1:].norm(dim=-1)
    assert (moved[0, 0].abs().max() > 1e-5) == (class_token == "body")
    assert per_patch.argmax() == 2


def test_pose_stem_takes_the_networks_layers_of_the_picture_as_it_was() -> None:
    """In [0, 1], whatever the tower normalises by, with a patch's place where it is seen."""
    stem = tiny_model(**POSE_STEM).visual.conv1
    assert isinstance(stem, PoseStem)
    network = pose_network_layers(BUNDLED_WEIGHTS)
    stem.layers.load_state_dict(network.state_dict())
    stem.mix = torch.nn.Identity()
    picture = torch.full((1, 3, 1, 96, 96), 0.5)
    picture[..., 8:24, 72:88] = 1.0  # upper right
    mean, std = (v[:, None] for v in (stem.mean, stem.std))
    with torch.no_grad():
        tokens, maps = stem((picture - mean) / std)
        last = picture[:, :, 0]
        for layer in network:
            last = layer(last)
        assert tokens.shape == (1, sum([64, 128, 128, 128, 256]), 1, GRID, GRID)
        torch.testing.assert_close(tokens[0, -256:, 0], last[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(maps[-1], last, atol=1e-4, rtol=1e-4)
        moved = tokens - stem((torch.full_like(picture, 0.5) - mean) / std)[0]
    near = moved[0, :64, 0].norm(dim=0)  # the first layer that is used sees 20 pixels around
    assert near.flatten().argmax() == 2 and near[2, 0] < 1e-3 * near[0, 2]


def test_pose_stem_keeps_its_layers_and_learns_the_rest() -> None:
    model = tiny_model(**POSE_STEM)
    stem = model.visual.conv1
    assert isinstance(stem, PoseStem)
    before = copy.deepcopy(stem.layers.state_dict())
    model.train()
    batch = replace(tiny_batch(), frames=torch.rand(3, T, 3, 96, 96))
    texts = model.encode_text(LABELS)
    model.loss(batch, texts, torch.tensor([0, 1, 1]))[0].backward()
    assert all(p.grad is None for p in stem.layers.parameters())
    assert all(p.grad is not None and p.grad.any() for p in stem.mix.parameters())
    for name, value in stem.layers.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


BODY: dict[str, Any] = {**POSE_STEM, "class_token": "body", "joints": 17}
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


def test_v2p_refines_the_middle_frames_and_leaves_the_rest() -> None:
    model, batch = tiny_model(), tiny_batch()
    with_v2p = features_of(model, batch).frames
    pose, video = hooked(model, model.v2p, batch)
    assert pose.shape == (3, T, 1 + J, 32) and video.shape == (3, T, 1 + GRID * GRID, 32)
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


# --- independence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "on clip", "concat", "p2v in two places"])
def test_answers_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    changes, _ = SWITCHES[name]
    model, batch = tiny_model(**changes), tiny_batch(4)
    together = answer(model, batch)
    for i in range(4):
        assert near(answer(model, take(batch, slice(i, i + 1))), together[i : i + 1])


@pytest.mark.parametrize("name", ["mini", "on clip"])
def test_a_texts_similarity_does_not_depend_on_the_other_texts(name: str) -> None:
    changes, _ = SWITCHES[name]
    model, batch = tiny_model(**changes), tiny_batch()
    together = answer(model, batch)
    assert not near(together[:, 0], together[:, 1])
    for i, label in enumerate(LABELS):
        assert near(answer(model, batch, (label,))[:, 0], together[:, i])
    chosen = torch.tensor([2, 0])
    with torch.no_grad():
        some = model(batch, model.encode_text(LABELS)[chosen])
    assert near(some, together[:, chosen])


def test_bytes_and_fractions_are_the_same_picture() -> None:
    model, batch = tiny_model(), tiny_batch()
    assert batch.frames is not None
    fractions = replace(batch, frames=batch.frames.float() / 255)
    assert torch.equal(answer(model, fractions), answer(model, batch))


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


# --- adapters and gradients -----------------------------------------------------------------------


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


# --- losses ---------------------------------------------------------------------------------------


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


# --- size -----------------------------------------------------------------------------------------


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


def test_a_label_s_similarity_is_the_mean_over_its_phrasings() -> None:
    model = tiny_model()
    texts = model.encode_text([*LABELS, "leap"])
    batch = tiny_batch()
    each = model(batch, texts)
    several = replace(texts, label=torch.tensor([0, 1, 2, 1]))
    got = model(batch, several)
    wanted = torch.stack([each[:, 0], (each[:, 1] + each[:, 3]) / 2, each[:, 2]], 1)
    torch.testing.assert_close(got, wanted)


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
