"""YOLO-pose networks. Only this file imports ultralytics; it also undoes its side effects."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from pevl_cli.cache import cache_folder, file_digest
from pevl_cli.errors import PevlError
from pevl_cli.hardware import choose_device
from pevl_cli.media.timeline import Timeline
from pevl_cli.media.video import Clip
from pevl_cli.pose.actor import Actor, FrameSource, cache_entry, cached_actor, find_actor
from pevl_cli.pose.pickles import ALLOWED as ALLOWED_IN_PICKLES
from pevl_cli.pose.safe_load import load_pt, passive_class, restore_classes
from pevl_cli.pose.settings import BUNDLED_SETTINGS, PoseSettings
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.weights import BUNDLED_WEIGHTS, find_weights

MAX_PEOPLE = 20  # maximum number of detections per image
# Environment variables that ultralytics reads when it is imported.
ULTRALYTICS_ENVIRONMENT = {
    "YOLO_AUTOINSTALL": "false",  # install nothing
    "YOLO_OFFLINE": "true",  # no online check, no analytics
    "YOLO_VERBOSE": "false",
}
# Classes in YOLO-pose networks of versions 8, 11 and 26, all sizes.
TORCH_CLASSES = (
    *("BatchNorm2d", "Conv2d", "Identity", "Linear", "MaxPool2d", "ModuleList", "Sequential"),
    *("SiLU", "Tanh", "Upsample"),
)
YOLO_CLASSES = {
    "block": (
        *("Attention", "Bottleneck", "C2PSA", "C2f", "C3k", "C3k2", "DFL", "PSABlock", "RealNVP"),
        "SPPF",
    ),
    "conv": ("Concat", "Conv", "DWConv"),
    "head": ("Detect", "Pose", "Pose26"),  # Pose heads of 8 and 11 refer to Detect.forward
}
_host_lock = threading.RLock()


@contextmanager
def _preserve_host_state() -> Iterator[None]:
    """Restore the state of the process that an import of ultralytics inside this block changes.

    Restores environment variables, thread counts of torch and OpenCV, print options of torch and
    numpy, warning filters, log levels, and functions that ultralytics replaces.
    """
    from PIL import Image

    replaced = [(torch, "save"), (Image, "open"), *((cv2, f"im{n}") for n in ("read", "write"))]
    if hasattr(cv2, "imshow"):
        replaced.append((cv2, "imshow"))
    with _host_lock, warnings.catch_warnings(), np.printoptions():
        environment = dict(os.environ)
        threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
        printing = torch._tensor_str.get_printoptions()
        levels = {n: logging.getLogger(n).level for n in ("coremltools", "sentry_sdk")}
        functions = [(module, name, getattr(module, name)) for module, name in replaced]
        os.environ.update(ULTRALYTICS_ENVIRONMENT)
        # ultralytics' settings file goes into pevl's cache, not into the user's home.
        os.environ.setdefault("YOLO_CONFIG_DIR", str(cache_folder("ultralytics")))
        try:
            yield
        finally:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            for name, value in environment.items():
                if os.environ.get(name) != value:
                    os.environ[name] = value
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            if cv2.getNumThreads() != cv2_threads:
                cv2.setNumThreads(cv2_threads)
            torch.set_printoptions(**printing)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for module, name, function in functions:
                setattr(module, name, function)


def _import_networks() -> None:
    """Import ultralytics' layers and networks.

    On the CPU: ultralytics creates tensors, and the caller's default device may be "meta".
    """
    with torch.device("cpu"):
        import ultralytics.nn.tasks  # noqa: F401


def _import_predictor() -> None:
    """Import ultralytics' predictor, which takes far longer: only where a detector runs."""
    with torch.device("cpu"):
        import torchvision  # noqa: F401  # otherwise the predictor imports it later
        import ultralytics.models.yolo.pose
        import ultralytics.nn.autobackend  # noqa: F401


@cache
def _allowed() -> dict[str, object]:
    """The classes and functions allowed in a weights file: full name -> replacement."""
    from ultralytics.nn import modules, tasks

    classes = [getattr(nn, name) for name in TORCH_CLASSES] + [tasks.PoseModel]
    allowed: dict[str, object] = {}
    for part, names in YOLO_CLASSES.items():
        classes += [getattr(getattr(modules, part), name) for name in names]
        # Files of early versions name classes without the submodule.
        allowed |= {
            f"ultralytics.nn.modules.{name}": passive_class(getattr(modules, name))
            for name in names
            if hasattr(modules, name)
        }
    allowed |= {f"{c.__module__}.{c.__name__}": passive_class(c) for c in classes}
    # Plain values in the file besides the network: settings and results of its training.
    for package in ("ultralytics.utils", "ultralytics.yolo.utils"):
        allowed[f"{package}.IterableSimpleNamespace"] = SimpleNamespace
    for module in ("pathlib", "pathlib._local"):
        allowed[f"{module}.PosixPath"] = PurePosixPath
        allowed[f"{module}.WindowsPath"] = PureWindowsPath
    for core in ("core", "_core"):
        allowed[f"numpy.{core}.multiarray.scalar"] = ALLOWED_IN_PICKLES[
            f"numpy.{core}.multiarray", "scalar"
        ]
    allowed["numpy.dtype"] = ALLOWED_IN_PICKLES["numpy", "dtype"]
    return allowed | {"builtins.getattr": _getattr}


def _getattr(owner: object, name: object) -> None:
    """Allow ``getattr(Detect, "forward")`` only: heads of versions 8 and 11 contain it."""
    if not (getattr(owner, "__name__", None) == "Detect" and name == "forward"):
        raise PevlError(f"it asks for the attribute '{name}' of {owner}; the file is not read")


def load_network(path: Path) -> nn.Module:
    """A YOLO-pose network (ultralytics' ``PoseModel``) with the weights of a `.pt` file.

    In evaluation mode, float32, on the CPU. Read by the safe loader. PevlError when the file is
    not a YOLO-pose network, is damaged, or contains classes that such a network does not have.
    """
    with _preserve_host_state():
        _import_networks()
        from ultralytics.nn.tasks import PoseModel

        content = load_pt(path, _allowed())
        network = content.get("ema") or content.get("model") if isinstance(content, dict) else None
        if not isinstance(network, PoseModel):
            raise PevlError(f"{path}: not a YOLO-pose weights file; it contains no pose network.")
        try:
            restore_classes(network)
            network = network.float().eval()
            for module in network.modules():
                if hasattr(module, "inplace"):
                    module.inplace = True
                elif isinstance(module, nn.Upsample) and not hasattr(
                    module, "recompute_scale_factor"
                ):
                    module.recompute_scale_factor = None  # files of torch before 1.11
            joints = tuple(network.model[-1].kpt_shape)
        except (AttributeError, TypeError, LookupError, RuntimeError) as error:
            raise PevlError(f"{path}: not a YOLO-pose weights file ({error}).") from error
    if joints != (len(LAYOUTS["coco17"].names), 3):
        raise PevlError(
            f"{path}: finds {joints[0]} joints with {joints[1]} values each; weights for COCO's 17 "
            "joints with 3 values (x, y, score) are needed."
        )
    return network


def _make_predictor(path: Path, confidence: float, device: torch.device) -> Any:
    """Ultralytics' predictor on ``device``: a list of BGR images -> a list of ``Results``.

    The network is set up here, because ultralytics' own set-up changes torch's thread count and the
    current GPU.
    """
    network = load_network(path)
    with _preserve_host_state():
        _import_predictor()
        from ultralytics.models.yolo.pose import PosePredictor
        from ultralytics.nn.autobackend import AutoBackend

        settings = {"conf": confidence, "max_det": MAX_PEOPLE, "rect": True}
        quiet = {"mode": "predict", "save": False, "verbose": False}
        predictor = PosePredictor(overrides=settings | quiet)
        predictor.callbacks.clear()  # they send usage data
        try:
            with _only_gpu(device):
                predictor.model = AutoBackend(network, device=device, verbose=False).eval()
                with torch.inference_mode():  # a network whose layers do not fit fails here
                    predictor.model(torch.zeros(1, 3, 64, 64, device=device))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, LookupError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PevlError(f"{path}: not a YOLO-pose weights file ({reason}).") from error
        predictor.device = device
    return predictor


def pose_network_layers(weights: Path | None = None) -> nn.Sequential:
    """The layers of a YOLO11n-pose network before its head, in evaluation mode.

    ``weights``: file of such a network; None: random weights. Each layer maps the output (N, C, h,
    w) of the previous layer to (N, C', h', w'). PevlError as in `load_network`.
    """
    with _preserve_host_state():
        _import_networks()
        from ultralytics.nn.tasks import parse_model
        from ultralytics.utils import ROOT, YAML
        from ultralytics.utils.torch_utils import initialize_weights

        plan = YAML.load(ROOT / "cfg" / "models" / "11" / "yolo11-pose.yaml")
        layers: nn.Sequential = parse_model(plan | {"head": [], "scale": "n"}, ch=3, verbose=False)[
            0
        ]
        initialize_weights(layers)
    if weights is not None:
        trained: Any = load_network(weights)
        layers.load_state_dict(trained.model[: len(layers)].state_dict())
    return layers.eval()


def _torch_device(name: str | None) -> torch.device:
    """The torch device of a name; None: the current GPU, without a GPU the CPU.

    UsageError for a device that this computer does not have.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(choose_device(name))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _only_gpu(device: torch.device) -> AbstractContextManager[None]:
    """A context in which CUDA's current GPU is ``device``, so that no other GPU is touched.

    Otherwise whatever asks for the current GPU would take memory of the first one.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class PoseDetector:
    """Detects people in images and the actor in clips with a YOLO-pose network.

    The network is loaded at the first use. ``weights`` None: see `find_weights`; ``settings`` None:
    the defaults for these weights; ``device`` None: the current GPU, without a GPU the CPU. Threads
    may share a detector; it can be pickled for other processes, which load the network again.
    PevlError when named weights do not exist.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        settings: PoseSettings | None = None,
        device: str | None = None,
    ) -> None:
        self.device = device
        self.weights = find_weights(weights)
        bundled = self.weights == BUNDLED_WEIGHTS
        self.settings = settings or (BUNDLED_SETTINGS if bundled else PoseSettings())
        self._predictor: Any = None  # ultralytics' PosePredictor
        self._digest: str | None = None
        self._lock = threading.Lock()  # the predictor serves one call at a time

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_predictor": None, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def digest(self) -> str:
        """Hash of the weights file, 32 hexadecimal digits. OSError when it cannot be read."""
        if self._digest is None:
            self._digest = file_digest(self.weights)
        return self._digest

    def actor(self, clip: Clip, use_cache: bool = True) -> Actor:
        """The actor in a clip's U distinct frames, from the pose cache if possible."""
        source = FrameSource.from_clip(clip)
        if not use_cache:
            return self.find_actor(source)
        entry = cache_entry(clip.path, clip.indices, self.digest(), self.settings)
        return cached_actor(entry, lambda: self.find_actor(source))

    def actor_in_all(self, timeline: Timeline, indices: np.ndarray) -> Actor:
        """The actor in the frames ``indices`` (U,) of a file, decoded one by one; cached."""
        entry = cache_entry(timeline.path, indices, self.digest(), self.settings)
        source = FrameSource.from_video(timeline, indices)
        return cached_actor(entry, lambda: self.find_actor(source))

    def find_actor(self, source: FrameSource) -> Actor:
        """The actor in U frames, without the cache; see `pose.actor.find_actor`."""
        return find_actor(self.detect, self.settings, source)

    def detect(
        self, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Detect people in numbered images, (h, w, 3) uint8 RGB, scaled to ``image_size_px``.

        Yields for each: its number, the image, boxes (P, 5) x1 y1 x2 y2 in px and confidence,
        joints (P, 17, 3) x_px, y_px and score; P is at most `MAX_PEOPLE`.
        """
        frames = iter(frames)
        while group := list(islice(frames, self.settings.batch)):
            with self._lock:
                if self._predictor is None:
                    self._predictor = _make_predictor(
                        self.weights, self.settings.confidence, _torch_device(self.device)
                    )
                self._predictor.args.imgsz = image_size_px
                with _only_gpu(self._predictor.device):
                    results = self._predictor(
                        [np.ascontiguousarray(frame[..., ::-1]) for _, frame in group]
                    )
            for (i, frame), result in zip(group, results, strict=True):
                boxes = result.boxes.data[:, :5].float().cpu().numpy()
                joints = np.zeros((0, 17, 3), np.float32)
                if len(boxes):
                    joints = result.keypoints.data.float().cpu().numpy()
                yield i, frame, boxes, joints
