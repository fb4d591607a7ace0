"""Seconds of a training step on this machine, measured with random weights and clips.

The time does not depend on their values.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pevl_cli.data.batches import BatchPlan
from pevl_cli.hardware import choose_device
from pevl_cli.labels import LabelSet
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.engine import make_fabric
from pevl_cli.training.settings import TrainSettings
from pevl_cli.training.trainer import Trainer

# On a CPU a whole step takes long, with CLIP's towers minutes and many GiB. There the step of so
# many clips is measured, and with CLIP's towers (base "clip") of models with 1 and 2 layers.
CPU_CLIPS = {"clip": 2, "none": 8}
STEPS = 4  # at most; the fastest counts, as the first one loads kernels


@dataclass(frozen=True)
class StepTime:
    """The time of an optimiser step of one process."""

    seconds: float
    measured: str  # how: such as "from 2 clips, on cpu in fp32"


def measure_step(settings: TrainSettings, labels: LabelSet, limit_s: float) -> StepTime:
    """The time of a step of a run with these settings, by a few steps in this process.

    No step is begun that would probably end after ``limit_s`` seconds, except the first. The
    exchange among processes and `run.compile` are not measured. Seeds torch's global random
    generator. torch.OutOfMemoryError, or RuntimeError of the CPU's allocator, when the memory is
    too small; PevlError for a device or precision that this machine does not support.
    """
    end_s = time.perf_counter() + limit_s
    config, optim = settings.model, settings.optim
    if not config.text:
        config = config.model_copy(update={"classes": len(labels)})
    device = choose_device(settings.run.device)
    clips_of_process = optim.batch_size // settings.run.processes
    clips = min(clips_of_process, CPU_CLIPS[config.base]) if device == "cpu" else clips_of_process
    alone = {"device": device, "processes": 1, "tracker": "none", "compile": False}
    settings = settings.model_copy(update={"run": settings.run.model_copy(update=alone)})
    parts = [] if clips == clips_of_process else [f"{clips} clips"]
    if device == "cpu" and config.base == "clip" and config.layers > 2:
        seconds, part = _extrapolate(settings, labels, config, clips, end_s)
        parts.append(part)
    else:
        seconds = _fastest(_Step(settings, labels, config, clips), end_s)
    origin = f"from {' and '.join(parts)}, " if parts else ""
    return StepTime(
        seconds * optim.accumulate * clips_of_process / clips,
        f"{origin}on {device}, random weights",
    )


class _Step:
    """A step of ``clips`` random clips; a call returns its seconds."""

    def __init__(
        self, settings: TrainSettings, labels: LabelSet, config: ModelConfig, clips: int
    ) -> None:
        optim = settings.optim.model_copy(update={"batch_size": clips, "accumulate": 1})
        settings = settings.model_copy(update={"model": config, "optim": optim})
        # Alone, also if torchrun started this process: the others measure nothing.
        self.trainer = Trainer(PeVL(config), labels, settings, make_fabric(settings, alone=True))
        self.plan = BatchPlan([i % len(labels) for i in range(clips)], clips, STEPS, 1, 0.0, 0)
        size = config.image_size
        frames = torch.randint(0, 256, (clips, config.video_frames, 3, size, size)).byte()
        joints = torch.rand(clips, config.pose_frames, config.joints, 3)
        joints[..., 2] = 1  # visible
        self.batch = Batch(frames if config.video else None, joints if config.pose else None)

    def __call__(self) -> float:
        start_s = time.perf_counter()
        self.trainer.step(iter([self.batch]), self.plan, 1, 0)
        if self.trainer.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.fabric.device)
        return time.perf_counter() - start_s


def _fastest(step: _Step, end_s: float, steps: int = STEPS) -> float:
    """Seconds of the fastest of some steps that probably end before ``end_s``; at least one."""
    times = [step()]
    while len(times) < steps and time.perf_counter() + min(times) < end_s:
        times.append(step())
    return min(times)


def _extrapolate(
    settings: TrainSettings, labels: LabelSet, config: ModelConfig, clips: int, end_s: float
) -> tuple[float, str]:
    """Seconds of a step of all layers, from steps of models with 1 and 2 layers; and from what.

    If the time is too short for the second model, all layers are taken to be as slow as the whole
    model with one: an upper bound.
    """

    def step_with(layers: int) -> _Step:
        kept = {
            "layers": layers,
            "pose_layers": min(config.used_pose_layers, layers),
            "p2v_layers": tuple(i for i in config.p2v_layers if i < layers),
            # The same share of the text tower's layers.
            "text_layers": max(round(config.text_layers * layers / config.layers), 1),
        }
        return _Step(settings, labels, config.model_copy(update=kept), clips)

    # A third of the time for one layer, the rest for two, which take twice as long.
    third_s = (end_s - time.perf_counter()) / 3
    one_s = _fastest(step_with(1), time.perf_counter() + third_s, 2)
    if time.perf_counter() + 2 * one_s > end_s:
        return config.layers * one_s, f"1 of {config.layers} layers, as an upper bound"
    two_s = _fastest(step_with(2), end_s, 2)
    each_s = two_s - one_s if two_s > one_s else two_s / 2  # the second: only noise was measured
    return one_s + (config.layers - 1) * each_s, f"1 and 2 of {config.layers} layers"
