"""CLIP's towers against open_clip's own, and the tokenisers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from open_clip_models import (
    TEXTS,
    class_tokens,
    clip_config,
    image_features,
    tiny_clip,
    with_weights,
)
from tiny import stir, tiny_config
from torch import Tensor, nn

from pevl_cli.model.adapters import Adapter, Block
from pevl_cli.model.clip import (
    from_open_clip_names,
    tokenise,
)
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL

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


# --- tokens ---------------------------------------------------------------------------------------


def test_clip_tokens_are_open_clips_cut_to_the_longest() -> None:
    theirs = open_clip.get_tokenizer("ViT-B-16")(TEXTS)
    longest = int((theirs != 0).sum(1).max())
    ours = tokenise(TEXTS, clip_config())
    assert torch.equal(ours, theirs[:, :longest])
    assert theirs[:, longest:].sum() == 0


def test_over_long_clip_text_keeps_its_end() -> None:
    long = "somersault with a twist and " * 40
    ours = tokenise([long, "turn"], clip_config())
    assert torch.equal(ours, open_clip.get_tokenizer("ViT-B-16")([long, "turn"]))
    assert ours[0, -1] == 49407


def words_of(texts: list[str], **changes: Any) -> Tensor:
    return tokenise(texts, tiny_config(**changes))


def test_words_tokens_end_with_the_highest_id() -> None:
    texts = ["jump over the beam", "turn", "", "!?", "a " * 100]
    ids = words_of(texts)
    assert ids.shape == (5, 16)
    assert ids.max() == 399 and ids.min() >= 0
    assert ((ids == 399).sum(1) == 1).all()
    ends = ids.argmax(1)
    assert ends.tolist() == [5, 2, 1, 1, 15]  # start, words, end; the long one is cut to 14 words
    for row, end in zip(ids.tolist(), ends.tolist(), strict=True):
        assert 0 not in row[:end]
        assert not any(row[end + 1 :])


def test_words_tokens_are_cut_to_the_longest_text() -> None:
    assert words_of(["jump over", "turn"]).shape == (2, 4)


def test_words_tokens_say_which_words() -> None:
    ids = words_of(["Split LEAP, split", "leap: split leap", "Überschlag rückwärts", "跳 馬"])
    split, leap = ids[0, 1], ids[0, 2]
    assert split != leap
    assert ids[0, 1:4].tolist() == [split, leap, split]
    assert ids[1, 1:4].tolist() == [leap, split, leap]
    assert ids.argmax(1).tolist() == [4, 4, 3, 3]
    assert torch.equal(words_of(["überschlag RÜCKWÄRTS"])[0], ids[2, :4])


@pytest.mark.slow
def test_words_tokens_are_the_same_in_every_process() -> None:
    """Python's own hash() is not."""
    code = (
        "from pevl_cli.model.clip import tokenise; from pevl_cli.model.config import CONFIGS;"
        "print(tokenise(['jump over the beam'], CONFIGS['mini']).tolist())"
    )
    root = str(REPOSITORY)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    here = tokenise(["jump over the beam"], CONFIGS["mini"])
    assert json.loads(run.stdout) == here.tolist()


def test_word_mask_and_texts_without_words() -> None:
    torch.manual_seed(0)
    model = PeVL(tiny_config()).eval()
    texts = model.encode_text(["jump over the beam", "turn", "!?", "a " * 100])
    assert texts.word_mask.sum(1).tolist() == [4, 1, 0, 14]
    assert texts.sentences.isfinite().all() and texts.words.isfinite().all()
    norms = texts.sentences.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
