"""Reports of training: events while it runs, and the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pevl_cli.data.clips import LeftOut
from pevl_cli.metrics import Accuracy


@dataclass(frozen=True)
class Event:
    """Progress of training after a step or an epoch."""

    stage: str  # "checking", "preparing", "training", "validating"
    done: int  # clips ("checking", "validating"), views ("preparing") or steps ("training")
    total: int
    epoch: int = 0  # from 1
    loss: float | None = None
    learning_rate: float | None = None
    train_top1: float | None = None  # accuracy in this epoch so far, in [0, 1]
    wait: float | None = None  # share of the time spent waiting for clips, in [0, 1]
    val: Accuracy | None = None


Listener = Callable[[Event], None]


def ignore_event(_: Event) -> None:
    """A listener that does nothing."""


@dataclass
class Result:
    """Result of `train`. Epochs count from 1 and include those of earlier, interrupted calls."""

    folder: Path
    train_clips: int = 0
    val_clips: int = 0
    epochs: int = 0  # completed
    best_epoch: int = 0
    best: Accuracy | None = None
    last: Accuracy | None = None
    seconds: float = 0.0
    wait: float = 0.0  # share of the training time spent waiting for clips, in [0, 1]
    interrupted: bool = False
    stopped_early: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    incomplete: str = ""  # available part of an incomplete data set; empty = complete
