"""A model on disk: a folder with `config.json` and `model.safetensors`.

Loading is strict and never unpickles. A model on a frozen CLIP stores only the added weights, and
CLIP's name and hash; any other model stores all weights in half precision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pevl_cli import weights
from pevl_cli.cache import atomic_write
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import LabelSet
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.clip_weights import ClipWeights, load_clip
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.pevl import PeVL

FORMAT = 3
BASE_PREFIXES = ("visual.", "text.")  # of the names of CLIP's weights


class Labels(BaseModel):
    """The label set of a checkpoint; the fields are those of `labels.LabelSet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    texts: tuple[str, ...]
    prompt: str
    others: tuple[tuple[str, ...], ...] = ()


class Base(BaseModel):
    """The CLIP weights that a model started from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str  # as for load_clip: NAME:TAG of open_clip, or a file's path
    digest: str  # weights_file.state_digest


class Facts(BaseModel):
    """The content of config.json: all parts of a checkpoint except the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model: ModelConfig
    labels: Labels
    base: Base | None = None
    calibration: Calibration | None = None
    training: dict[str, Any] = {}

    @property
    def base_is_separate(self) -> bool:
        """Whether the file does not contain CLIP's weights, because training kept them frozen."""
        return self.base is not None and not self.model.train_base

    @property
    def label_set(self) -> LabelSet:
        """The labels that the model was trained on."""
        return LabelSet(**self.labels.model_dump())


def make_facts(
    config: ModelConfig,
    labels: LabelSet,
    base: Base | None,
    training: dict[str, Any],
    calibration: Calibration | None = None,
) -> Facts:
    """The config.json of a model, in the current format."""
    return Facts(
        model=config,
        labels=Labels(**vars(labels)),
        base=base,
        calibration=calibration,
        training=training,
    )


def save(folder: Path, state: dict[str, Tensor], facts: Facts) -> None:
    """Write a checkpoint; each file is written atomically.

    ``state``: all weights of the model, name -> tensor. Floats are stored in half precision (2
    bytes), those of a model on a frozen CLIP unchanged. PevlError when the folder cannot be
    written.
    """
    stored = {}
    for key, value in state.items():
        if facts.base_is_separate and key.startswith(BASE_PREFIXES):
            continue
        half = not facts.base_is_separate and value.is_floating_point() and "running" not in key
        stored[key] = value.detach().cpu().to(torch.float16 if half else value.dtype).contiguous()
    with atomic_write(folder / "model.safetensors") as temporary:
        try:
            save_file(stored, temporary)
        except SafetensorError as error:
            raise PevlError(f"{folder}: model.safetensors cannot be written ({error}).") from error
        temporary.chmod(0o644)  # safetensors creates a file that only its owner can read
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(facts.model_dump(), indent=1), encoding="utf-8")


def find(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint, from a bundled name, the folder's path, or a file in it.

    A bundled name always means the bundled checkpoint; for a folder with this name in the working
    folder use "./pevl-mini". PevlError if there is no such checkpoint.
    """
    path = Path(checkpoint)
    if str(checkpoint) in weights.bundled():
        path = weights.BUNDLED / path
    elif path.is_file() and path.name in {"config.json", "model.safetensors"}:
        path = path.parent
    if not path.is_dir():
        names = ", ".join(weights.bundled()) or "none"
        raise PevlError(
            f"{checkpoint}: no such checkpoint folder, and not a bundled name ({names})."
        )
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise PevlError(f"{path}: not a checkpoint: {name} is missing.")
    return path


def read_facts(folder: Path) -> Facts:
    """Read and check config.json, also of earlier formats. PevlError gives the wrong field."""
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("format", FORMAT) > FORMAT:
            raise PevlError(
                f"{file}: written by a newer pevl (format {raw['format']}); update pevl."
            )
        if isinstance(raw, dict) and raw.get("format") == 1:
            raw = _from_format_1(raw, file)
        if isinstance(raw, dict) and raw.get("format") == 2:
            raw = _from_format_2(raw)
        return Facts.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise PevlError(f"{file}: {where}: {first['msg'].lower()}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise PevlError(f"{file}: cannot be read ({error}).") from error


# Options of format 1: old name -> new name; and options and values that were removed.
RENAMED = {"both_ways": "flip_at_test", "lacking_joints": "allow_missing_joints"}
REMOVED = {"stem": "conv3d", "class_token": "patches", "crop": "actor", "video_temporal": True}


def _from_format_1(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    """Convert a config.json of format 1 (commit 4854232 and before) to format 2."""
    raw = raw | {"format": 2}
    if isinstance(raw.get("model"), dict):
        model = dict(raw["model"])
        for key, value in REMOVED.items():
            if model.get(key) == value:
                raise PevlError(
                    f"{file}: model.{key}={json.dumps(value)} was removed from pevl; train the "
                    "model again, or use commit 4854232, the last one that reads it."
                )
        model.pop("video_temporal", None)
        on_base = model.pop("frozen_base", True) or raw.get("base") is not None
        model |= {"base": "clip" if on_base else "none", "train_base": not on_base}
        raw["model"] = {RENAMED.get(key, key): value for key, value in model.items()}
    if isinstance(raw.get("calibration"), dict):
        calibration = dict(raw["calibration"])
        platt = calibration.pop("slope", None), calibration.pop("offset", None)
        calibration["platt"] = None if None in platt else platt
        calibration["typical_agreement"] = calibration.pop("agreement", None)
        calibration["prototype"] = calibration.pop("familiarity", None)
        raw["calibration"] = calibration
    return raw


def _from_format_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Convert a config.json of format 2, whose models pool a frame's class token only."""
    raw = raw | {"format": FORMAT}
    if isinstance(raw.get("model"), dict):
        raw["model"] = {"frame_pool": "class"} | raw["model"]
    return raw


def load(folder: Path, clip: str | None = None) -> tuple[PeVL, Facts]:
    """Load a model, in evaluation mode, on the CPU.

    ``clip``: NAME:TAG or a file of the CLIP weights, instead of the stored source; must be the same
    weights. UsageError for ``clip`` if the model is not based on CLIP; PevlError for a damaged
    checkpoint and for other CLIP weights.
    """
    facts = read_facts(folder)
    if clip is not None and facts.model.base == "none":
        raise UsageError(f"--clip {clip}: {folder} is not based on CLIP; leave --clip out.")
    file = folder / "model.safetensors"
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise PevlError(f"{file}: damaged or not a safetensors file ({error}).") from error
    if facts.base is not None and facts.base_is_separate:
        base = _load_base(folder, facts.base, facts.model, clip)
        if base.digest != facts.base.digest:
            raise PevlError(
                f"{folder}: was trained on other CLIP weights than {clip or facts.base.source} "
                f"(hash {facts.base.digest[:8]}, not {base.digest[:8]}); give the right weights "
                "with --clip."
            )
        used = BASE_PREFIXES if facts.model.text else ("visual.",)
        state |= {k: v for k, v in base.state.items() if k.startswith(used)}
    model = PeVL(facts.model)
    if "prototypes" in state:
        model.prototypes = torch.zeros(len(facts.labels.names), facts.model.embed_dim)
    expected = model.state_dict()
    _check_weights(state, expected, file)
    model.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()}, strict=True)
    return model.eval(), facts


def _load_base(folder: Path, base: Base, config: ModelConfig, clip: str | None) -> ClipWeights:
    """The CLIP weights ``clip``, or those that the checkpoint names; PevlError if not there."""
    try:
        return load_clip(clip or base.source, config, trained=True)
    except PevlError as error:
        if clip is not None:
            raise
        reason = str(error).rstrip(".")
        raise PevlError(
            f"{folder}: its CLIP weights cannot be loaded: {reason}; hint: name them with --clip."
        ) from error


def _check_weights(state: dict[str, Tensor], expected: dict[str, Tensor], file: Path) -> None:
    """PevlError for the first weight that is missing, unknown or of another shape."""
    missing, unknown = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    shared = sorted(expected.keys() & state.keys())
    other_shape = [k for k in shared if expected[k].shape != state[k].shape]
    for names, kind in (
        (missing, "lacks"),
        (unknown, "has an unknown"),
        (other_shape, "has a differently shaped"),
    ):
        if names:
            raise PevlError(f"{file}: does not fit its config.json: it {kind} weight '{names[0]}'.")
