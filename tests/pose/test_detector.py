"""The detector: on real gymnasts, shared by threads, and without side effects in the process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, child_environment
from people import blank
from safetensors import safe_open

from pevl_cli.errors import PevlError, UsageError
from pevl_cli.media.video import sample_clip
from pevl_cli.pose import detector as detecting
from pevl_cli.pose.detector import PoseDetector, pose_network_layers
from pevl_cli.pose.settings import BUNDLED_SETTINGS, PoseSettings
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.weights import BUNDLED, BUNDLED_WEIGHTS

FRAME = np.full((64, 96, 3), 90, np.uint8)

# -- one process, many threads ---------------------------------------------------------------------


def test_threads_use_the_network_one_at_a_time(tmp_path: Path) -> None:
    """ultralytics keeps the picture size of a call where the next call changes it."""
    inside, most = 0, 0
    lock = threading.Lock()

    class Predictor:
        args, device = SimpleNamespace(imgsz=0), torch.device("cpu")

        def __call__(self, pictures: list[np.ndarray]) -> list[SimpleNamespace]:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)  # let the others try
            with lock:
                inside -= 1
            boxes = SimpleNamespace(data=torch.zeros(0, 6))
            return [SimpleNamespace(boxes=boxes, keypoints=None) for _ in pictures]

    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    detector = PoseDetector(weights, PoseSettings(batch=2))
    detector._predictor = Predictor()
    with ThreadPoolExecutor(4) as pool:
        actors = list(pool.map(lambda _: detector.find_actor(blank(4)), range(4)))
    assert not any(a.seen.any() for a in actors)
    assert most == 1


def test_another_process_gets_a_detector_without_the_network() -> None:
    detector = PoseDetector("pevl-pose", device="cpu")
    ((_, _, boxes, _),) = detector.detect([(0, FRAME)], 64)
    copy = pickle.loads(pickle.dumps(detector))
    assert copy._predictor is None and copy.digest() == detector.digest()
    assert copy.settings == BUNDLED_SETTINGS
    ((number, frame, again, _),) = copy.detect([(7, FRAME)], 64)
    assert number == 7 and frame is FRAME
    np.testing.assert_array_equal(again, boxes)


# -- side effects ---------------------------------------------------------------------------------

STATE = """
import logging, os, sys, warnings
import av, cv2, numpy as np, torch
from PIL import Image

def state():
    names = [*KNOWN_LOGGERS, "coremltools", "sentry_sdk"]
    loggers = {n: vars(logging.getLogger(n)) for n in names}
    return {
        "threads": torch.get_num_threads(),
        "cv2 threads": cv2.getNumThreads(),
        "environment": dict(os.environ),
        "root logger": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "loggers off below": logging.root.manager.disable,
        "loggers": {n: (v["level"], v["propagate"], v["disabled"]) for n, v in loggers.items()},
        "warnings": list(warnings.filters),
        "numpy prints": str(np.get_printoptions()),
        "torch prints": str(torch._tensor_str.get_printoptions()),
        "replaced": [torch.save, torch.load, Image.open, cv2.imread, cv2.imwrite],
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()),
        "random": torch.get_rng_state().tolist(),
        "hooks": (sys.excepthook, list(sys.path)),
        "decoder's log": av.logging.get_level(),
    }

def changes(before, after):
    return {k: (before[k], after[k]) for k in before if before[k] != after[k]}

loggers = logging.root.manager.loggerDict.items()
KNOWN_LOGGERS = [name for name, logger in loggers if isinstance(logger, logging.Logger)]
torch.set_num_threads(2)
cv2.setNumThreads(3)
"""

DETECTION = """
import numpy as np
import pevl_cli.pose.detector
from pevl_cli.model.mini.stem import pose_network_layers
before = state()
frame = np.full((64, 96, 3), 90, np.uint8)
detector = pevl_cli.pose.detector.PoseDetector(sys.argv[1], device="cpu")
assert len(list(detector.detect([(0, frame), (1, frame)], 64))) == 2
print(changes(before, state()))
before = state()
assert len(list(detector.detect([(0, frame)], 96))) == 1
print(changes(before, state()))
pose_network_layers()
print({k: v for k, v in changes(before, state()).items() if k != "random"})
"""

IMPORTS = """
import importlib, pkgutil
import huggingface_hub, lightning_fabric, open_clip, plotly, rich, sklearn, typer
import pevl_cli
before = state()
for module in pkgutil.walk_packages(pevl_cli.__path__, "pevl_cli."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
print({k: v for k, v in changes(before, after).items() if k != "warnings"})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "lines"), [(DETECTION, 3), (IMPORTS, 1)], ids=["detection", "imports"]
)
def test_nothing_changes_in_the_process(script: str, lines: int, tmp_path: Path) -> None:
    environment = child_environment(YOLO_CONFIG_DIR=str(tmp_path))
    environment.pop("OMP_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", STATE + script, str(BUNDLED_WEIGHTS)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{}"] * lines
    assert done.stderr == ""


def test_the_device_that_is_named_is_used_and_does_not_become_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(detecting, "choose_device", lambda name: name)
    assert detecting._torch_device("cuda:2") == torch.device("cuda", 2)
    assert detecting._torch_device("cuda") == torch.device("cuda", 1)
    assert detecting._torch_device(None) == torch.device("cuda", 1)
    assert detecting._torch_device("cpu") == torch.device("cpu")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="--device gpu: not available"):
        PoseDetector("pevl-pose", device="gpu").find_actor(blank(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detecting._torch_device(None) == torch.device("cpu")


def test_no_other_gpu_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the network runs, the current GPU is the detector's own."""
    current: list[torch.device | None] = [None]

    @contextmanager
    def only(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    class Predictor:
        args, device = SimpleNamespace(imgsz=0), torch.device("cuda", 1)

        def __call__(self, pictures: list[np.ndarray]) -> list[SimpleNamespace]:
            assert current[-1] == self.device
            boxes = SimpleNamespace(data=torch.zeros(0, 6))
            return [SimpleNamespace(boxes=boxes, keypoints=None) for _ in pictures]

    monkeypatch.setattr(torch.cuda, "device", only)
    detector = PoseDetector("pevl-pose", device="cuda:1")
    detector._predictor = Predictor()
    assert len(list(detector.detect([(0, FRAME)], 64))) == 1 and current == [None]


def test_ultralytics_does_not_select_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `select_device` sets torch's thread count and the process's current GPU."""
    pose_network_layers()  # imports it
    import ultralytics.engine.predictor as engine

    def never(*_: object, **__: object) -> None:
        raise AssertionError("ultralytics selects a device")

    monkeypatch.setattr(engine, "select_device", never)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(PoseDetector("pevl-pose", device="cpu").detect([(0, FRAME)], 64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


SILENT = """
import os, socket, sys
calls = []
real = socket.getaddrinfo
socket.getaddrinfo = lambda *a, **k: calls.append(a) or real(*a, **k)
socket.socket.connect = lambda self, address: calls.append(address)
import numpy as np
from pevl_cli.pose.detector import PoseDetector
frame = np.full((240, 320, 3), 90, np.uint8)
detector = PoseDetector(sys.argv[1], device="cpu")
list(detector.detect([(0, frame)], 64))
from ultralytics.utils import AUTOINSTALL, ONLINE, events
print("calls", calls)
print("switches", AUTOINSTALL, ONLINE)
print("events", events.events.enabled, events.events.events, dict(detector._predictor.callbacks))
"""


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_is_installed(tmp_path: Path) -> None:
    environment = child_environment(PEVL_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path))
    for name in ("YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_CONFIG_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(BUNDLED_WEIGHTS)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["calls []", "switches False False", "events False [] {}"]
    assert not (tmp_path / ".config" / "Ultralytics").exists(), "its settings go into our cache"


# -- the stem of pevl-mini -------------------------------------------------------------------------


def test_ultralytics_builds_the_layers_that_pevl_mini_holds() -> None:
    """The stem is built by a private function of ultralytics: guard of the bound in pyproject."""
    file = BUNDLED / "pevl-mini" / "model.safetensors"
    with safe_open(file, "pt") as stored:
        prefix = "visual.conv1.layers."
        names = [n for n in stored.keys() if n.startswith(prefix)]  # noqa: SIM118
        held = {n.removeprefix(prefix): stored.get_slice(n).get_shape() for n in names}
    built = {n: list(v.shape) for n, v in pose_network_layers().state_dict().items()}
    assert held, f"no key of {file} begins with {prefix}; adapt this test to its new name"
    assert built == held, (
        "the installed ultralytics builds other layers than the bundled pevl-mini holds: lower the "
        "upper bound of ultralytics in pyproject.toml to the last version that passes this test, "
        "or train pevl-mini anew"
    )


def test_ultralytics_has_an_upper_bound() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (requirement,) = [d for d in project["dependencies"] if d.startswith("ultralytics")]
    assert "<" in requirement, "a new ultralytics could break the bundled pevl-mini"


def test_layers_take_the_weights_of_a_file() -> None:
    random, trained = pose_network_layers(), pose_network_layers(BUNDLED_WEIGHTS)
    assert not trained.training and len(trained) == len(random) == 11
    network: Any = detecting.load_network(BUNDLED_WEIGHTS)
    state = network.model[:11].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())
    assert not torch.equal(random[0].conv.weight, trained[0].conv.weight)


# -- the real detector ---------------------------------------------------------------------------


def test_weights_that_cannot_be_read_are_reported_by_name(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    with pytest.raises(PevlError, match="not a YOLO-pose weights file") as caught:
        PoseDetector(weights).find_actor(blank(2))
    assert str(weights) in str(caught.value)


@pytest.mark.slow
def test_gymnasts_are_found_before_judges_and_crowd(shared: Path, pose_weights: Path) -> None:
    """Torso centres inside the hand-drawn boxes: the largest person of plain YOLO gets 13."""
    boxes = json.loads((shared / "data" / "actors" / "boxes.json").read_text())
    detector = PoseDetector(pose_weights, device="cpu")
    right, total = 0, 0
    torso = [i for i, n in enumerate(LAYOUTS["coco17"].names) if n.endswith(("shoulder", "hip"))]
    for name, frames in boxes.items():
        clip = sample_clip(shared / "data" / "actors" / f"{name}.gif")
        actor = detector.actor(clip)
        for frame, (x1, y1, x2, y2) in frames.items():
            u = int(np.abs(clip.indices - int(frame)).argmin())
            assert clip.indices[u] == int(frame), "an annotated frame is not among the sampled"
            x, y = actor.joints[u, torso, :2].mean(0)
            right += bool(actor.seen[u] and x1 <= x <= x2 and y1 <= y <= y2)
            total += 1
    assert total == 23
    assert right >= 17, f"{right} of 23"


@pytest.mark.slow
def test_nobody_is_found_among_cars(shared: Path, pose_weights: Path) -> None:
    clip = sample_clip(shared / "data" / "clips" / "nobody_cars.mp4")
    actor = PoseDetector(pose_weights, device="cpu").actor(clip)
    assert actor.joints.shape == (48, 17, 3)
    assert not actor.joints.any() and not actor.seen.any() and actor.box is None
