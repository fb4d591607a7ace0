"""CLIP's towers against open_clip's own."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip_models import (
    TEXTS,
    class_tokens,
    clip_config,
    image_features,
    tiny_clip,
    with_weights,
)
from tiny import stir
from torch import Tensor, nn

from pevl_cli.model.adapters import Adapter, Block
from pevl_cli.model.clip_weights import from_open_clip_names
from pevl_cli.model.features import Batch

# --- the same as open_clip ------------------------------------------------------------------------


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_video_branch_starts_as_clip(quick_gelu: bool) -> None:
    clip = tiny_clip(quick_gelu)
    config = clip_config(quick_gelu=quick_gelu)
    model = with_weights(config, from_open_clip_names(clip.state_dict()))
    frames = torch.rand(2, 4, 3, 48, 48)
    with torch.no_grad():
        ours, theirs = class_tokens(model, frames), image_features(clip, frames, config)
    assert torch.equal(ours, theirs)
    # With gradients torch's attention takes another way, which rounds otherwise.
    torch.testing.assert_close(class_tokens(model, frames), theirs, atol=1e-5, rtol=0)
    stir(model.video_adapters)
    assert not torch.allclose(class_tokens(model, frames), theirs, atol=1e-3)


def test_the_clips_feature_starts_as_the_mean_of_clips() -> None:
    """Also with joints: P2V is the identity at the start."""
    clip, config = tiny_clip(True), clip_config()
    model = with_weights(config, from_open_clip_names(clip.state_dict()))
    frames = torch.rand(2, 4, 3, 48, 48)
    with torch.no_grad():
        expected = F.normalize(image_features(clip, frames, config).mean(1), dim=-1)
        features = model.encode(Batch(frames, torch.rand(2, 12, 5, 3)))
    assert features.video is not None
    assert torch.equal(features.video, expected)


def test_bytes_are_scaled_and_normalised() -> None:
    clip = tiny_clip(True)
    config = clip_config(image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    model = with_weights(config, from_open_clip_names(clip.state_dict()))
    frames = torch.randint(0, 256, (1, 4, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        ours = class_tokens(model, frames)
        assert torch.equal(ours, image_features(clip, frames.float() / 255, config))
        assert torch.equal(ours, class_tokens(model, frames.float() / 255))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_text_branch_starts_as_clip(quick_gelu: bool) -> None:
    clip = tiny_clip(quick_gelu)
    model = with_weights(
        clip_config(quick_gelu=quick_gelu), from_open_clip_names(clip.state_dict())
    )
    assert model.text is not None
    padded = open_clip.get_tokenizer("ViT-B-16")(TEXTS)
    adapters: Any = list(model.text_adapters)
    assert len(adapters) == 2
    hidden: list[Tensor] = []
    clip.ln_final.register_forward_hook(lambda module, args, out: hidden.append(out))
    with torch.no_grad():
        theirs = clip.encode_text(padded)
        sentences, words, mask = model.text(padded, adapters)
        assert torch.equal(sentences, theirs)
        assert torch.equal(words, hidden[0] @ clip.text_projection)
        texts = model.encode_text(TEXTS)
    torch.testing.assert_close(texts.sentences, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    length = texts.words.shape[1]
    assert length < 77
    torch.testing.assert_close(
        texts.words, F.normalize(words[:, :length], dim=-1), atol=1e-5, rtol=0
    )
    assert torch.equal(texts.word_mask, mask[:, :length])
    assert not mask[:, length:].any()
    # Words stand between the start and the end-of-text token.
    for row, ids in zip(mask, padded, strict=True):
        end = ids.tolist().index(49407)
        assert row.nonzero()[:, 0].tolist() == list(range(1, end))


def test_text_adapters_act() -> None:
    model = with_weights(clip_config(), from_open_clip_names(tiny_clip(True).state_dict()))
    with torch.no_grad():
        before = model.encode_text(TEXTS)
        stir(model.text_adapters)
        after = model.encode_text(TEXTS)
    assert not torch.allclose(after.sentences, before.sentences, atol=1e-3)
    assert not torch.allclose(after.words, before.words, atol=1e-3)


def test_from_open_clip_names_leaves_nothing_out() -> None:
    state = tiny_clip(True).state_dict()
    ours = from_open_clip_names(state)
    dropped = {"logit_scale", "attn_mask"}
    assert len(ours) == len(state.keys() - dropped)
    assert all(key.startswith(("visual.", "text.")) for key in ours)


def test_adapter_starts_as_nothing() -> None:
    adapter = Adapter(8, 2)
    x = torch.randn(3, 8)
    assert torch.equal(adapter(x), torch.zeros(3, 8))
    stir(adapter)
    expected = F.gelu(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    torch.testing.assert_close(adapter(x), expected + adapter.up.bias)


@torch.no_grad()
def test_adapters_stand_where_aim_has_them() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, quick_gelu=True)
    adapters = nn.ModuleDict({"attention": Adapter(8, 3), "mlp": Adapter(8, 3)})
    stir(block)
    stir(adapters)
    x = torch.randn(2, 5, 8)
    normed = block.ln_1(x)
    attended = block.attn(normed, normed, normed)[0]
    after = x + attended + adapters["attention"](attended)
    normed = block.ln_2(after)
    expected = after + block.mlp(normed) + 0.5 * adapters["mlp"](normed)
    torch.testing.assert_close(block(x, adapters), expected)
    after = x + attended
    torch.testing.assert_close(block(x, None), after + block.mlp(block.ln_2(after)))
