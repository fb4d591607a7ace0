"""Estimate the memory, disk space and steps of a training run without running it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pevl_cli.data.clips import GIBIBYTE, readable_items
from pevl_cli.data.manifest import Manifest
from pevl_cli.model.config import ModelConfig
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.files import PoseStore
from pevl_cli.training.optimiser import steps_per_epoch
from pevl_cli.training.settings import TrainSettings


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. Memory is per process."""

    train_clips: int  # with a video or stored poses
    val_clips: int
    missing_clips: int  # to train or to validate, with neither
    classes: int
    parameters: int
    tunable: int
    steps: int  # optimiser steps of all epochs
    weight_bytes: int  # weights, gradients, optimiser moments, averaged weights
    activation_bytes: int  # kept for the backward pass, in float32
    state_bytes: int  # on disk: newest and previous state
    checkpoint_bytes: int  # on disk: best and last
    free_bytes: int  # free disk space

    @property
    def memory_bytes(self) -> int:
        """Memory for weights and activations, in bytes."""
        return self.weight_bytes + self.activation_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as text, for a table."""
        memory, weights, activations, disk, free = (
            f"{count / GIBIBYTE:.1f} GiB"
            for count in (
                self.memory_bytes,
                self.weight_bytes,
                self.activation_bytes,
                self.state_bytes + self.checkpoint_bytes,
                self.free_bytes,
            )
        )
        missing = f"; {self.missing_clips:,} more have no file" if self.missing_clips else ""
        return [
            ("clips", f"{self.train_clips:,} to train, {self.val_clips:,} to validate{missing}"),
            ("classes", str(self.classes)),
            ("parameters", f"{self.parameters / 1e6:.1f} M, tunable {self.tunable / 1e6:.1f} M"),
            ("steps", f"{self.steps:,}"),
            (
                "memory at most",
                f"{memory} a process: weights and optimiser {weights}, activations {activations} "
                "(in float32; in bf16 about half of these)",
            ),
            ("disk", f"{disk} for the run, {free} free"),
        ]


def make_plan(settings: TrainSettings, manifest: Manifest, poses: PoseStore | None = None) -> Plan:
    """The sizes of a run with these settings, and stored ``poses`` if it uses them."""
    with torch.device("meta"):
        model = PeVL(settings.model)
    parameters = list(model.parameters())
    tunable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    listed = [
        [replace(i, on_disk=i.on_disk and i.path.exists()) for i in manifest.in_split(split)]
        for split in ("train", "val")
    ]
    train_clips, val_clips = (readable_items(items, poses) for items in listed)
    count = len(train_clips)
    if settings.data.shots is not None:
        per_class: dict[str, int] = {}
        for item in train_clips:
            per_class[item.label] = per_class.get(item.label, 0) + 1
        count = sum(min(n, settings.data.shots) for n in per_class.values())
    optim = settings.optim
    averaged = bool(optim.ema_decay)
    clips_of_process = optim.batch_size // settings.run.processes
    folder = next(
        p for p in (settings.folder.absolute(), *settings.folder.absolute().parents) if p.exists()
    )
    stored = total if settings.model.train_base else tunable
    return Plan(
        train_clips=count,
        val_clips=len(val_clips),
        missing_clips=sum(map(len, listed)) - len(train_clips) - len(val_clips),
        classes=len(manifest.labels),
        parameters=total,
        tunable=tunable,
        steps=steps_per_epoch(settings, count) * optim.epochs,
        weight_bytes=4 * (total * (2 if averaged else 1) + 3 * tunable),
        activation_bytes=activation_bytes(
            settings.model, clips_of_process, settings.run.checkpointing
        ),
        state_bytes=2 * 4 * tunable * (4 if averaged else 3),
        checkpoint_bytes=2 * stored * (2 if settings.model.train_base else 4),
        free_bytes=shutil.disk_usage(folder).free,
    )


def activation_bytes(config: ModelConfig, clips: int, checkpointing: bool = False) -> int:
    """Bytes that autograd saves in one forward pass of ``clips`` clips, in float32.

    The pass runs on the meta device: autograd saves tensors as in training, but nothing is
    computed. Label texts are not counted: they need little memory compared with clips.
    """
    with torch.device("meta"):
        model = PeVL(config).train()
        size = config.image_size
        batch = Batch(
            torch.zeros(clips, config.video_frames, 3, size, size) if config.video else None,
            torch.zeros(clips, config.pose_frames, config.joints, 3) if config.pose else None,
        )
    model.checkpointing = checkpointing
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # otherwise a new tensor could get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model.encode(batch)
    assert features is not None
    return sum(kept.values())


def memory_hints(settings: TrainSettings, processes: int, precision: str) -> str:
    """The error message for too little memory, with options that need less."""
    optim = settings.optim
    half = optim.batch_size // (2 * processes) * processes
    hints = []
    if half >= 2:
        more = optim.accumulate * optim.batch_size // half
        hints.append(f"--set optim.batch_size={half} --set optim.accumulate={more}")
    if not settings.run.checkpointing:
        hints.append("--set run.checkpointing=true (a fifth of the memory for activations)")
    if precision == "fp32":
        hints.append("--precision bf16 (half of the memory for activations)")
    if not hints:
        hints.append("--config mini, or a GPU with more memory")
    return (
        f"the memory is too small for {optim.batch_size} clips at a time; try "
        + ", or ".join(hints)
        + "."
    )
