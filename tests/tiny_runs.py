"""Training runs that take no time, on the clips of the fixture `moves`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import child_environment

from pevl_cli.training.progress import Event
from pevl_cli.training.settings import TrainSettings, load_settings

# A `mini` made small, with what is random in a real one: dropout, batch statistics.
SMALL: dict[str, Any] = {
    "width": 32,
    "embed_dim": 16,
    "image_size": 32,
    "text_width": 16,
    "vocab_size": 300,
    "pose": False,
    "crop": "full",
}
# Options of `settings_of`: a stem in place of the pose network, for tests that need no such thing.
FAST = {"model__stem": "patch", "model__patch_size": 16}


def settings_of(dataset: Path, out: Path, **options: Any) -> TrainSettings:
    """Settings of a short run; ``options`` as ``optim__epochs=1``."""
    overrides = {
        "data.dataset": dataset,
        "run.out": out,
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.tracker": "none",
        "optim.batch_size": 4,
        "optim.epochs": 4,
        "optim.min_steps": 12,
        **{f"model.{k}": v for k, v in SMALL.items()},
        **{k.replace("__", "."): v for k, v in options.items()},
    }
    return load_settings("mini", overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights in a run's newest state."""
    state: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["model"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def command(settings: TrainSettings, folder: Path, *more: str) -> list[str]:
    """The command line of `pevl train` with these settings."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    options = ["train", "--config", str(file), "--out", str(folder), *more]
    return [sys.executable, "-m", "pevl_cli", *options]


def call(line: list[str]) -> subprocess.CompletedProcess[str]:
    environment = child_environment()
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)


class StopError(Exception):
    """Ends a run from outside, as a power cut does."""


def stop_after(steps: int) -> Callable[[Event], None]:
    """A listener that raises StopError during the step after so many."""

    def listener(event: Event) -> None:
        if event.stage == "training" and event.done == steps + 1:
            raise StopError

    return listener
