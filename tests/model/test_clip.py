from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import ON_CLIP, stir, tiny_config
from torch import Tensor, nn
from torchvision.transforms import Normalize

from pevl_cli.errors import PevlError
from pevl_cli.model.adapters import Adapter, Block
from pevl_cli.model.clip import (
    OPEN_CLIP_NAMES,
    from_open_clip_names,
    load_clip,
    state_digest,
    tokenise,
)
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL

torch.set_num_threads(1)

NAME, CONFIG_NAME = "ViT-Tiny-16", "vit-tiny-16"
GEOMETRY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}
TEXTS = [
    "Leg separation 180 degree on the diagonal to the floor, a video of gymnastic action",
    "turn",
    "don't \u00fcber-rotate (3.5 somersaults)",
]


def clip_config(**changes: Any) -> ModelConfig:
    return tiny_config(
        **ON_CLIP
        | {
            "name": CONFIG_NAME,
            "layers": 3,
            "context_length": 77,
            "vocab_size": 49408,
            "tokenizer": "clip",
        }
        | changes
    )


def tiny_clip(quick_gelu: bool) -> open_clip.CLIP:
    torch.manual_seed(1)
    clip = open_clip.CLIP(
        GEOMETRY["embed_dim"],
        open_clip.CLIPVisionCfg(**GEOMETRY["vision_cfg"]),
        open_clip.CLIPTextCfg(**GEOMETRY["text_cfg"]),
        quick_gelu=quick_gelu,
    )
    return livelier(clip)


def livelier(clip: nn.Module) -> Any:
    """Untrained norms and biases are all 1 or 0, which would hide that one is left out.

    Frozen like our towers: torch chooses another matrix product, with other rounding, for weights
    that require a gradient.
    """
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.ndim == 1 and name != "logit_scale":
                parameter.add_(0.1 * torch.randn_like(parameter))
    return clip.eval().requires_grad_(False)


def with_weights(config: ModelConfig, state: dict[str, Tensor]) -> PeVL:
    model = PeVL(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith(("visual.", "text."))]
    return model.eval()


def class_tokens(model: PeVL, frames: Tensor) -> Tensor:
    """The video branch's answer to each frame, in the joint space."""
    return model.visual.project(model.encode_video(frames)[:, :, 0])


def image_features(clip: Any, frames: Tensor, config: ModelConfig) -> Tensor:
    pictures = Normalize(config.image_mean, config.image_std)(frames.flatten(0, 1))
    features: Tensor = clip.encode_image(pictures)
    return features.unflatten(0, frames.shape[:2])


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


def testfrom_open_clip_names_leave_nothing_out() -> None:
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


def test_words_tokens_are_the_same_in_every_process() -> None:
    """Python's own hash() is not."""
    code = (
        "from pevl_cli.model.clip import tokenise; from pevl_cli.model.config import CONFIGS;"
        "print(tokenise(['jump over the beam'], CONFIGS['mini']).tolist())"
    )
    root = str(Path(__file__).parents[2])
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


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def tiny_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model that open_clip knows by name, so that its own loading code runs."""
    monkeypatch.setitem(OPEN_CLIP_NAMES, CONFIG_NAME, NAME)
    if NAME not in open_clip.list_models():
        file = tmp_path / f"{NAME}.json"
        file.write_text(json.dumps(GEOMETRY))
        open_clip.add_model_config(file)


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.usefixtures("tiny_name")
def test_load_clip_from_a_file(tmp_path: Path, suffix: str, quick_gelu: bool) -> None:
    clip, file = tiny_clip(quick_gelu), tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(clip.state_dict(), file)
    else:
        save_file(clip.state_dict(), file)
    state, config, digest = load_clip(str(file), clip_config(quick_gelu=quick_gelu))
    assert config.quick_gelu is quick_gelu
    assert digest == state_digest(from_open_clip_names(clip.state_dict()))
    model = with_weights(config, state)
    frames, ids = torch.rand(1, 4, 3, 48, 48), open_clip.get_tokenizer("ViT-B-16")(TEXTS)
    assert model.text is not None
    with torch.no_grad():
        assert torch.equal(class_tokens(model, frames), image_features(clip, frames, config))
        sentences, _, _ = model.text(ids, [None, None])
        assert torch.equal(sentences, clip.encode_text(ids))


@pytest.mark.usefixtures("tiny_name")
def test_digest_tells_weights_apart(tmp_path: Path) -> None:
    state = tiny_clip(True).state_dict()
    found = set()
    for name, change in (("a", 0.0), ("same", 0.0), ("other", 1e-3)):
        state["ln_final.bias"][3] += change
        torch.save(state, tmp_path / name)
        found.add(load_clip(str(tmp_path / name), clip_config())[2])
    assert len(found) == 2


def test_full_size_model(tmp_path: Path) -> None:
    """ViT-B/16 by its name in CONFIGS, through a file, against open_clip."""
    clip = livelier(open_clip.create_model("ViT-B-16-quickgelu", pretrained=None))
    file = tmp_path / "b16.safetensors"
    save_file(clip.state_dict(), file)
    state, config, _ = load_clip(str(file), CONFIGS["vit-b-16"])
    file.unlink()
    assert config == CONFIGS["vit-b-16"]
    model = with_weights(config, state)
    frames = torch.rand(1, 2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(class_tokens(model, frames), image_features(clip, frames, config))
        theirs = clip.encode_text(open_clip.get_tokenizer("ViT-B-16")(TEXTS[1:2]))
        ours = model.encode_text(TEXTS[1:2]).sentences
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "expected"), [("vit-b-16", "ViT-B-16"), ("vit-l-14", "ViT-L-14")])
def test_config_names_are_open_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    asked: list[str] = []

    def create(name: str, **options: object) -> None:
        asked.append(name)
        raise RuntimeError("not now")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    file = tmp_path / "weights.pt"
    file.touch()
    with pytest.raises(PevlError, match="not now"):
        load_clip(str(file), CONFIGS[name])
    assert asked == [expected]
    assert expected in open_clip.list_models()


@pytest.mark.parametrize("name", ["vit-b-16", "vit-l-14"])
def test_configs_have_open_clips_sizes(name: str) -> None:
    config = CONFIGS[name]
    theirs = open_clip.get_model_config({"vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14"}[name])
    vision, text = theirs["vision_cfg"], theirs["text_cfg"]
    assert config.embed_dim == theirs["embed_dim"]
    assert (config.width, config.layers) == (vision["width"], vision["layers"])
    assert config.width // config.heads == vision.get("head_width", 64)
    assert (config.patch_size, config.image_size) == (vision["patch_size"], vision["image_size"])
    assert (config.text_width, config.text_layers) == (text["width"], text["layers"])
    assert config.text_heads == text["heads"]
    assert (config.context_length, config.vocab_size) == (
        text["context_length"],
        text["vocab_size"],
    )


def one_sentence(error: pytest.ExceptionInfo[PevlError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert error.value.exit_code == 1
    return message


def test_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(PevlError) as error:
        load_clip("ViT-B-16:nonsense", CONFIGS["vit-b-16"])
    message = one_sentence(error)
    assert "ViT-B-16:nonsense" in message and "datacomp_xl_s13b_b90k" in message


def test_unknown_model() -> None:
    with pytest.raises(PevlError) as error:
        load_clip("ViT-Q-99:openai", CONFIGS["vit-b-16"])
    assert "ViT-Q-99:openai" in one_sentence(error)


def test_missing_file(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.safetensors"
    with pytest.raises(PevlError) as error:
        load_clip(str(missing), CONFIGS["vit-b-16"])
    assert str(missing) in one_sentence(error)


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors", "empty.pt"])
@pytest.mark.usefixtures("tiny_name")
def test_broken_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"" if name.startswith("empty") else b"hello" * 99)
    with pytest.raises(PevlError) as error:
        load_clip(str(file), clip_config())
    assert str(file) in one_sentence(error)


@pytest.mark.usefixtures("tiny_name")
def test_file_of_another_model(tmp_path: Path) -> None:
    state = tiny_clip(True).state_dict()
    del state["visual.transformer.resblocks.2.mlp.c_fc.weight"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(PevlError) as error:
        load_clip(str(tmp_path / "other.pt"), clip_config())
    assert str(tmp_path / "other.pt") in one_sentence(error)


@pytest.mark.usefixtures("tiny_name")
def test_named_weights_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ViT-B-32:openai for a B/16 model; here the download is replaced by random weights."""
    create = open_clip.create_model_and_transforms
    monkeypatch.setattr(
        open_clip, "list_pretrained_tags_by_model", lambda name: ["mine"] if name == NAME else []
    )
    monkeypatch.setattr(
        open_clip,
        "create_model_and_transforms",
        lambda name, pretrained, **options: create(name, pretrained=None, **options),
    )
    state, _, _ = load_clip(f"{NAME}:mine", clip_config())
    with_weights(clip_config(), state)
    with pytest.raises(PevlError) as error:
        load_clip(f"{NAME}:mine", clip_config(layers=2))
    assert NAME in one_sentence(error)
