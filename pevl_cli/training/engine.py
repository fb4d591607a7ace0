"""Set up Lightning Fabric from the settings: device, processes, precision, tracker.

Fabric, not Accelerate: its all_gather keeps gradients (the contrast needs the clips of all
processes), it starts the processes of one machine, and it has no global state. Its log lines and
warnings are not changed here.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.nn.attention import SDPBackend, sdpa_kernel

from pevl_cli.errors import PevlError
from pevl_cli.hardware import choose_device, has_bf16
from pevl_cli.training.settings import TrainSettings

# How long a process may wait for the others. Far above torch's 10 or 30 minutes, because the parts
# of the work are not equal: one process may decode for an hour what another one has in the cache. A
# process that has died ends the others without this limit.
LONGEST_WAIT = timedelta(days=1)


def make_fabric(settings: TrainSettings, alone: bool = False) -> Fabric:
    """The Fabric object of a run, not launched yet.

    The number of processes comes from torchrun if it started this process, otherwise from
    ``run.processes``; with ``alone`` it is 1. PevlError when this machine does not support the
    precision, the number of processes or the tracker. UsageError for an unknown device.
    """
    device = choose_device(settings.run.device)
    accelerator, _, index = device.partition(":")
    precision = training_precision(settings)
    if precision == "fp16" and accelerator == "cpu":
        raise PevlError("run.precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    processes, world, torchrun = (1, 1, False) if alone else _count_processes(settings)
    _check_processes(settings, accelerator, processes, world)
    plugins: list[Any] = []
    if precision != "fp32":
        plugins.append(_Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", accelerator))
    if not torchrun:  # ignore the environment variables of a cluster
        plugins.append(LightningEnvironment())
    return Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index and processes == 1 else processes,
        num_nodes=max(world // processes, 1),
        strategy=DDPStrategy(find_unused_parameters=True, timeout=LONGEST_WAIT)
        if world > 1
        else "auto",
        plugins=plugins,
        loggers=_make_tracker(settings.run.tracker, settings.folder),
    )


def local_processes(settings: TrainSettings) -> int:
    """Number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", settings.run.processes))  # torchrun's number


def _count_processes(settings: TrainSettings) -> tuple[int, int, bool]:
    """Number of processes on this machine, on all machines, and whether torchrun started them."""
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    processes = local_processes(settings)
    world = int(os.environ.get("WORLD_SIZE", processes)) if torchrun else processes
    return processes, world, torchrun


def _check_processes(settings: TrainSettings, accelerator: str, processes: int, world: int) -> None:
    if settings.optim.batch_size % world:
        raise PevlError(
            f"optim.batch_size {settings.optim.batch_size} cannot be shared evenly among {world} "
            "processes."
        )
    gpus = torch.cuda.device_count()
    needs_gpus = accelerator == "cuda" or (settings.run.device == "auto" and processes > 1)
    if processes > gpus and needs_gpus:
        raise PevlError(
            f"--gpus {processes}: this machine has {gpus or 'no'} GPUs that torch can use; hint: "
            "leave --gpus out."
        )


def merge_dicts(fabric: Fabric, part: dict[int, str]) -> dict[int, str]:
    """The entries of the parts of all processes, whose keys differ; the same in each process."""
    if fabric.world_size == 1:
        return part
    parts: list[dict[int, str]] = [{}] * fabric.world_size
    torch.distributed.all_gather_object(parts, part)
    return {key: value for one in parts for key, value in one.items()}


def training_precision(settings: TrainSettings) -> str:
    """The precision "fp32", "bf16" or "fp16"; "auto" chooses bf16 if the hardware supports it."""
    if settings.run.precision != "auto":
        return settings.run.precision
    return "bf16" if has_bf16(choose_device(settings.run.device)) else "fp32"


def _make_tracker(name: str, folder: Path) -> Any:
    if name == "none":
        return None
    session = time.strftime("%Y%m%d-%H%M%S")  # so that a continued run keeps the earlier logs
    if name == "tensorboard":
        from lightning_fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="log", version=session)
    if name == "csv":
        from lightning_fabric.loggers import CSVLogger

        return CSVLogger(folder, name="log", version=session, flush_logs_every_n_steps=1)
    try:
        from lightning.pytorch import loggers

        if name == "wandb":
            return loggers.WandbLogger(save_dir=folder, project="pevl", name=folder.name)
        # A local database by default: MLflow no longer writes plain folders.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return loggers.MLFlowLogger("pevl", folder.name, server)
    except ImportError as error:
        raise PevlError(f"run.tracker {name}: pip install lightning {name} first.") from error


class _Autocast(MixedPrecision):  # type: ignore[misc]
    """Mixed precision that leaves the model's input in float32, as coordinates need it."""

    def convert_input(self, data: Any) -> Any:
        return data


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """A context with the fastest attention kernel for training.

    On the CPU, the backward pass of the fused kernel is slower than plain matrix products.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
