"""CLIP's weights from a file or by name: which ones fit, and how they were trained."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

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
from torch import Tensor
from torchscript import save_torchscript

from pevl_cli.errors import PevlError
from pevl_cli.model.clip_weights import from_open_clip_names, load_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.weights_file import state_digest

QUICK = f"{NAME}-quickgelu"
OPENAI = CONFIGS["vit-b-16"].image_mean, CONFIGS["vit-b-16"].image_std
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# As open_clip's table of published weights.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    NAME: {
        "openai": {"mean": OPENAI[0], "std": OPENAI[1], "quick_gelu": True, "hf_hub": "a/quick/"},
        "datacomp": {"mean": OPENAI[0], "std": OPENAI[1], "hf_hub": "a/datacomp/"},
    }
}


@pytest.fixture(autouse=True)
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny architecture that open_clip and CONFIGS know, with published weights."""
    monkeypatch.setitem(CONFIGS, CONFIG_NAME, clip_config())
    for name, quick_gelu in ((NAME, False), (QUICK, True)):
        if name not in open_clip.list_models():
            file = tmp_path / f"{name}.json"
            file.write_text(json.dumps(GEOMETRY | {"quick_gelu": quick_gelu}))
            open_clip.add_model_config(file)
    table = deepcopy(PUBLISHED)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda n: [*table.get(n, {})])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda n, t: table[n][t])
    pairs = [(name, tag) for name, tags in table.items() for tag in tags]
    monkeypatch.setattr(open_clip, "list_pretrained", lambda: pairs)
    return table


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A state dict, which does not say how it was trained."""
    path = tmp_path / "ViT-L-14.pt"  # a wrong name: the sizes count
    torch.save(tiny_clip(True).state_dict(), path)
    return path


def one_sentence(error: pytest.ExceptionInfo[PevlError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert error.value.exit_code == 1
    return message


# -- the same as open_clip -------------------------------------------------------------------------


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_load_clip_from_a_file(tmp_path: Path, suffix: str, quick_gelu: bool) -> None:
    clip, file = tiny_clip(quick_gelu), tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(clip.state_dict(), file)
    else:
        save_file(clip.state_dict(), file)
    # The preset has QuickGELU; the name decides.
    weights = load_clip(f"{QUICK if quick_gelu else NAME}:{file}", clip_config())
    assert weights.config == clip_config(
        quick_gelu=quick_gelu, image_mean=OPENAI[0], image_std=OPENAI[1]
    )
    assert weights.digest == state_digest(from_open_clip_names(clip.state_dict()))
    model = with_weights(weights.config, weights.state)
    frames, ids = torch.rand(1, 4, 3, 48, 48), open_clip.get_tokenizer("ViT-B-16")(TEXTS)
    assert model.text is not None
    with torch.no_grad():
        theirs = image_features(clip, frames, weights.config)
        assert torch.equal(class_tokens(model, frames), theirs)
        sentences, _, _ = model.text(ids, [None, None])
        assert torch.equal(sentences, clip.encode_text(ids))


def test_the_temperature_is_clips(tmp_path: Path) -> None:
    state = tiny_clip(True).state_dict()
    for scale in (torch.tensor(3.5), torch.tensor([3.5])):
        torch.save(state | {"logit_scale": scale}, tmp_path / "clip.pt")
        assert load_clip(f"{QUICK}:{tmp_path / 'clip.pt'}").logit_scale == 3.5


def test_digest_tells_weights_apart(tmp_path: Path) -> None:
    state = tiny_clip(True).state_dict()
    found = set()
    for name, change in (("a", 0.0), ("same", 0.0), ("other", 1e-3)):
        state["ln_final.bias"][3] += change
        torch.save(state, tmp_path / name)
        found.add(load_clip(f"{NAME}:{tmp_path / name}", clip_config()).digest)
    assert len(found) == 2


@pytest.mark.slow
def test_full_size_model(tmp_path: Path) -> None:
    """ViT-B/16 by its name in CONFIGS, through a file, against open_clip."""
    clip = livelier(open_clip.create_model("ViT-B-16-quickgelu", pretrained=None))
    file = tmp_path / "b16.safetensors"
    save_file(clip.state_dict(), file)
    weights = load_clip(f"ViT-B-16-quickgelu:{file}")
    file.unlink()
    config = weights.config
    assert config == CONFIGS["vit-b-16"]
    model = with_weights(config, weights.state)
    frames = torch.rand(1, 2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(class_tokens(model, frames), image_features(clip, frames, config))
        theirs = clip.encode_text(open_clip.get_tokenizer("ViT-B-16")(TEXTS[1:2]))
        ours = model.encode_text(TEXTS[1:2]).sentences
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)


def test_position_embeddings_are_interpolated_as_open_clip_does(tmp_path: Path, file: Path) -> None:
    """Weights of another image size for a config: earlier releases loaded them by open_clip."""
    geometry = GEOMETRY | {"vision_cfg": GEOMETRY["vision_cfg"] | {"image_size": 80}}
    (tmp_path / "ViT-Tiny-80.json").write_text(json.dumps(geometry))
    open_clip.add_model_config(tmp_path / "ViT-Tiny-80.json")
    theirs = open_clip.create_model("ViT-Tiny-80", pretrained=str(file))
    ours = load_clip(f"{QUICK}:{file}", clip_config(image_size=80))
    assert ours.digest == state_digest(from_open_clip_names(theirs.state_dict()))
    torch.save(theirs.state_dict(), file)
    assert load_clip(f"{NAME}:{file}").config.image_size == 80, "without a config: the file's"


# -- how the weights were trained ------------------------------------------------------------------


def test_a_file_that_does_not_say_how_it_was_trained_needs_a_name(file: Path) -> None:
    with pytest.raises(PevlError) as error:
        load_clip(str(file), clip_config())
    message = one_sentence(error)
    assert f"NAME: {NAME}, {QUICK}" in message and "--clip NAME:FILE" in message
    # A checkpoint knows it.
    config = clip_config(quick_gelu=False)
    assert load_clip(str(file), config, trained=True).config == config


def test_an_archive_of_openai_says_it(tmp_path: Path) -> None:
    clip, file = tiny_clip(True), tmp_path / "archive.pt"
    numbers = {"input_resolution": 48, "context_length": 77, "vocab_size": 49408}
    halves = {name: value.half() for name, value in clip.state_dict().items()}
    save_torchscript(halves | {k: torch.tensor(v) for k, v in numbers.items()}, file)
    weights = load_clip(str(file), clip_config(quick_gelu=False))
    assert weights.config.quick_gelu is False, "set by the user"
    weights = load_clip(str(file))
    assert weights.config.quick_gelu is True
    assert (weights.config.image_mean, weights.config.image_std) == OPENAI
    model = with_weights(weights.config, weights.state)
    clip.load_state_dict(clip.half().float().state_dict())
    frames = torch.rand(1, 4, 3, 48, 48)
    with torch.no_grad():
        theirs = image_features(clip, frames, weights.config)
        assert torch.equal(class_tokens(model, frames), theirs)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_config_beside_a_file_says_it(file: Path, quick_gelu: bool) -> None:
    beside = file.with_name("open_clip_config.json")
    model_cfg = GEOMETRY | ({"quick_gelu": True} if quick_gelu else {})
    picture = {"mean": HALF[0], "std": HALF[1]}
    beside.write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": picture}))
    for source in (str(file), f"{QUICK if quick_gelu else NAME}:{file}"):
        config = load_clip(source).config
        assert config.quick_gelu is quick_gelu
        assert (config.image_mean, config.image_std) == HALF
    with pytest.raises(PevlError) as error:
        load_clip(f"{NAME if quick_gelu else QUICK}:{file}")
    assert f"trained with {'QuickGELU' if quick_gelu else 'GELU'}, unlike" in one_sentence(error)
    beside.write_text("{}")
    with pytest.raises(PevlError, match=r"open_clip_config.json: cannot be read as open_clip's"):
        load_clip(str(file))


@pytest.mark.parametrize(("repository", "quick_gelu"), [("quick", True), ("datacomp", False)])
def test_the_hubs_cache_says_it(file: Path, repository: str, quick_gelu: bool) -> None:
    """The path that `pevl models fetch` prints."""
    folder = file.parent / f"models--a--{repository}" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    path = file.rename(folder / "open_clip_model.safetensors")
    assert load_clip(str(path)).config.quick_gelu is quick_gelu


def test_the_tag_decides_on_the_activation(
    file: Path, monkeypatch: pytest.MonkeyPatch, published: dict[str, Any]
) -> None:
    """open_clip only warns that `ViT-B-16:openai` builds the wrong activation."""
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(file))
    assert load_clip(f"{NAME}:openai").config.quick_gelu is True
    assert load_clip(f"{NAME}:datacomp").config.quick_gelu is False
    published[NAME]["datacomp"] |= {"mean": HALF[0], "std": HALF[1]}
    assert load_clip(f"{NAME}:datacomp").config.image_mean == HALF[0]
    assert load_clip(f"{NAME}:openai:{file}").config.image_mean == OPENAI[0]


def test_an_ambiguous_normalisation_must_be_said(file: Path, published: dict[str, Any]) -> None:
    """As ViT-L-14: laion2b's mean is 0.5, datacomp's is OpenAI's."""
    published[NAME]["laion"] = {"mean": HALF[0], "std": HALF[1], "hf_hub": ""}
    assert load_clip(f"{QUICK}:{file}").config.image_mean == OPENAI[0], "not ambiguous"
    with pytest.raises(PevlError) as error:
        load_clip(f"{NAME}:{file}")
    message = one_sentence(error)
    assert f"{NAME}:datacomp:FILE (mean 0.48) or {NAME}:laion:FILE (mean 0.5)" in message
    assert load_clip(f"{NAME}:laion:{file}").config.image_mean == HALF[0]
    by_user = clip_config(image_mean=(0.4, 0.4, 0.4), image_std=(0.2, 0.2, 0.2))
    config = load_clip(f"{NAME}:{file}", by_user).config
    assert (config.image_mean, config.image_std) == (by_user.image_mean, by_user.image_std)
    assert load_clip(f"{NAME}:laion:{file}", by_user).config.image_mean == (0.4, 0.4, 0.4)


def test_plain_vit_l_14_is_ambiguous_in_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from pevl_cli.model.clip_source import ClipSource, Traits, say_normalisation, traits

    for name, quick_gelu in (("ViT-B-16", False), ("ViT-L-14-quickgelu", True)):
        source = ClipSource(name, Path("nowhere.pt"), name)
        assert traits(source, False, {"tower": "clip"}) == Traits(quick_gelu, OPENAI)
    source = ClipSource("ViT-L-14", Path("nowhere.pt"), "ViT-L-14")
    assert traits(source, False, {"tower": "clip"}) == Traits(False, None)
    assert "ViT-L-14:laion2b_s32b_b82k:FILE (mean 0.5)" in str(say_normalisation(source))


# -- what is refused -------------------------------------------------------------------------------


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


def test_the_sizes_choose_the_config_not_the_path(file: Path) -> None:
    assert load_clip(f"{QUICK}:{file}").config.name == CONFIG_NAME
    with pytest.raises(PevlError) as error:
        load_clip(f"{QUICK}:{file}", CONFIGS["vit-l-14"])
    message = one_sentence(error)
    assert (
        "does not fit config 'vit-l-14': its patch_size is 16, not 14, its width is 32" in message
    )
    assert message.endswith(f"; hint: it fits config '{CONFIG_NAME}'.")


def test_a_file_that_fits_no_config_is_refused_with_its_sizes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CONFIGS, CONFIG_NAME)
    with pytest.raises(PevlError) as error:
        load_clip(f"{QUICK}:{file}")
    message = one_sentence(error)
    assert "none of the configs vit-b-16, vit-l-14" in message
    assert "patch_size 16, width 32, layers 3, embed_dim 24, text_width 16" in message


def test_the_name_must_be_that_of_the_file(file: Path) -> None:
    with pytest.raises(PevlError) as error:
        load_clip(f"ViT-B-32:{file}")
    assert "the file is not ViT-B-32: its patch_size is 16, not 32" in one_sentence(error)


def test_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(PevlError) as error:
        load_clip(f"{NAME}:nonsense", clip_config())
    assert f"'nonsense' is neither a file nor published weights of {NAME} (tags: openai, data" in (
        one_sentence(error)
    )


@pytest.mark.parametrize(
    "source",
    ["ViT-Q-99:openai", "nowhere.safetensors", f"{NAME}:openai:nowhere.pt", "~nosuchuser/clip.pt"],
)
def test_what_does_not_exist_is_named(source: str) -> None:
    with pytest.raises(PevlError) as error:
        load_clip(source, CONFIGS["vit-b-16"])
    assert one_sentence(error).startswith(source)


def test_published_weights_that_fit_no_config_are_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, published: dict[str, Any]
) -> None:
    published["ViT-B-32"] = published[NAME]
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: pytest.fail("downloaded"))
    with pytest.raises(PevlError) as error:
        load_clip("ViT-B-32:openai")
    assert "fits none of the configs" in one_sentence(error)
    with pytest.raises(PevlError, match="config 'vit-b-16': its patch_size is 32, not 16"):
        load_clip("ViT-B-32:openai", CONFIGS["vit-b-16"])


def test_a_failed_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tag: object) -> None:
        raise OSError("no network. And more")

    monkeypatch.setattr(open_clip, "download_pretrained", cut)
    with pytest.raises(PevlError) as error:
        load_clip(f"{NAME}:openai")
    message = one_sentence(error)
    assert "(OSError: no network)" in message and f"--clip {NAME}:openai:FILE" in message


def test_a_damaged_file_is_told(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PevlError) as error:
        load_clip(f"{QUICK}:{file}")
    assert str(file) in one_sentence(error)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("visual.positional_embedding", torch.tensor(1.0), "is not CLIP with"),
        ("visual.positional_embedding", torch.zeros(0, 32), "is not CLIP with"),
        ("logit_scale", torch.zeros(2), "is not CLIP with"),
        ("logit_scale", torch.tensor(torch.nan), "'logit_scale' has values that are no numbers"),
        ("visual.proj", torch.full((32, 24), torch.inf), "'visual.proj' has values that are no"),
    ],
)
def test_weights_of_odd_shapes_and_values_are_refused(
    file: Path, name: str, value: Tensor, message: str
) -> None:
    """NaN was told as "training diverged; lower the learning rate"."""
    torch.save({**tiny_clip(True).state_dict(), name: value}, file)
    with pytest.raises(PevlError) as error:
        load_clip(f"{QUICK}:{file}")
    assert message in one_sentence(error)


def test_other_names_and_missing_weights_are_refused(file: Path) -> None:
    state = tiny_clip(True).state_dict()
    torch.save({f"vision_model.{name}": value for name, value in state.items()}, file)
    with pytest.raises(PevlError, match="is not CLIP with open_clip's or OpenAI's names"):
        load_clip(f"{QUICK}:{file}")
    del state["visual.transformer.resblocks.2.mlp.c_fc.weight"]
    torch.save(state, file)
    with pytest.raises(PevlError) as error:
        load_clip(f"{QUICK}:{file}")
    assert "resblocks.2.mlp.c_fc.weight" in one_sentence(error)
