"""All that a continued run needs: saved whole, and checked key by key when it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pevl_cli.data.clips import Clips
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.metrics import Accuracy
from pevl_cli.model.calibration import Calibration
from pevl_cli.model.clip import state_digest
from pevl_cli.model.mini.stem import PoseStem
from pevl_cli.model.pevl import PeVL
from pevl_cli.training import run_folder

Conditions = dict[str, str | int | None]


@dataclass
class Progress:
    """How far a run is; the loop moves it on."""

    steps: int = 0  # of the optimiser
    epochs: int = 0  # completed
    right: int = 0  # training clips of this epoch whose first answer was right
    seen: int = 0  # training clips of this epoch
    wait_s: float = 0.0  # spent waiting for clips
    seconds: float = 0.0  # of training, earlier sessions included
    best_value: float = -1.0  # top-1 + mean class; -0.5 without validation, -1 before the first
    best_epoch: int = 0
    gained_epoch: int = 0  # the last one that was better than all before it
    best: Accuracy | None = None
    last: Accuracy | None = None


@dataclass(frozen=True)
class TrainState:
    """A run at the end of a step. What is written is all of this but ``file``."""

    settings: dict[str, str]  # `run_folder.fixed_settings`
    conditions: Conditions  # `run_conditions`
    model: dict[str, Tensor]  # `learned_weights`
    averaged: dict[str, Tensor] | None  # `learned_weights` of the averaged model, if there is one
    averaged_updates: int
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    precision: dict[str, Any]
    prototypes: Tensor | None  # (C, e), of these very weights
    calibration: Calibration | None  # fitted to the last validation
    progress: Progress
    file: Path = Path()  # that it was read from

    def save(self, folder: Path) -> None:
        """Into a run's folder; PevlError when it cannot be written."""
        content = {name: getattr(self, name) for name in _names(TrainState)}
        content["progress"] = asdict(self.progress)
        if self.calibration is not None:
            content["calibration"] = self.calibration.model_dump()
        run_folder.save_state(folder, content)

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """The newest state that can be read; PevlError when there is none, or it has other keys."""
        file, content = run_folder.load_state(folder)
        _check_names(file, "entry", _names(cls), content)
        progress = content["progress"]
        _check_names(file, "entry", _names(Progress), progress)
        for name in ("best", "last"):
            if progress[name] is not None:
                _check_names(file, "entry", _names(Accuracy), progress[name])
                progress[name] = Accuracy(**progress[name])
        content["progress"] = Progress(**progress)
        if content["calibration"] is not None:
            try:
                content["calibration"] = Calibration(**content["calibration"])
            except ValidationError as error:
                raise _misfit(file, "its calibration has other entries") from error
        return cls(**content, file=file)

    def check_settings(self, settings: dict[str, str]) -> None:
        """PevlError unless the settings that decide the weights are those of the state."""
        for key in sorted(self.settings.keys() | settings.keys()):
            before, now = self.settings.get(key), settings.get(key)
            if before != now:
                raise PevlError(
                    f"{self.file.parent}: was started with {key} = {before}, not {now}; "
                    "a run is continued with the settings it began with."
                )

    def check_conditions(self, conditions: Conditions) -> None:
        """PevlError unless all else that decides the weights is as it was."""
        for what in conditions | self.conditions:
            before, now = self.conditions.get(what), conditions.get(what)
            if before != now:
                raise PevlError(
                    f"{self.file.parent}: cannot be continued, as {what} changed from {before} "
                    f"to {now} since it began; start anew without --resume."
                )

    def restore_model(self, model: PeVL) -> None:
        """Put the learned weights into a model; PevlError unless they are exactly its own."""
        _restore(model, self.model, self.file)

    def restore_averaged(self, model: PeVL) -> None:
        """As `restore_model`, for the averaged weights."""
        if self.averaged is None:
            raise _misfit(self.file, "it has no averaged weights")
        _restore(model, self.averaged, self.file)

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """PevlError unless groups and moments are those of its parameters."""
        now = optimiser.state_dict()
        _check_names(self.file, "optimiser entry", now, self.optimiser)
        places = [group["params"] for group in now["param_groups"]]
        if [group["params"] for group in self.optimiser["param_groups"]] != places:
            raise _misfit(self.file, "its optimiser has other parameters")
        for group, stored in zip(now["param_groups"], self.optimiser["param_groups"], strict=True):
            _check_names(self.file, "optimiser entry", group, stored)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for place, moments in self.optimiser["state"].items():
            _check_names(self.file, "optimiser entry", ("step", "exp_avg", "exp_avg_sq"), moments)
            shape = parameters[place].shape
            if any(moments[name].shape != shape for name in ("exp_avg", "exp_avg_sq")):
                raise _misfit(self.file, f"its optimiser has another shape of parameter {place}")
        optimiser.load_state_dict(self.optimiser)

    def restore_schedule(self, schedule: LRScheduler) -> None:
        """PevlError unless its entries are those of the schedule."""
        _check_names(self.file, "schedule entry", schedule.state_dict(), self.schedule)
        schedule.load_state_dict(self.schedule)

    def restore_precision(self, precision: Any) -> None:
        """Of Fabric's ``precision``: the loss scale of fp16; nothing otherwise."""
        _check_names(self.file, "precision entry", precision.state_dict(), self.precision)
        precision.load_state_dict(self.precision)

    def checked_prototypes(self, shape: tuple[int, int]) -> Tensor | None:
        """The prototypes (C, e), if any; PevlError when they have another shape."""
        if self.prototypes is not None and self.prototypes.shape != shape:
            raise _misfit(self.file, "its prototypes have another shape")
        return self.prototypes


def run_conditions(
    clips: Clips, labels: LabelSet, epoch_steps: int, processes: int, precision: str, model: PeVL
) -> Conditions:
    """All but the settings that decides the weights of a run."""
    digest = hashlib.blake2b(digest_size=8)
    for item, label in zip(clips.items, clips.labels, strict=True):
        digest.update(repr((item, label)).encode())
    digest.update(repr(labels).encode())
    stem = model.visual.conv1
    network = state_digest(stem.layers.state_dict()) if isinstance(stem, PoseStem) else None
    return {
        "the training clips (as a hash)": digest.hexdigest(),
        "the number of steps an epoch": epoch_steps,
        "the number of processes": processes,
        "the precision": precision,
        "the stem's pose network (as a hash)": network,
    }


def learned_weights(model: PeVL) -> dict[str, Tensor]:
    """Trainable parameters and buffers; without what never changes: a frozen base, the layers of
    the pose stem."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _restore(model: PeVL, weights: dict[str, Tensor], file: Path) -> None:
    expected = learned_weights(model)
    _check_names(file, "weight", expected, weights)
    for name, value in expected.items():
        if weights[name].shape != value.shape or weights[name].dtype != value.dtype:
            raise _misfit(file, f"weight '{name}' has another shape or type")
    model.load_state_dict(model.state_dict() | weights, strict=True)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "file"]


def _check_names(
    file: Path, kind: str, expected: Iterable[str], stored: Mapping[str, Any] | Any
) -> None:
    if not isinstance(stored, Mapping):
        raise _misfit(file, f"it is not made of {kind} names")
    missing, unknown = set(expected) - stored.keys(), stored.keys() - set(expected)
    if missing:
        raise _misfit(file, f"{kind} '{min(missing)}' is missing")
    if unknown:
        raise _misfit(file, f"{kind} '{min(map(str, unknown))}' is unknown")


def _misfit(file: Path, problem: str) -> PevlError:
    return PevlError(
        f"{file}: cannot be continued, as {problem}; the state was written by another version of "
        "pevl, or is damaged: use the version that began the run, or start anew without --resume."
    )
