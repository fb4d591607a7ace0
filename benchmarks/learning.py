"""Whether a recipe learns: loss, training accuracy, and the gradient of every part of the model.

    python benchmarks/learning.py CLIPS/field --config vit-b-16 --steps 200 --out DIR

The towers have CLIP's shape and random weights, frozen as CLIP's are: CLIP's own cannot be
downloaded everywhere. Adds a row per step to DIR/curve.csv, and prints a summary. A run that was
stopped goes on from its last saved state when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pevl_cli.data.clips import Clips
from pevl_cli.data.dataset import read_data
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.pevl import MAX_LOGIT_SCALE, PeVL
from pevl_cli.model.weights_file import state_digest
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.training import run_folder
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.training.state import TrainState
from pevl_cli.training.trainer import Trainer

# First component of a parameter's name -> part; with `visual` and `text` the towers themselves.
PARTS = {"logit_scale": "temperatures", "refinement_scale": "temperatures"}


class RecordingTrainer(Trainer):
    """A `Trainer` that writes each step's loss, accuracy and gradient norms into a CSV."""

    curve: Path
    norms: dict[str, float]  # of the last step
    counts: tuple[int, int] = (0, 0)  # right and seen clips of the epoch, before the last step

    def _update_weights(self) -> None:
        """Keep the gradient norm of each part, before clipping."""
        squares: dict[str, float] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                part = name.split(".")[0]
                part = PARTS.get(part, part)
                square = float(parameter.grad.float().square().sum())
                squares[part] = squares.get(part, 0.0) + square
        self.norms = {part: square**0.5 for part, square in squares.items()}
        super()._update_weights()

    def _report(self, epoch: int, loss: float) -> None:
        super()._report(epoch, loss)
        progress = self.progress
        right, seen = progress.right, progress.seen
        before = self.counts if progress.steps % self.epoch_steps != 1 else (0, 0)
        self.counts = (right, seen)
        row: dict[str, Any] = {
            "step": progress.steps,
            "loss": round(loss, 5),
            "right": right - before[0],
            "clips": seen - before[1],
            "temperature": round(float(self.model.temperature.detach()), 6),
            **{f"gradient {k}": f"{v:.3g}" for k, v in sorted(self.norms.items())},
        }
        with self.curve.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)


def clips_of(
    settings: TrainSettings, split: str, per_class: int | None, classes: int | None
) -> tuple[Clips, LabelSet]:
    """The clips of a split with stored or detected poses, and the labels."""
    manifest = read_data(settings.data, settings.run.seed)
    labels = manifest.labels
    poses = None if settings.data.poses is None else read_poses(settings.data.poses)
    detector = None if poses is not None else PoseDetector(settings.run.pose_weights, device="cpu")
    items = manifest.in_split(split)
    if classes is not None:
        kept = labels.names[:classes]
        items = [item for item in items if item.label in kept]
        labels = dataclasses.replace(
            labels, names=kept, texts=labels.texts[:classes], others=labels.others[:classes]
        )
    clips = Clips(items, labels.names, settings.model, detector, 20 << 30, poses)
    clips.check(lambda done, total: None, settings.data.workers)
    if per_class is not None:
        clips.keep_shots(per_class, settings.run.seed)
    return clips, labels


def summary(curve: Path, steps: int = 20) -> list[str]:
    """First and last ``steps`` rows side by side."""
    with curve.open() as file:
        rows = list(csv.DictReader(file))
    lines = [f"{'':28} {'first ' + str(steps):>12} {'last ' + str(steps):>12}"]

    def mean(part: Sequence[dict[str, str]], key: str) -> float:
        return float(np.mean([float(row[key]) for row in part]))

    for key in rows[0]:
        if key in {"step", "clips"}:
            continue
        values = [mean(part, key) for part in (rows[:steps], rows[-steps:])]
        if key == "right":
            key = "training accuracy"
            clips = [mean(part, "clips") for part in (rows[:steps], rows[-steps:])]
            values = [value / count for value, count in zip(values, clips, strict=True)]
        lines.append(f"{key:28} {values[0]:12.4g} {values[1]:12.4g}")
    largest = {k: max(float(r[k]) for r in rows) for k in rows[0] if k.startswith("gradient")}
    least = {k: min(float(r[k]) for r in rows[1:]) for k in largest}
    lines += [f"{k}: from {least[k]:.3g} to {largest[k]:.3g} after the first step" for k in largest]
    return lines


def _forget_after(curve: Path, step: int) -> None:
    """Drop the rows of steps that will be done again."""
    lines = curve.read_text().splitlines(keepends=True)
    curve.write_text("".join(lines[: step + 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="vit-b-16")
    parser.add_argument("--recipe", default="own", choices=("own", "paper"))
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    parser.add_argument("--poses", type=Path, help="stored poses, in place of a detector")
    parser.add_argument("--pose-weights")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--per-class", type=int, help="training clips of each class, at most")
    parser.add_argument("--classes", type=int, help="the first classes only")
    parser.add_argument("--val-per-class", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    given: dict[str, Any] = {
        "data.dataset": arguments.dataset,
        "data.poses": arguments.poses,
        "data.workers": 0,
        "recipe": arguments.recipe,
        "run.out": arguments.out,
        "run.seed": arguments.seed,
        "run.device": "cpu",
        "run.tracker": "none",
        "run.save_minutes": 5.0,
        "run.pose_weights": arguments.pose_weights,
    }
    settings = load_settings(arguments.config, given, arguments.assignments)
    counts = arguments.per_class, arguments.classes
    train_clips, labels = clips_of(settings, "train", *counts)
    val_clips, _ = clips_of(settings, "val", arguments.val_per_class, arguments.classes)
    # One epoch: the schedule spans all steps, and the clips are validated once, at its end.
    optim = settings.optim
    share = optim.warmup_epochs / optim.epochs
    optim = optim.model_copy(
        update={"epochs": 1, "min_steps": arguments.steps, "warmup_epochs": share}
    )
    if len(train_clips) >= arguments.steps * optim.batch_size:
        train_clips.keep(range(arguments.steps * optim.batch_size))
    settings = settings.model_copy(update={"optim": optim})
    torch.manual_seed(arguments.seed)
    model = PeVL(settings.model)
    if settings.model.base == "clip":
        model.logit_scale.data.fill_(MAX_LOGIT_SCALE)  # CLIP's own
    towers = {k: v for k, v in model.state_dict().items() if k.startswith(checkpoint.BASE_PREFIXES)}
    base = checkpoint.Base(source="random weights", digest=state_digest(towers))
    trainer = RecordingTrainer(model, labels, settings, base=base)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer.curve = arguments.out / "curve.csv"
    state = TrainState.load(arguments.out) if run_folder.has_state(arguments.out) else None
    if state is not None:
        _forget_after(trainer.curve, state.progress.steps)
        trainer.counts = state.progress.right, state.progress.seen
    result = trainer.fit(train_clips, val_clips, state)
    print("\n".join(summary(trainer.curve)))
    print(f"{result.seconds / 60:.1f} minutes, {result.seconds / arguments.steps:.2f} s a step")
    if result.last is not None:
        print(f"val top-1 {result.last.top1:.1%} of {result.last.count} clips")


if __name__ == "__main__":
    main()
