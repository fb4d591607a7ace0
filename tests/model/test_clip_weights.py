"""CLIP's weights from a file or by name, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip_models import (
    CONFIG_NAME,
    GEOMETRY,
    NAME,
    TEXTS,
    class_tokens,
    clip_config,
    image_features,
    livelier,
    tiny_clip,
    with_weights,
)
from safetensors.torch import save_file

from pevl_cli.errors import PevlError
from pevl_cli.model.clip import (
    OPEN_CLIP_NAMES,
    from_open_clip_names,
    load_clip,
    state_digest,
)
from pevl_cli.model.config import CONFIGS


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


@pytest.mark.slow
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
