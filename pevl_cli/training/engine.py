"""Lightning Fabric, set up from the settings: device, processes, precision, tracker.

Fabric was chosen over Accelerate because its gathering keeps gradients (the contrast needs the
clips of all processes), it starts the processes of one machine itself, and it keeps no state
outside its own object. Its log lines and warnings are left as the host process has them.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
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


def make_fabric(settings: TrainSettings) -> Fabric:
    """The engine of a run, not launched yet.

    Under torchrun the number of processes is torchrun's, else ``run.processes``. PevlError when
    the precision, the processes or the tracker cannot be had on this machine.
    """
    device = choose_device(settings.run.device)
    accelerator, _, index = device.partition(":")
    precision = training_precision(settings)
    if precision == "fp16" and accelerator == "cpu":
        raise PevlError("run.precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    processes, world, torchrun = _count_processes(settings)
    _check_processes(settings, accelerator, processes, world)
    plugins: list[Any] = []
    if precision != "fp32":
        plugins.append(_Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", accelerator))
    if not torchrun:  # the variables of a cluster do not decide, only what was asked for
        plugins.append(LightningEnvironment())
    return Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index and processes == 1 else processes,
        num_nodes=max(world // processes, 1),
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        plugins=plugins,
        loggers=_make_tracker(settings.run.tracker, settings.folder),
    )


def _count_processes(settings: TrainSettings) -> tuple[int, int, bool]:
    """Processes of this machine, of all machines, and whether torchrun started them."""
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", settings.run.processes))
    world = int(os.environ.get("WORLD_SIZE", processes)) if torchrun else processes
    return processes, world, torchrun


def _check_processes(settings: TrainSettings, accelerator: str, processes: int, world: int) -> None:
    if settings.optim.batch_size % world:
        raise PevlError(
            f"optim.batch_size {settings.optim.batch_size} cannot be shared among {world} "
            "processes evenly."
        )
    gpus = torch.cuda.device_count()
    needs_gpus = accelerator == "cuda" or (settings.run.device == "auto" and processes > 1)
    if processes > gpus and needs_gpus:
        raise PevlError(f"run.processes {processes}: this machine has {gpus} GPUs.")


def training_precision(settings: TrainSettings) -> str:
    """ "fp32", "bf16" or "fp16"; "auto" is bf16 where the hardware computes in it."""
    if settings.run.precision != "auto":
        return settings.run.precision
    return "bf16" if has_bf16(choose_device(settings.run.device)) else "fp32"


def _make_tracker(name: str, folder: Path) -> Any:
    if name == "none":
        return None
    session = time.strftime("%Y%m%d-%H%M%S")  # a continued run does not write over the first part
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
        # MLflow no longer writes plain folders; another server is named by its own variable.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return loggers.MLFlowLogger("pevl", folder.name, server)
    except ImportError as error:
        raise PevlError(f"run.tracker {name}: pip install lightning {name} first.") from error


class _Autocast(MixedPrecision):  # type: ignore[misc]
    """Half precision for products only: coordinates go into the model in float32."""

    def convert_input(self, data: Any) -> Any:
        return data


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The attention kernel that trains fastest.

    On the CPU the backward pass of the fused kernel is slower than plain products of short rows.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
