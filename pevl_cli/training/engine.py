"""TODO."""

from __future__ import annotations

import logging
import os
import time
import warnings
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


def _fabric(settings: TrainSettings) -> Fabric:
    where = settings.run
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # its greeting
    warnings.filterwarnings("ignore", module="lightning_fabric")
    device = choose_device(where.device)
    accelerator, _, index = device.partition(":")
    precision = _precision(settings)
    if precision == "fp16" and accelerator == "cpu":
        raise PevlError("run.precision fp16 needs a GPU; on the CPU use bf16 or fp32.")
    # Under torchrun it is torchrun that says how many there are.
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", where.processes))
    world = int(os.environ.get("WORLD_SIZE", processes)) if torchrun else processes
    if settings.optim.batch_size % world:
        raise PevlError(
            f"optim.batch_size {settings.optim.batch_size} cannot be shared among {world} "
            "processes evenly."
        )
    there = torch.cuda.device_count()
    if processes > there and (accelerator == "cuda" or (where.device == "auto" and processes > 1)):
        raise PevlError(f"{processes} GPUs were asked for, and {there} are there.")
    strategy: Any = "auto"
    if world > 1:
        strategy = DDPStrategy(find_unused_parameters=True)
    plugins: list[Any] = []
    if precision != "fp32":
        plugins.append(_Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", accelerator))
    if not torchrun:  # a cluster's own variables shall not decide, only what was asked for
        plugins.append(LightningEnvironment())
    return Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index and processes == 1 else processes,
        num_nodes=max(world // processes, 1),
        strategy=strategy,
        plugins=plugins,
        loggers=_tracker(where.tracker, settings.folder),
    )


def _precision(settings: TrainSettings) -> str:
    if settings.run.precision != "auto":
        return settings.run.precision
    return "bf16" if has_bf16(choose_device(settings.run.device)) else "fp32"


def _tracker(name: str, folder: Path) -> Any:
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
        # MLflow no longer writes plain folders; a server of one's own is named by its variable.
        server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return loggers.MLFlowLogger("pevl", folder.name, server)
    except ImportError as error:
        raise PevlError(f"run.tracker {name}: pip install lightning {name} first.") from error


class _Autocast(MixedPrecision):  # type: ignore[misc]
    """Half precision for products only: coordinates go into the model as they are."""

    def convert_input(self, data: Any) -> Any:
        return data


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU the fused kernel takes longer backwards than plain products of short rows."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
