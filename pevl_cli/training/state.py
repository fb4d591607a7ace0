"""The state of a training run: saved as a whole, and checked key by key when it is loaded."""

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
from pevl_cli.model.mini.stem import frozen_network
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.weights_file import state_digest
from pevl_cli.training import run_folder

Conditions = dict[str, str | int | None]


@dataclass
class Progress:
    """Progress of a run; the training loop updates it."""

    steps: int = 0  # optimiser steps
    epochs: int = 0  # completed
    right: int = 0  # training clips of this epoch with a correct answer
    seen: int = 0  # training clips of this epoch
    wait_s: float = 0.0  # time spent waiting for clips
    seconds: float = 0.0  # training time, including earlier sessions
    best_value: float = -1.0  # top-1 + mean class; -0.5 without validation, -1 before the first
    best_epoch: int = 0
    gained_epoch: int = 0  # last epoch that improved the best value
    best: Accuracy | None = None
    last: Accuracy | None = None


@dataclass(frozen=True)
class TrainState:
    """The state of a run after a step. All fields except ``file`` are saved."""

    settings: dict[str, str]  # `run_folder.fixed_settings`
    conditions: Conditions  # `run_conditions`
    model: dict[str, Tensor]  # `learned_weights`
    averaged: dict[str, Tensor] | None  # the same of the averaged model; None = no averaging
    averaged_updates: int
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    precision: dict[str, Any]
    prototypes: Tensor | None  # (C, e), computed with these weights
    calibration: Calibration | None  # fitted to the last validation
    progress: Progress
    file: Path = Path()  # the file of a loaded state

    def save(self, folder: Path) -> None:
        """Save into a run's folder. PevlError when it cannot be written."""
        content = {name: getattr(self, name) for name in _names(TrainState)}
        content["progress"] = asdict(self.progress)
        if self.calibration is not None:
            content["calibration"] = self.calibration.model_dump()
        run_folder.save_state(folder, content)

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Load the newest readable state. PevlError when there is none, or its keys differ."""
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
                raise _state_error(file, "its calibration has other entries") from error
        return cls(**content, file=file)

    def check_settings(self, settings: dict[str, str]) -> None:
        """PevlError when a setting that determines the weights differs from the state's.

        A setting that only one of them has: another version of pevl began the run.
        """
        for key in sorted(self.settings.keys() | settings.keys()):
            if (key in self.settings) != (key in settings):
                missing = "lacks" if key in settings else "has the unknown"
                raise _state_error(self.file, f"it {missing} setting {key}")
            before, now = self.settings[key], settings[key]
            if before != now:
                raise PevlError(
                    f"{self.file.parent}: was started with {key} = {before}, not {now}; "
                    "a run must be continued with the same settings."
                )

    def check_conditions(self, conditions: Conditions) -> None:
        """PevlError when a condition (`run_conditions`) differs from the state's."""
        for name in conditions | self.conditions:
            before, now = self.conditions.get(name), conditions.get(name)
            if before != now:
                raise PevlError(
                    f"{self.file.parent}: cannot be continued: {name} changed from {before} "
                    f"to {now}; start a new run without --resume."
                )

    def restore_model(self, model: PeVL) -> None:
        """Load the learned weights into a model. PevlError when names, shapes or types differ."""
        _restore(model, self.model, self.file)

    def restore_averaged(self, model: PeVL) -> None:
        """As `restore_model`, for the averaged weights."""
        if self.averaged is None:
            raise _state_error(self.file, "it has no averaged weights")
        _restore(model, self.averaged, self.file)

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Load the optimiser's state.

        PevlError when groups or moments do not fit its parameters.
        """
        now = optimiser.state_dict()
        _check_names(self.file, "optimiser entry", now, self.optimiser)
        indices = [group["params"] for group in now["param_groups"]]
        if [group["params"] for group in self.optimiser["param_groups"]] != indices:
            raise _state_error(self.file, "its optimiser has other parameters")
        for group, stored in zip(now["param_groups"], self.optimiser["param_groups"], strict=True):
            _check_names(self.file, "optimiser entry", group, stored)
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for index, moments in self.optimiser["state"].items():
            _check_names(self.file, "optimiser entry", ("step", "exp_avg", "exp_avg_sq"), moments)
            shape = parameters[index].shape
            if any(moments[name].shape != shape for name in ("exp_avg", "exp_avg_sq")):
                raise _state_error(
                    self.file, f"its optimiser state for parameter {index} has another shape"
                )
        optimiser.load_state_dict(self.optimiser)

    def restore_schedule(self, schedule: LRScheduler) -> None:
        """Load the schedule's state. PevlError when its entries differ."""
        _check_names(self.file, "schedule entry", schedule.state_dict(), self.schedule)
        schedule.load_state_dict(self.schedule)

    def restore_precision(self, precision: Any) -> None:
        """Load the state of Fabric's precision (the loss scale of fp16). PevlError as above."""
        _check_names(self.file, "precision entry", precision.state_dict(), self.precision)
        precision.load_state_dict(self.precision)

    def checked_prototypes(self, shape: tuple[int, int]) -> Tensor | None:
        """The prototypes (C, e) or None. PevlError when they have another shape."""
        if self.prototypes is not None and self.prototypes.shape != shape:
            raise _state_error(self.file, "its prototypes have another shape")
        return self.prototypes


def run_conditions(
    clips: Clips, labels: LabelSet, epoch_steps: int, processes: int, precision: str, model: PeVL
) -> Conditions:
    """Everything except settings that determines the weights of a run: name -> value."""
    digest = hashlib.blake2b(digest_size=8)
    for item, label in zip(clips.items, clips.labels, strict=True):
        digest.update(repr((item, label)).encode())
    digest.update(repr(labels).encode())
    network = frozen_network(model.visual.conv1)
    return {
        "the training clips (as a hash)": digest.hexdigest(),
        "the number of steps an epoch": epoch_steps,
        "the number of processes": processes,
        "the precision": precision,
        "the stem's frozen network (as a hash)": (
            None if network is None else state_digest(network.state_dict())
        ),
    }


def learned_weights(model: PeVL) -> dict[str, Tensor]:
    """Trainable parameters and buffers: name -> tensor (…, n) of any shape.

    Without weights that never change: a frozen base, the frozen network of a stem.
    """
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _restore(model: PeVL, weights: dict[str, Tensor], file: Path) -> None:
    expected = learned_weights(model)
    _check_names(file, "weight", expected, weights)
    for name, value in expected.items():
        if weights[name].shape != value.shape or weights[name].dtype != value.dtype:
            raise _state_error(file, f"weight '{name}' has another shape or type")
    model.load_state_dict(model.state_dict() | weights, strict=True)


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "file"]


def _check_names(
    file: Path, kind: str, expected: Iterable[str], stored: Mapping[str, Any] | Any
) -> None:
    if not isinstance(stored, Mapping):
        raise _state_error(file, f"its content is not a mapping of {kind} names")
    missing, unknown = set(expected) - stored.keys(), stored.keys() - set(expected)
    if missing:
        raise _state_error(file, f"{kind} '{min(missing)}' is missing")
    if unknown:
        raise _state_error(file, f"{kind} '{min(map(str, unknown))}' is unknown")


def _state_error(file: Path, problem: str) -> PevlError:
    return PevlError(
        f"{file}: cannot be continued: {problem}; the state was written by another version of pevl "
        "or is damaged. Use the version that began the run, or start a new run without --resume."
    )
