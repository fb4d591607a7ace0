"""The initial model of a training run.

Its weights come from a checkpoint (`init`); or from CLIP, with new adapters (`model.base` "clip");
or they are random (`model.base` "none"), with the bundled pose network in a pose stem, or I3D's
downloaded weights in an I3D stem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.clip_weights import load_clip
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.mini.i3d_weights import read_i3d
from pevl_cli.model.mini.stem import I3DStem, PoseStem
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.weights import BUNDLED_WEIGHTS, find_i3d

DEFAULT_CLIP = {
    "vit-b-16": "ViT-B-16-quickgelu:openai",
    "vit-l-14": "ViT-L-14-quickgelu:openai",
    "pe-core-b-16": "PE-Core-B-16:meta",
    "pe-core-l-14": "PE-Core-L-14-336:meta",
    "siglip2-b-16": "ViT-B-16-SigLIP2:webli",
}
# Parts of a model that are not initialised from the checkpoint `init`: prefixes of the weights'
# names, and the condition, a function of the new config and the checkpoint's config.
NEW_PARTS: tuple[tuple[tuple[str, ...], Callable[[ModelConfig, ModelConfig], bool]], ...] = (
    # Class vectors belong to the checkpoint's labels.
    (("class_vectors",), lambda new, old: True),
    # A stream that the checkpoint does not have.
    (("video_adapters.", "p2v.", "v2p."), lambda new, old: new.video and not old.video),
    (
        ("pose_embedding.", "pose_adapters.", "p2v.", "v2p."),
        lambda new, old: new.pose and not old.pose,
    ),
    (("visual.body.",), lambda new, old: new.has_body_token and not old.has_body_token),
    # Another stem; a pretrained stem has no weights in a model without video.
    (
        ("visual.conv1.",),
        lambda new, old: new.stem != old.stem or (old.stem != "patch" and not old.video),
    ),
)


def make_model(settings: TrainSettings, labels: LabelSet) -> tuple[PeVL, checkpoint.Base | None]:
    """The initial model, on the CPU, and its CLIP weights; None for a model without CLIP.

    Seeds torch's global random generator with ``run.seed``. PevlError when weights cannot be loaded
    or do not fit the settings.
    """
    config = settings.model
    if not config.text:
        config = config.model_copy(update={"classes": len(labels)})
    torch.manual_seed(settings.run.seed)
    if settings.init is not None:
        return _from_checkpoint(config, settings.init, settings.clip)
    if config.base == "clip":
        return _from_clip(config, settings.clip)
    model = PeVL(config)
    _fill_stem(model)
    return model, None


def _from_clip(config: ModelConfig, clip: str | None) -> tuple[PeVL, checkpoint.Base]:
    source = clip or DEFAULT_CLIP.get(config.name)
    if source is None:
        raise PevlError(
            f"model.base clip: config '{config.name}' has no default CLIP weights; give some with "
            "--clip, or set model.base=none and model.train_base=true."
        )
    clip_weights = load_clip(source, config)
    model = PeVL(clip_weights.config)
    towers = {n for n in model.state_dict() if n.startswith(checkpoint.BASE_PREFIXES)}
    weights = clip_weights.state
    _load(model, {name: weights[name] for name in towers & weights.keys()}, towers, source)
    # Not 1/0.07: similarities of pretrained towers need the temperature of their training.
    model.logit_scale.data.fill_(clip_weights.logit_scale)
    return model, checkpoint.Base(source=source, digest=clip_weights.digest)


def _from_checkpoint(
    config: ModelConfig, init: str, clip: str | None
) -> tuple[PeVL, checkpoint.Base | None]:
    source = checkpoint.find(init)
    start, facts = checkpoint.load(source, clip)
    old = start.config
    if config.base != old.base:
        raise PevlError(
            f"{source}: has model.base={old.base}, not {config.base}; leave this option out."
        )
    if old.train_base and not config.train_base:
        raise PevlError(
            f"{source}: its base was trained and differs from CLIP; leave model.train_base=true."
        )
    model = PeVL(config)
    new_parts = tuple(
        part for parts, applies in NEW_PARTS if applies(config, old) for part in parts
    )
    if "visual.conv1." in new_parts:
        _fill_stem(model)
    kept = {name for name in model.state_dict() if not name.startswith(new_parts)}
    weights = start.state_dict()
    _load(model, {name: weights[name] for name in kept & weights.keys()}, kept, str(source))
    return model, facts.base


def _load(model: PeVL, weights: dict[str, Tensor], expected: set[str], source: str) -> None:
    """Load weights into a model.

    PevlError when an ``expected`` weight is missing or does not fit.
    """
    state = model.state_dict()
    for name in sorted(expected):
        if name not in weights or weights[name].shape != state[name].shape:
            raise PevlError(
                f"{source}: these settings cannot be used with it: its weight '{name}' is missing "
                "or has another size; do not change the sizes of the model."
            )
    model.load_state_dict(state | weights, strict=True)


def _fill_stem(model: PeVL) -> None:
    """Load the pretrained weights of a stem: the bundled pose network's, or I3D's.

    PevlError if I3D's have not been downloaded.
    """
    stem = model.visual.conv1
    if isinstance(stem, PoseStem):
        stem.layers.load_state_dict(pose_network_layers(BUNDLED_WEIGHTS).state_dict())
    elif isinstance(stem, I3DStem):
        stem.trunk.load_state_dict(read_i3d(find_i3d()))


def load_settings_with_init(
    config: str | Path | None,
    overrides: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> TrainSettings:
    """As `load_settings`, but with the model config of the checkpoint ``init``, if there is one.

    PevlError when the checkpoint cannot be read.
    """
    settings = load_settings(config, overrides, assignments)
    if settings.init is None:
        return settings
    base = checkpoint.read_facts(checkpoint.find(settings.init)).model
    return load_settings(config, overrides, assignments, base)
