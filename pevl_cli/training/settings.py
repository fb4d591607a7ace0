"""All settings of a training run, validated; from a preset, a YAML file, and options.

Imports neither torch nor rich, so that a wrong option is rejected before slow imports.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pevl_cli.choices import Precision, Recipe, Tracker
from pevl_cli.data.augmentation import Augmentation, Section
from pevl_cli.data.dataset import DataSettings
from pevl_cli.data.sets.named import known_name
from pevl_cli.errors import UsageError
from pevl_cli.model.config import CONFIGS, ModelConfig


class OptimSettings(Section):
    """Settings of the optimiser, AdamW with a cosine schedule; see `PAPER` and `PRESETS`."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(8, ge=2)  # clips contrasted with each other, over all processes
    accumulate: int = Field(1, ge=1)  # batches per optimiser step
    lr: float = Field(3e-4, gt=0)  # learning rate of new weights, the highest of the schedule
    # Learning rate of CLIP's weights, if they are trained, as a share of lr.
    pretrained_rate: float = Field(0.1, gt=0, le=1)
    beta2: float = Field(0.999, gt=0, lt=1)  # decay of AdamW's second moment
    weight_decay: float = Field(0.05, ge=0)  # for matrices only
    warmup_epochs: float = Field(3.0, ge=0)  # linear rise, before a cosine decay to 0
    min_steps: int = Field(
        150, ge=0
    )  # of all epochs: with few clips, each occurs several times per epoch
    ema_decay: float = Field(0.0, ge=0, lt=1)  # decay of the averaged weights; 0 = no averaging
    balance: float = Field(0.0, ge=0, le=1)  # 0 = clips equally frequent, 1 = classes
    clip_norm: float = Field(1.0, gt=0)  # maximum gradient norm
    patience: int = Field(0, ge=0)  # epochs without improvement before stopping; 0 = never stop


class RunSettings(Section):
    """Settings of a run: its folder, device, processes, logs."""

    out: Path | None = None  # folder of the run; None = runs/DATASET-CONFIG
    seed: int = Field(0, ge=0)
    device: str = "auto"  # auto, cpu, mps, cuda, cuda:N; auto = a GPU, otherwise the CPU
    processes: int = Field(1, ge=1)  # number of GPUs, or of CPU processes, of this machine
    precision: Precision = "auto"  # auto = bf16 if the hardware supports it, otherwise fp32
    pose_weights: Path | None = None  # of the pose detector; None: see `find_weights`
    compile: bool = False  # use torch.compile (benchmarks/step.py times it)
    checkpointing: bool = False  # recompute activations: less memory, about a third more time
    tracker: Tracker = "tensorboard"
    save_minutes: float = Field(10.0, ge=0)  # minutes between saved states within an epoch


class TrainSettings(Section):
    """All settings of a training run."""

    recipe: Recipe = "own"
    model: ModelConfig
    init: str | None = None  # initial checkpoint: a folder, or a bundled name
    clip: str | None = None  # CLIP weights: NAME:TAG of open_clip, or a file
    data: DataSettings
    optim: OptimSettings = OptimSettings()
    augment: Augmentation = Augmentation()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainSettings:
        if self.optim.batch_size % self.run.processes:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} cannot be shared evenly among "
                f"{self.run.processes} processes"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder of the run: `run.out`, otherwise runs/DATASET-CONFIG."""
        named = known_name(self.data.dataset) if self.data.root is not None else None
        name = f"{named or self.data.dataset.resolve().stem}-{self.model.name}"
        return self.run.out or Path("runs") / name


# "paper": what the paper says (Sec. 4.1: AdamW, base rate 8e-6, weight decay 0.05, 50 epochs, 3 of
# them warm-up, cosine to 0), and X-CLIP's recipe, its [38], from which these come: new weights
# learn at ten times the base rate, beta2 is 0.98, vectors and temperatures have no decay. Three
# crops at test are the paper's. Batch size, clipping of gradients and augmentation are not given;
# they are the defaults above: ours.
PAPER: dict[str, Any] = {
    "model": {"contrast": "batch", "views_at_test": 3},
    "optim": {
        "epochs": 50,
        "lr": 8e-5,
        "pretrained_rate": 0.1,
        "beta2": 0.98,
        "weight_decay": 0.05,
        "warmup_epochs": 3.0,
        "min_steps": 0,
    },
}
# "own": for own data. Name of a config -> settings that differ from the defaults. On CLIP: AIM's
# rate, the default above, and enough steps for few clips (benchmarks/README.md).
ON_CLIP: dict[str, Any] = {"optim": {"min_steps": 400}}
MINI: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 16,
    "lr": 1e-3,
    "ema_decay": 0.98,
    "balance": 0.5,
}
PRESETS: dict[str, dict[str, Any]] = {
    **{name: ON_CLIP for name, config in CONFIGS.items() if config.base == "clip"},
    "mini": {
        "optim": MINI,
        "augment": {
            "scale": 0.12,
            "turn_deg": 6.0,
            "shortest": 0.85,
            "brightness": 0.15,
            "contrast": 0.15,
            "colour": 0.15,
            "grey": 0.05,
            "erase": 0.1,
            "joint_noise": 0.008,
            "joint_dropout": 0.05,
            "stream_dropout": 0.1,
        },
    },
    "mini-i3d": {
        "optim": MINI,
        "augment": {
            "scale": 0.15,
            "turn_deg": 8.0,
            "aspect": 0.2,
            "shortest": 0.75,
            "warp": 0.3,
            "brightness": 0.25,
            "contrast": 0.25,
            "colour": 0.3,
            "grey": 0.1,
            "erase": 0.1,
            "joint_noise": 0.004,
            "joint_shift": 0.004,
            "joint_dropout": 0.05,
            "limb_dropout": 0.03,
            "frame_dropout": 0.03,
            "stream_dropout": 0.15,
        },
    },
}

# For a `mini` that starts from a checkpoint (--init): it knows most already, and a few clips
# are learnt in 60 steps (benchmarks/teach.py).
FROM_MINI: dict[str, Any] = {"optim": {"epochs": 20, "batch_size": 8, "min_steps": 60}}

# Changes for a new pose-only `mini`. Attention over joints overfits to the people of a few hundred
# clips, and the maximum finds the moment in which two strokes differ (benchmarks/README.md).
POSE_ONLY = {"pose_layers": 0, "pose_pool": "max"}

# Options of commit 4854232 and before -> new names (None = removed); for messages.
OLD_NAMES = {
    "augment.joint_loss": "augment.joint_dropout",
    "augment.stream_loss": "augment.stream_dropout",
    "model.both_ways": "model.flip_at_test",
    "model.lacking_joints": "model.allow_missing_joints",
    "model.frozen_base": "model.train_base, which is the opposite",
    "model.video_temporal": None,
}
OLD_VALUES = {"model.stem=conv3d", "model.class_token=patches", "model.crop=actor"}
OLD_COMMIT = "4854232"  # the last commit with the old options


def load_settings(
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    base: ModelConfig | None = None,
) -> TrainSettings:
    """Settings from a preset's name or a YAML file, ``overrides``, and KEY=VALUE ``assignments``.

    Later sources replace values of earlier ones. Keys are dotted: ``optim.lr``. ``config`` None:
    the preset of ``base``, otherwise `mini`. ``base``: the model config of the checkpoint ``init``,
    instead of the preset's. UsageError for an unknown option (with the nearest name) or a wrong
    value.
    """
    default = base.name if base is not None else "mini"
    config = config or default
    chosen: dict[str, Any] = (
        {"model": {"name": str(config)}} if str(config) in CONFIGS else _read_yaml(Path(config))
    )
    stored_recipe = chosen.get("recipe")
    for key, value in (overrides or {}).items():
        _set_option(chosen, key, value)
    for assignment in assignments:
        _set_option(chosen, *_parse_assignment(assignment))
    if stored_recipe not in (None, chosen.get("recipe")):
        raise UsageError(
            f"--recipe {chosen['recipe']}: {config} has the values of recipe '{stored_recipe}'; "
            "leave --recipe out, or name a config such as vit-b-16."
        )
    model = chosen.get("model")
    name = model.get("name", default) if isinstance(model, dict) else default
    if base is None and name not in CONFIGS:
        raise UsageError(f"model.name '{name}': one of {', '.join(CONFIGS)} is needed.")
    if base is not None and name != base.name:
        raise UsageError(f"init: is a checkpoint of config '{base.name}', not '{name}'.")
    start = base or CONFIGS[name]
    if base is None and isinstance(model, dict) and model.get("video") is False:
        start = for_pose_only(start)
    recipe = PAPER if chosen.get("recipe") == "paper" else PRESETS.get(start.name, {})
    if base is not None and base.base == "none" and recipe is not PAPER:
        recipe = _merge(recipe, FROM_MINI)
    tree = _merge(_merge({"model": start.model_dump()}, recipe), chosen)
    try:
        settings = TrainSettings.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_message(error)) from error
    model_is_known = settings.init is None or base is not None
    if model_is_known and settings.clip is not None and settings.model.base == "none":
        raise UsageError(
            f"--clip: a model with base 'none' ('{settings.model.name}') takes no CLIP weights; "
            "leave --clip out, or use --config vit-b-16."
        )
    return settings


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {assignment}: KEY=VALUE is needed, such as optim.lr=1e-4.")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {assignment}: the value cannot be read.") from error


def for_pose_only(config: ModelConfig) -> ModelConfig:
    """The config of a new pose-only model; fields that differ from the preset are kept."""
    changes: dict[str, object] = {"video": False}
    if config.base == "none" and config.name in CONFIGS and config.has_body_features:
        preset = CONFIGS[config.name]
        changes |= {k: v for k, v in POSE_ONLY.items() if getattr(config, k) == getattr(preset, k)}
    return config.model_copy(update=changes)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        close = difflib.get_close_matches(str(path), CONFIGS, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(
            f"--config {path}: {hint}Give {', '.join(CONFIGS)}, or a YAML file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a YAML file ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise UsageError(
            f"{path}{where}: not YAML ({getattr(error, 'problem', error)})."
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: sections such as 'optim:' with options below them are needed.")
    return content


def _set_option(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{key}: '{section}' is not a section.")
        tree = inner
    tree[last] = value


def _merge(defaults: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(defaults)
    for key, value in overrides.items():
        inner = out.get(key)
        out[key] = (
            _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return out


def _message(error: ValidationError) -> str:
    """The first error as one sentence."""
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"there is no option {key}{_hint(key)}"
    if first["type"] == "missing":
        return f"{key} is needed."
    if f"{key}={first['input']}" in OLD_VALUES:
        return (
            f"{key}={first['input']} was removed: it never improved a result. The last commit "
            f"that has it is {OLD_COMMIT}."
        )
    reason = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    shown = f" (the value is {value!r})" if isinstance(value, str | int | float) else ""
    return f"{key or 'settings'}: {reason[0].lower() + reason[1:]}{shown}."


def _hint(key: str) -> str:
    """The end of the message for an unknown option: its new or nearest name."""
    last = key.rpartition(".")[2]
    old = [name for name in OLD_NAMES if name == key or name.endswith(f".{key}")]
    if old:
        new = OLD_NAMES[old[0]]
        if new is None:
            return f" any more: it was removed. The last commit that has it is {OLD_COMMIT}."
        return f" any more: use {new}."
    close = difflib.get_close_matches(key, option_names(), 1, cutoff=0.5)
    same = [name for name in option_names() if name.rpartition(".")[2] == last]
    nearest = (same or close)[:1]
    return f". Did you mean {nearest[0]}?" if nearest else "."


def option_names() -> list[str]:
    """The dotted names of all options."""
    keys = []
    for name, field in TrainSettings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{name}.{key}" for key in inner.model_fields]
        else:
            keys.append(name)
    return keys
