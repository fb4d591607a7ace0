"""Load the weights of CLIP, SigLIP 2 or Perception Encoder, by open_clip's name or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from pevl_cli.errors import PevlError
from pevl_cli.model import sizes
from pevl_cli.model.clip_source import (
    ClipSource,
    find_clip,
    named_sizes,
    say_normalisation,
    traits,
    weights_file,
)
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.timm_names import from_timm_names
from pevl_cli.model.towers import make_image_tower, make_text_tower
from pevl_cli.model.weights_file import read_weights, state_digest

# Entries beside the weights in OpenAI's archives; files of other publishers do not have them.
OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}


@dataclass(frozen=True)
class ClipWeights:
    """The weights of both towers, and the config that they fit."""

    state: dict[str, Tensor]  # names `visual.…` and `text.…`, float32
    config: ModelConfig
    logit_scale: float  # log 1/τ of their training
    digest: str  # `state_digest` of ``state``


def load_clip(
    source: str, config: ModelConfig | None = None, *, trained: bool = False
) -> ClipWeights:
    """Weights of both towers from ``source``: open_clip's NAME:TAG, or a file.

    FILE alone is enough if it says how it was trained: an archive of OpenAI, a file in the hub's
    cache, a file beside its `open_clip_config.json`. NAME:FILE has the activation of open_clip's
    architecture NAME, and NAME:TAG:FILE activation and normalisation of the published weights
    NAME:TAG.

    The config of the result is ``config``, or the one of CONFIGS with the sizes of the file, with
    activation and normalisation of the weights. Values of ``config`` that differ from its preset
    are kept: the user has set them. ``trained``: ``config`` belongs to a checkpoint and is kept.
    Position embeddings are interpolated to the image size of ``config``.

    PevlError when the weights cannot be loaded, do not fit, or do not say how they were trained.
    """
    found = find_clip(source)
    if found.file is None and found.name is not None:  # before the download
        _fitting(named_sizes(found.name), config, source)
    raw = read_weights(weights_file(found))
    by_openai = raw.keys() >= OPENAI_NUMBERS
    try:
        logit_scale = float(raw["logit_scale"])
        state = {name: value.float() for name, value in from_open_clip_names(raw).items()}
        have, image_size = sizes.state_sizes(state), sizes.image_size(state)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise PevlError(
            f"{source}: is not CLIP with open_clip's or OpenAI's names of the weights ({reason})."
        ) from error
    damaged = [name for name, value in state.items() if not value.isfinite().all()]
    if damaged or not isfinite(logit_scale):
        name = damaged[0] if damaged else "logit_scale"
        raise PevlError(f"{source}: is damaged: weight '{name}' has values that are no numbers.")
    chosen = _fitting(have, config, source)
    config = config or chosen.model_copy(update={"image_size": image_size})
    if not trained:
        config = _as_trained(config, found, by_openai, have)
    positions = "visual.positional_embedding"
    state[positions] = _interpolated(state[positions], sizes.prefix_tokens(state), config.grid)
    _check_shapes(state, config, source)
    return ClipWeights(state, config, logit_scale, state_digest(state))


def _fitting(have: sizes.Sizes, config: ModelConfig | None, source: str) -> ModelConfig:
    """The config, None: the first of CONFIGS that fits, if it has these sizes; PevlError if not."""
    known = [c for c in CONFIGS.values() if c.base == "clip"]
    fitting = [c for c in known if not sizes.difference(have, sizes.config_sizes(c))]
    if config is None and not fitting:
        names = ", ".join(c.name for c in known)
        listed = ", ".join(f"{field} {size}" for field, size in have.items())
        raise PevlError(f"{source}: fits none of the configs {names}: it has {listed}.")
    config = config or fitting[0]
    unlike = sizes.difference(have, sizes.config_sizes(config))
    if unlike:
        hint = f"; hint: it fits config '{fitting[0].name}'" if fitting else ""
        raise PevlError(f"{source}: does not fit config '{config.name}': {unlike}{hint}.")
    return config


def _as_trained(
    config: ModelConfig, source: ClipSource, by_openai: bool, have: sizes.Sizes
) -> ModelConfig:
    """The config with activation and normalisation of the weights, except what the user has set."""
    preset = CONFIGS.get(config.name, config)
    trained = traits(source, by_openai, have)
    changes: dict[str, object] = {"quick_gelu": trained.quick_gelu}
    if trained.normalisation is not None:
        changes["image_mean"], changes["image_std"] = trained.normalisation
    elif (config.image_mean, config.image_std) == (preset.image_mean, preset.image_std):
        raise say_normalisation(source)
    user_set = {name for name in changes if getattr(config, name) != getattr(preset, name)}
    return config.model_copy(update={k: v for k, v in changes.items() if k not in user_set})


def _interpolated(positions: Tensor, prefix: int, grid: int) -> Tensor:
    """Position embeddings (prefix + P, d) for another number of patches, as open_clip does it."""
    before, patches = positions[:prefix], positions[prefix:]
    side = isqrt(len(patches))
    if side == grid or side**2 != len(patches):  # the latter is refused by its shape
        return positions
    picture = rearrange(patches, "(r c) d -> 1 d r c", r=side)
    picture = F.interpolate(picture, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([before, rearrange(picture, "1 d r c -> (r c) d")])


def _check_shapes(state: dict[str, Tensor], config: ModelConfig, source: str) -> None:
    """PevlError when a name or shape of the towers' weights does not fit the config."""
    with torch.device("meta"):
        towers = {"visual": make_image_tower(config), "text": make_text_tower(config)}
    expected = {f"{t}.{k}": v.shape for t, m in towers.items() for k, v in m.state_dict().items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in expected or key not in state or expected[key] != state[key].shape:
            raise PevlError(f"{source}: does not fit config '{config.name}' (weight '{key}').")


def from_open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert names of open_clip's weights to PeVL's: the text tower gets the prefix `text.`, and
    timm's image towers get CLIP's names.

    The result has no temperature, no attention mask, and none of OPENAI_NUMBERS. Tensors (…) are
    unchanged, except that single tokens lose their dimensions of size 1.
    """
    renamed = {}
    for key, value in from_timm_names(state).items():
        if key.startswith("visual."):
            renamed[key] = value
        elif key not in {"logit_scale", "logit_bias", *OPENAI_NUMBERS}:
            renamed[f"text.{key.removeprefix('text.')}"] = value
    return {k: v for k, v in renamed.items() if not k.endswith("attn_mask")}
