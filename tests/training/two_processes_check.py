"""A run by two processes with a detector that records who detects what: a script for a test.

python tests/training/two_processes_check.py DATASET FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_runs import FAST, settings_of

from pevl_cli.media.video import Clip
from pevl_cli.pose.actor import Actor
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.training import train as training
from pevl_cli.training.trainer import Trainer


def main(dataset: Path, folder: Path) -> None:
    weights = folder / "weights.pt"
    weights.write_bytes(b"weights")
    rank = os.environ.get("LOCAL_RANK", "0")
    record = folder / f"detected_by_{rank}.txt"

    def actor(self: PoseDetector, clip: Clip, use_cache: bool = True) -> Actor:
        with record.open("a") as file:
            file.write(f"{clip.path.parent.name}/{clip.path.name} {self.device}\n")
        count = len(clip.frames)
        boxes = np.tile(np.float32([10, 10, 60, 100]), (count, 1))
        seen = np.ones(count, bool)
        return Actor(np.full((count, 17, 3), 40, np.float32), boxes, seen, ~seen, people=1)

    def fit(self: Trainer, *arguments: object) -> object:
        group = torch.distributed.group.WORLD
        timeout = group._get_backend(torch.device("cpu")).options._timeout
        (folder / f"timeout_of_{rank}.txt").write_text(str(timeout.total_seconds()))
        return fit_as_usual(self, *arguments)

    PoseDetector.actor = actor
    fit_as_usual, Trainer.fit = Trainer.fit, fit
    options = {"optim__epochs": 1, "run__processes": 2, "run__pose_weights": weights, **FAST}
    training.train(settings_of(dataset, folder / "run", model__crop="follow", **options))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
