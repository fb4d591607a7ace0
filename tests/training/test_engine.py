"""Trackers, processes and precision, and nothing of the host process changed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import cv2
import pytest
import torch
from tiny_runs import FAST, settings_of

from pevl_cli.errors import PevlError
from pevl_cli.training.engine import make_fabric
from pevl_cli.training.train import train


def test_tensorboard_gets_the_curves(moves: Path, tmp_path: Path) -> None:
    given = {"optim__epochs": 1, "run__tracker": "tensorboard"}
    train(settings_of(moves, tmp_path / "run", **given))
    (events,) = (tmp_path / "run" / "log").glob("*/events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"val/top1" in events.read_bytes()


def test_a_tracker_that_is_not_installed(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(PevlError, match="pip install lightning wandb"):
        train(settings_of(moves, tmp_path / "run", run__tracker="wandb"))


def test_training_leaves_the_host_process_as_it_was(moves: Path, tmp_path: Path) -> None:
    def host() -> tuple[object, ...]:
        logger = logging.getLogger("lightning_fabric")
        return (
            logging.root.manager.disable,
            (logger.level, len(logger.handlers), logger.propagate),
            list(warnings.filters),
            dict(os.environ),
            torch.get_num_threads(),
            cv2.getNumThreads(),
        )

    before = host()
    train(settings_of(moves, tmp_path / "run", optim__epochs=1, optim__min_steps=1, **FAST))
    assert host() == before


def test_processes_that_do_not_fit_are_refused(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = settings_of(moves, tmp_path, run__processes=2, run__device="auto")
    with pytest.raises(PevlError, match=r"--gpus 2: this machine has 1 GPUs that torch can use"):
        make_fabric(settings)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # torchrun's number counts
    with pytest.raises(PevlError, match="cannot be shared evenly among 3 processes"):
        make_fabric(settings_of(moves, tmp_path))


def test_half_precision_that_needs_a_gpu_is_refused(moves: Path, tmp_path: Path) -> None:
    with pytest.raises(PevlError, match="fp16 needs a GPU"):
        make_fabric(settings_of(moves, tmp_path, run__precision="fp16"))
