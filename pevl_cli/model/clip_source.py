"""Which weights ``--clip`` names, and what their file does not contain: how they were trained.

Of open_clip, its tables of architectures and published weights are used, and its download.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pevl_cli.errors import PevlError
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.sizes import Sizes, difference

CONFIG_FILE = "open_clip_config.json"  # beside the weights in a repository of the hub
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
# open_clip's default.
OPENAI_NORMALISATION = CONFIGS["vit-b-16"].image_mean, CONFIGS["vit-b-16"].image_std
# timm's name of an image tower, as open_clip's tables have it -> our kind of tower.
TIMM_TOWERS = {"vit_pe_core_": "pe", "siglip": "siglip"}


@dataclass(frozen=True)
class ClipSource:
    """Weights of CLIP: a file, or the NAME and TAG to download; a file can have both, too."""

    text: str  # as the user wrote it
    file: Path | None  # None: to be downloaded
    name: str | None = None  # an architecture of open_clip
    tag: str | None = None  # published weights of this architecture


@dataclass(frozen=True)
class Traits:
    """How weights were trained; normalisation (mean, std) None: not known."""

    quick_gelu: bool
    normalisation: Normalisation | None


def find_clip(text: str) -> ClipSource:
    """The weights that NAME:TAG, FILE, NAME:FILE or NAME:TAG:FILE names.

    PevlError if there are none.
    """
    import open_clip

    path = _expanded(text)
    if path.is_file():
        return ClipSource(text, path)
    name, _, rest = text.partition(":")
    if name not in open_clip.list_models():
        what = "is a folder" if path.is_dir() else "no such file"
        close = difflib.get_close_matches(name, open_clip.list_models(), 1)
        nearest = f" (nearest model: {close[0]})" if close and rest else ""
        raise PevlError(
            f"{text}: {what}, and no model of open_clip; give the path of a weights file, or "
            f"NAME:TAG such as ViT-B-16-quickgelu:openai to download it{nearest}."
        )
    path = _expanded(rest)
    if path.is_file():
        return ClipSource(text, path, name)
    tag, _, file = rest.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise PevlError(
            f"{text}: '{rest}' is neither a file nor published weights of {name} (tags: {known})."
        )
    path = _expanded(file)
    if file and not path.is_file():
        raise PevlError(f"{text}: there is no file {file}.")
    return ClipSource(text, path if file else None, name, tag)


def _expanded(text: str) -> Path:
    """The path, with a user's folder in place of "~"; as it is if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def weights_file(source: ClipSource) -> Path:
    """The file of a source; NAME:TAG is downloaded, unless it is in the hub's cache.

    PevlError when the download fails.
    """
    import open_clip

    if source.file is not None:
        return source.file
    assert source.name is not None and source.tag is not None
    try:
        published = open_clip.get_pretrained_cfg(source.name, source.tag)
        return Path(open_clip.download_pretrained(published))
    except Exception as error:  # open_clip and the hub client raise many kinds
        reason = (str(error).strip() or "no reason given").splitlines()[0].split(". ")[0]
        raise PevlError(
            f"{source.text}: could not be downloaded ({type(error).__name__}: {reason}). Without a "
            f"network, copy the weights file here and give --clip {source.text}:FILE."
        ) from error


def traits(source: ClipSource, by_openai: bool, sizes: Sizes) -> Traits:
    """How the weights of a source were trained.

    ``by_openai``: the file is an archive of OpenAI. ``sizes``: those of the file. PevlError when
    neither the name nor the file says it, or when they contradict each other.
    """
    import open_clip

    if source.name is not None and source.tag is not None:
        return _published(source.name, source.tag)
    assert source.file is not None
    stated = _stated(source.file, by_openai, sizes)
    if source.name is None:
        if stated is None:
            names = [n for n in open_clip.list_models() if named_sizes(n) == sizes]
            raise PevlError(
                f"{source.file}: does not say how its weights were trained; name the architecture "
                f"with --clip NAME:FILE (NAME: {', '.join(names) or 'a model of open_clip'}; "
                f"quickgelu: OpenAI's activation), or put its {CONFIG_FILE} beside it."
            )
        return stated
    unlike = difference(sizes, named_sizes(source.name))
    if unlike:
        raise PevlError(f"{source.text}: the file is not {source.name}: {unlike}.")
    quick_gelu = _named_quick_gelu(source.name)
    if stated is None:
        return Traits(quick_gelu, _usual_normalisation(source.name, quick_gelu))
    if stated.quick_gelu != quick_gelu:
        activation = "QuickGELU" if stated.quick_gelu else "GELU"
        raise PevlError(
            f"{source.text}: the file says that it was trained with {activation}, unlike "
            f"{source.name}; leave '{source.name}:' out."
        )
    return stated


def say_normalisation(source: ClipSource) -> PevlError:
    """The error for a file whose normalisation is not known: which tags to name it with."""
    assert source.name is not None
    tags = _tags_by_normalisation(source.name, _named_quick_gelu(source.name))
    ways = " or ".join(
        f"{source.name}:{tag}:FILE (mean {mean[0]:.2g})" for (mean, _), tag in tags.items()
    )
    return PevlError(
        f"{source.text}: published weights of {source.name} have different normalisations; say "
        f"which one this file has: --clip {ways}, or --set model.image_mean and model.image_std."
    )


def _stated(file: Path, by_openai: bool, sizes: Sizes) -> Traits | None:
    """What a file, its place in the hub's cache, or the config beside it states."""
    import open_clip

    if by_openai:
        return Traits(True, OPENAI_NORMALISATION)
    if sizes["tower"] != "clip":  # all of this kind were trained in one way
        preset = next(config for config in CONFIGS.values() if config.tower == sizes["tower"])
        return Traits(preset.quick_gelu, (preset.image_mean, preset.image_std))
    cached = [p.name for p in file.absolute().parents if p.name.startswith("models--")]
    for name, tag in open_clip.list_pretrained() if cached else []:
        repository = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/")
        if repository == cached[0].removeprefix("models--").replace("--", "/"):
            return _published(name, tag)
    beside = file.parent / CONFIG_FILE
    if not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        picture = content.get("preprocess_cfg", {})
        mean, std = OPENAI_NORMALISATION
        normalisation = _three(picture.get("mean", mean)), _three(picture.get("std", std))
        return Traits(bool(content["model_cfg"].get("quick_gelu", False)), normalisation)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PevlError(f"{beside}: cannot be read as open_clip's config ({error!r}).") from error


def _published(name: str, tag: str) -> Traits:
    """The traits of published weights. The tag decides: `ViT-B-16:openai` has QuickGELU too."""
    import open_clip

    published = open_clip.get_pretrained_cfg(name, tag)
    normalisation = _three(published["mean"]), _three(published["std"])
    return Traits(bool(published.get("quick_gelu", False)), normalisation)


def _usual_normalisation(name: str, quick_gelu: bool) -> Normalisation | None:
    """That of all published weights of an architecture; None if they differ."""
    tags = _tags_by_normalisation(name, quick_gelu)
    if len(tags) > 1:
        return None
    return next(iter(tags), OPENAI_NORMALISATION)


def _tags_by_normalisation(name: str, quick_gelu: bool) -> dict[Normalisation, str]:
    """Each normalisation of an architecture's published weights, and one tag that has it."""
    import open_clip

    found: dict[Normalisation, str] = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        published = _published(name, tag)
        if published.quick_gelu == quick_gelu and published.normalisation is not None:
            found[published.normalisation] = tag
    return found


def _named_quick_gelu(name: str) -> bool:
    import open_clip

    return bool(open_clip.get_model_config(name).get("quick_gelu", False))


def named_sizes(name: str) -> Sizes:
    """The sizes of an architecture of open_clip; those that it does not state are left out."""
    import open_clip

    model = open_clip.get_model_config(name)
    vision, text = model["vision_cfg"], model["text_cfg"]
    timm_name = vision.get("timm_model_name")
    kinds = [kind for part, kind in TIMM_TOWERS.items() if timm_name and part in timm_name]
    stated = {
        "tower": "clip" if timm_name is None else next(iter(kinds), timm_name),
        "patch_size": vision.get("patch_size"),
        "width": vision.get("width"),
        "layers": vision.get("layers"),
        "embed_dim": model.get("embed_dim"),
        "text_width": text.get("width"),
        "text_layers": text.get("layers"),
        "context_length": text.get("context_length"),
        "vocab_size": text.get("vocab_size"),
    }
    return {field: value for field, value in stated.items() if value is not None}


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
