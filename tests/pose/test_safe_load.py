"""`.pt` files: what the safe loader refuses, and that nothing of a file is executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pevl_cli.errors import PevlError
from pevl_cli.pose.detector import PoseDetector, load_network
from pevl_cli.pose.safe_load import load_pt, passive_class
from pevl_cli.weights import BUNDLED_WEIGHTS


class Call:
    """An attacker's object: unpickling it calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def pose_model(name: str) -> nn.Module:
    load_network(BUNDLED_WEIGHTS)  # imports ultralytics quietly
    from ultralytics.nn.tasks import PoseModel

    torch.manual_seed(0)
    return PoseModel(name, verbose=False)


def plain_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [plain_pickle, lambda path, content: torch.save(content, path)])
def test_a_file_that_would_run_a_program_is_refused_and_runs_nothing(
    tmp_path: Path, save: Callable[[Path, object], None]
) -> None:
    mark, file = tmp_path / "executed", tmp_path / "weights.pt"
    save(file, {"model": Call(os.system, f"touch {mark}")})
    with pytest.raises(PevlError) as caught:
        load_network(file)
    assert str(file) in str(caught.value) and not mark.exists()
    with pytest.raises(PevlError):
        next(PoseDetector(file).detect([(0, np.zeros((32, 32, 3), np.uint8))], 32))
    assert not mark.exists()
    torch.load(file, weights_only=False) if zipfile.is_zipfile(file) else pickle.loads(
        file.read_bytes()
    )
    assert mark.exists(), "the file is harmless, and the test shows nothing"


def test_what_is_refused_is_named_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"model": Call(os.system, "true")}, file)
    with pytest.raises(PevlError, match=r"asks for (posix|nt)\.system, which is no part of"):
        load_network(file)
    torch.save({"model": nn.LSTM(2, 2)}, file)
    with pytest.raises(PevlError, match=r"asks for torch\.nn\.modules\.rnn\.LSTM, which") as caught:
        load_network(file)
    assert "\n" not in str(caught.value)


def test_ultralytics_classes_that_fetch_are_refused(tmp_path: Path) -> None:
    load_network(BUNDLED_WEIGHTS)
    from ultralytics.nn.modules import TorchVision

    file = tmp_path / "weights.pt"
    torch.save({"model": Call(TorchVision, 8, "resnet18", "DEFAULT")}, file)
    with pytest.raises(PevlError, match=r"asks for ultralytics.nn.modules.block.TorchVision"):
        load_network(file)


def test_an_allowed_class_cannot_be_called(tmp_path: Path) -> None:
    """ultralytics evaluates the text of a model's "activation" where a model is constructed."""
    load_network(BUNDLED_WEIGHTS)
    from ultralytics.nn.tasks import PoseModel

    mark, file = tmp_path / "executed", tmp_path / "weights.pt"
    plan = {"activation": f"__import__('os').system('touch {mark}')", "backbone": [], "head": []}
    torch.save({"model": Call(PoseModel, plan)}, file)
    with pytest.raises(PevlError, match=r"calls ultralytics\.nn\.tasks\.PoseModel"):
        load_network(file)
    assert not mark.exists()


def test_getattr_gives_nothing(tmp_path: Path) -> None:
    load_network(BUNDLED_WEIGHTS)
    from ultralytics.nn.modules import Conv

    file = tmp_path / "weights.pt"
    torch.save({"model": Call(getattr, Conv, "__init__")}, file)
    with pytest.raises(PevlError, match="asks for the attribute '__init__'"):
        load_network(file)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "numbers", "no network"])
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "weights.pt"
    whole = BUNDLED_WEIGHTS.read_bytes()
    if kind == "numbers":
        torch.save([1, 2], file)
    elif kind == "no network":
        torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, file)
    else:
        contents = {"text": b"not weights\n" * 9, "empty": b"", "truncated": whole[:1_000_000]}
        file.write_bytes(contents[kind])
    with pytest.raises(PevlError, match="not a YOLO-pose weights file") as caught:
        load_network(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_forged_network_is_refused_in_one_sentence(tmp_path: Path) -> None:
    network: Any = pose_model("yolo11n-pose.yaml")
    network._modules["model"] = "no module"
    file = tmp_path / "weights.pt"
    torch.save({"model": network}, file)
    with pytest.raises(PevlError, match="not a YOLO-pose weights file"):
        load_network(file)


def test_a_network_for_other_joints_is_refused(tmp_path: Path) -> None:
    """Such as ultralytics' own for hands."""
    network: Any = pose_model("yolo11n-pose.yaml")
    network.model[-1].kpt_shape = [21, 3]
    file = tmp_path / "weights.pt"
    torch.save({"model": network}, file)
    with pytest.raises(PevlError, match="finds 21 joints with 3 values each"):
        load_network(file)


def test_layers_that_do_not_fit_each_other_are_refused_in_one_sentence(tmp_path: Path) -> None:
    network: Any = pose_model("yolo11n-pose.yaml")
    network.model[0].conv.weight = nn.Parameter(torch.zeros(16, 5, 3, 3))
    file = tmp_path / "weights.pt"
    torch.save({"model": network}, file)
    detector = PoseDetector(file, device="cpu")
    with pytest.raises(PevlError, match="not a YOLO-pose weights file"):
        list(detector.detect([(0, np.zeros((64, 96, 3), np.uint8))], 64))


@pytest.mark.filterwarnings("error")
def test_torch_warns_of_no_file_that_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(pickle.dumps({"model": None}, protocol=4))
    with pytest.raises(PevlError, match="not a YOLO-pose weights file"):
        load_pt(file, {})


def test_the_process_keeps_its_own_list_of_allowed_classes(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_network(BUNDLED_WEIGHTS)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(PevlError):
        load_pt(tmp_path / "text.pt", {})
    assert set(torch.serialization.get_safe_globals()) == before
    # What somebody else allowed in this process is not allowed in these files.
    torch.save({"model": nn.LSTM(2, 2)}, tmp_path / "a.pt")
    with (
        torch.serialization.safe_globals([nn.LSTM]),
        pytest.raises(PevlError, match="asks for"),
    ):
        load_pt(tmp_path / "a.pt", {})


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n-pose.yaml",
        "yolo11n-pose.yaml",
        pytest.param("yolo26n-pose.yaml", marks=pytest.mark.slow),
    ],
)
def test_networks_of_three_versions_are_loaded(tmp_path: Path, name: str) -> None:
    """With what official files and those of users' own trainings hold beside the network."""
    network: Any = pose_model(name)
    from ultralytics.nn.modules import Detect
    from ultralytics.utils import IterableSimpleNamespace

    file = tmp_path / "weights.pt"
    if "26" not in name:
        network.model[-1].detect = Detect.forward
    network.kpt_shape = [17, 3]  # as ultralytics' trainer sets it
    network.args = IterableSimpleNamespace(task="pose")
    beside = {"train_args": {"project": PosixPath("a/b")}, "best_fitness": np.float64(0.5)}
    torch.save({"model": None, "ema": network.half(), **beside}, file)
    loaded = load_network(file)
    assert type(loaded) is type(network) and not loaded.training
    state = {k: v.float() for k, v in network.state_dict().items()}
    assert all(torch.equal(v.float(), state[k]) for k, v in loaded.state_dict().items())
    assert all(type(a) is type(b) for a, b in zip(loaded.modules(), network.modules(), strict=True))
    frames = [(0, np.full((64, 96, 3), 90, np.uint8))]
    ((_, _, boxes, joints),) = PoseDetector(file, device="cpu").detect(frames, 64)
    assert boxes.shape == (len(boxes), 5) and joints.shape == (len(boxes), 17, 3)


def test_a_passive_class_is_made_without_its_constructor() -> None:
    passive = passive_class(nn.Linear)
    assert passive_class(nn.Linear) is passive and issubclass(passive, nn.Linear)
    with pytest.raises(PevlError, match=r"calls torch\.nn\.modules\.linear\.Linear"):
        passive(2, 2)
