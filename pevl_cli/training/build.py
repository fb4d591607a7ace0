"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.clip import load_clip
from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.weights import BUNDLED_WEIGHTS

DEFAULT_CLIP = {"vit-b-16": "ViT-B-16-quickgelu:openai", "vit-l-14": "ViT-L-14-quickgelu:openai"}


def make_model(settings: TrainSettings, labels: LabelSet) -> tuple[PeVL, checkpoint.Base | None]:
    """The model to train: new, on CLIP's weights, or from the checkpoint ``init``."""
    config = settings.model
    if not config.text:
        config = config.model_copy(update={"classes": len(labels)})
    torch.manual_seed(settings.run.seed)
    if settings.init is not None:
        source = checkpoint.find(settings.init)
        old, facts = checkpoint.load(source, settings.clip)
        model = PeVL(config)
        state = old.state_dict()
        wanted = model.state_dict()
        new = {"class_vectors"}  # fixed classes have nothing to do with other ones
        # A stream that it was trained without starts from nothing, and so does another stem.
        added = set()
        if config.video and not old.config.video:
            added |= {"video_adapters", "p2v", "v2p"}
        if config.pose and not old.config.pose:
            added |= {"pose_embedding", "pose_adapters", "p2v", "v2p"}
        if config.has_body_token and not old.config.has_body_token:
            added.add("visual.body")
        stem = {k for k in state if k.startswith("visual.conv1.")}
        if config.stem != old.config.stem or not stem:
            state = {k: v for k, v in state.items() if k not in stem}
            _fill_stem(model)
            added.add("visual.conv1")
        for name, value in wanted.items():
            fresh = name in new or (
                name not in state and name.startswith(tuple(f"{part}." for part in added))
            )
            if not fresh and (name not in state or state[name].shape != value.shape):
                raise PevlError(
                    f"{source}: cannot be started from with these settings, as weight '{name}' "
                    "is absent or of another size in it; leave the model's sizes as they are."
                )
        model.load_state_dict({k: v for k, v in state.items() if k in wanted.keys() - new}, False)
        return model, facts.base
    if config.base == "none":
        model = PeVL(config)
        _fill_stem(model)
        return model, None
    clip = settings.clip or DEFAULT_CLIP[config.name]
    state, config, digest = load_clip(clip, config)
    model = PeVL(config)
    model.load_state_dict(state, strict=False)  # its names were checked by load_clip
    return model, checkpoint.Base(source=clip, digest=digest)


def _fill_stem(model: PeVL) -> None:
    """What a new model's stem knows of bodies is that of the package's pose network."""
    if isinstance(model.visual.conv1, PoseStem):
        known = pose_network_layers(BUNDLED_WEIGHTS)
        model.visual.conv1.layers.load_state_dict(known.state_dict())


def settings_for(
    config: str | Path | None,
    given: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> TrainSettings:
    """`load_settings`, with the model of the checkpoint that training starts from, if any."""
    settings = load_settings(config, given, assignments)
    if settings.init is None:
        return settings
    base = checkpoint.read_facts(checkpoint.find(settings.init)).model
    return load_settings(config, given, assignments, base)
