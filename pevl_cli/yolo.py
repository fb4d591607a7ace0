"""YOLO-pose networks: the only file that imports ultralytics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pevl_cli.errors import PevlError

if TYPE_CHECKING:
    from ultralytics import YOLO


def _quiet_ultralytics() -> None:
    """Import ultralytics so that it sends nothing, installs nothing and prints nothing."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ.setdefault("YOLO_VERBOSE", "false")
    # Its online check, analytics and hub sync all stop here; downloads do not ask this switch.
    os.environ["YOLO_OFFLINE"] = "true"
    threads = os.environ.get("OMP_NUM_THREADS")
    with torch.device("cpu"):  # its classes make tensors, and a model may be built on "meta"
        from ultralytics.utils import events

    if threads is None:  # it would leave one to every process that is started from here
        os.environ.pop("OMP_NUM_THREADS", None)
    events.events.enabled = False


def load_network(path: Path) -> YOLO:
    """A detector with its weights. PevlError when they are of another kind."""
    _quiet_ultralytics()
    from ultralytics import YOLO

    try:
        model = YOLO(str(path), task="pose", verbose=False)
        names = model.task
    except Exception as error:  # ultralytics raises whatever its unpickling meets
        raise PevlError(f"{path}: not a YOLO-pose weights file ({error}).") from error
    if names != "pose":
        raise PevlError(f"{path}: these weights are for '{names}', YOLO-pose weights are needed.")
    return model


def pose_network_layers(weights: Path | None = None) -> nn.Sequential:
    """The layers of a YOLO11n-pose network before its head, in evaluation mode: with the weights of
    such a network, or as they are before any training."""
    _quiet_ultralytics()
    with torch.device("cpu"):
        from ultralytics.nn.tasks import parse_model
        from ultralytics.utils import ROOT, YAML
        from ultralytics.utils.torch_utils import initialize_weights

    plan = YAML.load(ROOT / "cfg" / "models" / "11" / "yolo11-pose.yaml")
    layers: nn.Sequential = parse_model(plan | {"head": [], "scale": "n"}, ch=3, verbose=False)[0]
    initialize_weights(layers)
    if weights is not None:
        trained: Any = load_network(weights).model
        layers.load_state_dict(trained.model[: len(layers)].float().state_dict())
    return layers.eval()
