"""SigLIP 2's and Perception Encoder's towers against open_clip's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip_models import image_features, with_weights
from safetensors.torch import save_file
from timm_models import NAMES, open_clip_model, tiny_open_clip_model
from tiny import S, stir, tiny_batch
from torch import Tensor, nn

from pevl_cli.errors import PevlError
from pevl_cli.model.clip_weights import from_open_clip_names, load_clip
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Texts
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.rotary import rotary_embedding, rotate
from pevl_cli.model.towers import make_image_tower, make_text_tower

KINDS = pytest.mark.parametrize("name", ["PE-Core-B-16", "ViT-B-16-SigLIP2"])


@pytest.fixture
def tiny(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ModelConfig, PeVL]:
    """open_clip's model, our config, and PeVL with its weights."""
    clip, config = tiny_open_clip_model(name, monkeypatch)
    return clip, config, with_weights(config, from_open_clip_names(clip.state_dict()))


def frame_features(model: PeVL, frames: Tensor) -> Tensor:
    return model.visual.frame_feature(model.encode_video(frames))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# -- the same as open_clip -------------------------------------------------------------------------


@pytest.mark.parametrize("config_name", NAMES)
@torch.no_grad()
def test_one_block_of_the_full_size_is_open_clips(
    config_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, heads, norms, activations and positions of the real towers, with random weights."""
    layers = {"layers": 1, "text_layers": 1, "vocab_size": 49408}
    config = CONFIGS[config_name].model_copy(update=layers)
    clip = open_clip_model(NAMES[config_name], monkeypatch, {"layers": 1}, depth=1)
    state = from_open_clip_names(clip.state_dict())
    image, text = make_image_tower(config).eval(), make_text_tower(config).eval()
    for prefix, tower in (("visual.", image), ("text.", text)):
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        tower.load_state_dict(part, strict=True)
    for ours, theirs in ((image, clip.visual), (text, clip.text)):  # too small to show in a feature
        norms = [
            {m.eps for m in t.modules() if isinstance(m, nn.LayerNorm)} for t in (ours, theirs)
        ]
        assert norms[0] == norms[1]
    frames = torch.rand(1, 2, 3, config.image_size, config.image_size)
    tokens = image.embed(image.observe(frames))
    tokens = image.transformer.blocks[0](tokens, None, None, image.rotary)
    close(image.frame_feature(tokens), clip.encode_image(frames[0]))
    ids = torch.randint(3, 40000, (2, config.context_length))
    close(text(ids, [None])[0], clip.encode_text(ids))


@pytest.mark.parametrize("config_name", NAMES)
def test_configs_have_open_clips_sizes(config_name: str) -> None:
    with torch.device("meta"):
        given = open_clip.get_model_config(NAMES[config_name])
        given.pop("custom_text")
        theirs = from_open_clip_names(open_clip.CustomTextCLIP(**given).state_dict())
        ours = PeVL(CONFIGS[config_name]).state_dict()
    towers = {name: v.shape for name, v in ours.items() if name.startswith(("visual.", "text."))}
    assert towers == {name: value.shape for name, value in theirs.items()}
    assert CONFIGS[config_name].image_size == given["vision_cfg"]["image_size"]
    tag = next(iter(open_clip.list_pretrained_tags_by_model(NAMES[config_name])))
    published = open_clip.get_pretrained_cfg(NAMES[config_name], tag)
    assert published["mean"] == CONFIGS[config_name].image_mean
    assert published["std"] == CONFIGS[config_name].image_std


@KINDS
def test_both_branches_start_as_open_clips(tiny: tuple[Any, ModelConfig, PeVL]) -> None:
    clip, config, model = tiny
    frames = torch.rand(2, 4, 3, 48, 48)
    ids = torch.randint(3, 40000, (3, config.context_length))
    with torch.no_grad():
        theirs = image_features(clip, frames, config)
        close(frame_features(model, frames), theirs)
        assert model.text is not None
        close(model.text(ids, list(model.text_adapters))[0], clip.encode_text(ids))
    close(frame_features(model, frames), theirs)  # with gradients
    stir(model.video_adapters)
    assert not torch.allclose(frame_features(model, frames), theirs, atol=1e-3)


def test_rotary_embedding_of_another_image_size_is_timms() -> None:
    from timm.layers import RotaryEmbeddingCat

    options: dict[str, Any] = {"in_pixels": False, "grid_offset": 1.0, "grid_indexing": "xy"}
    theirs = RotaryEmbeddingCat(16, feat_shape=[5, 5], ref_feat_shape=[3, 3], **options)
    sine, cosine = rotary_embedding(5, 3, 16)
    torch.testing.assert_close(torch.cat([sine, cosine], -1), theirs.get_embed())


def test_rotation_keeps_lengths_and_the_class_token() -> None:
    x, rotary = torch.randn(2, 4, 10, 8), rotary_embedding(3, 3, 8)
    turned = rotate(x, rotary)
    assert torch.equal(turned[..., :1, :], x[..., :1, :])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    # Products of queries and keys depend on the difference of the places only.
    same = x[..., 1:2, :].expand(2, 4, 9, 8)
    turned = rotate(same, rotary)
    products = turned @ turned.transpose(-1, -2)
    for step in (1, 3, 4):  # one patch to the right, down, both
        first, second = products[..., 0, step], products[..., 4, 4 + step]
        torch.testing.assert_close(first, second)


# -- in the whole model ----------------------------------------------------------------------------


@KINDS
def test_pose_passes_the_same_blocks_without_places(
    tiny: tuple[Any, ModelConfig, PeVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, model = tiny
    batch = tiny_batch(2)
    seen: list[tuple[torch.Size, bool]] = []
    block = model.visual.transformer.blocks[0]
    attend = block.attend

    def spy(x: Tensor, mask: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        seen.append((x.shape, rotary is not None))
        return attend(x, mask, rotary)

    monkeypatch.setattr(block, "attend", spy)
    with torch.no_grad():
        model.encode(batch)
    pe = config.tower == "pe"
    joints = config.joints + 1
    assert seen == [
        (torch.Size([2 * joints, S, 32]), False),
        (torch.Size([2 * S, joints, 32]), False),
        (torch.Size([2 * config.video_frames, 9 + pe, 32]), pe),
    ]


@KINDS
def test_every_part_learns_and_the_towers_do_not(tiny: tuple[Any, ModelConfig, PeVL]) -> None:
    _, config, model = tiny
    stir(model)
    batch, labels = tiny_batch(3), torch.tensor([0, 1, 2])
    ids = torch.randint(3, 40000, (3, config.context_length))
    assert model.text is not None
    model.train()
    sentences, words, mask = model.text(ids, list(model.text_adapters))
    texts = Texts(*(torch.nn.functional.normalize(x, dim=-1) for x in (sentences, words)), mask)
    loss, _ = model.loss(batch, texts, labels)
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in trained if name.startswith(("visual.", "text."))]
    assert trained - moved <= {"v2p.key.bias", "p2v.2.key.bias"}, "a key's bias has no effect"


@KINDS
def test_p2v_looks_at_the_patches_with_joints(tiny: tuple[Any, ModelConfig, PeVL]) -> None:
    model = tiny[2]
    stir(model)
    p2v = model.p2v["2"]
    prefix = model.visual.prefix_tokens
    tokens = torch.randn(1, 1, prefix + 9, 32)
    weights = torch.zeros(1, 1, 9)
    weights[..., 4] = 1
    changed = tokens.clone()
    changed[:, :, prefix + 5] += 1  # a patch without joints
    with torch.no_grad():
        before, after = p2v(tokens, weights), p2v(changed, weights)
        others = [i for i in range(prefix + 9) if i != prefix + 5]
        torch.testing.assert_close(before[:, :, others], after[:, :, others])
        changed[:, :, prefix + 4] += 1
        assert not torch.allclose(p2v(changed, weights)[:, :, 0], before[:, :, 0])


@KINDS
def test_pooling_attends_to_the_tokens_in_use(tiny: tuple[Any, ModelConfig, PeVL]) -> None:
    model = tiny[2]
    tokens = torch.randn(2, 3, 6, 32)
    use = torch.ones(2, 3, 6, dtype=torch.bool)
    use[..., 4:] = False
    with torch.no_grad():
        some = model.visual.pooled_feature(tokens, use)
        torch.testing.assert_close(some, model.visual.frame_feature(tokens[..., :4, :]))
        assert not torch.allclose(some, model.visual.frame_feature(tokens), atol=1e-3)


@KINDS
def test_features_are_float32_in_a_model_in_bfloat16(tiny: tuple[Any, ModelConfig, PeVL]) -> None:
    model = tiny[2]
    batch = tiny_batch(2)
    with torch.no_grad():
        exact = model.encode(batch)
        rounded = model.cast(torch.bfloat16).encode(batch)
    for name in ("video", "pose"):
        a, b = getattr(exact, name), getattr(rounded, name)
        assert b.dtype == torch.float32
        assert not torch.equal(b, b.bfloat16().float()), "rounded to bfloat16"
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)


# -- loading ---------------------------------------------------------------------------------------


@KINDS
def test_a_file_is_enough(
    name: str,
    tiny: tuple[Any, ModelConfig, PeVL],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, config, model = tiny
    file = tmp_path / "weights.safetensors"
    save_file(clip.state_dict(), file)
    monkeypatch.setitem(CONFIGS, config.name, config)
    for source in (str(file), f"{name}:{next(iter(tags(name)))}:{file}"):
        weights = load_clip(source)
        assert weights.config.name == config.name
        assert weights.config.image_mean == weights.config.image_std == (0.5, 0.5, 0.5)
        assert weights.config.quick_gelu is False and weights.config.image_size == 48
        assert weights.logit_scale == pytest.approx(clip.logit_scale.item())
        for key, value in weights.state.items():
            assert torch.equal(value, model.state_dict()[key])
    bigger = load_clip(str(file), config.model_copy(update={"image_size": 80}))
    shape = bigger.state["visual.positional_embedding"].shape
    assert shape == (25 + model.visual.prefix_tokens, 32)
    with pytest.raises(PevlError, match=rf"not ViT-B-16: its tower is {config.tower}, not clip"):
        load_clip(f"ViT-B-16:{file}")


def tags(name: str) -> list[str]:
    return list(open_clip.list_pretrained_tags_by_model(name))
