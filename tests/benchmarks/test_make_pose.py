"""Tests for benchmarks/make_pose.py: how the student is taught."""

import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import PoseModel

RECIPE = REPOSITORY / "benchmarks" / "make_pose.py"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE), run_name="make_pose")


def _pair(recipe: dict[str, Any], kind: str) -> Any:
    torch.manual_seed(0)
    teacher, student = (PoseModel("yolo11n-pose.yaml", nc=1, verbose=False) for _ in range(2))
    student.args = get_cfg()
    student.args.imgsz, student.args.dis = 64, 1.0
    return recipe[kind](teacher_model=teacher, student_model=student).train()


@pytest.mark.parametrize("kind", ["Staged", "Apart"])
def test_every_stage_learns_from_the_teacher(recipe: dict[str, Any], kind: str) -> None:
    model = _pair(recipe, kind)
    student = model.student_model
    batch = {
        "img": torch.rand(4, 3, 64, 64),
        "batch_idx": torch.arange(4.0),
        "cls": torch.zeros(4, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.8]]).repeat(4, 1),
        "keypoints": torch.rand(4, 17, 3),
    }
    loss, items = model.loss(batch)
    assert items["dis_loss"] > 1
    loss[-1].backward()
    for end in recipe["STAGE_ENDS"]:
        assert any(value.grad.abs().sum() > 0 for value in student.model[end].parameters())
    assert all(value.grad is None for value in model.teacher_model.parameters())


def test_stages_apart_leave_those_before_alone(recipe: dict[str, Any]) -> None:
    second = recipe["STAGE_ENDS"][1]
    for kind in ("Staged", "Apart"):
        model = _pair(recipe, kind)
        picture = torch.rand(4, 3, 64, 64)
        taught, _ = model._run(model.teacher_model, picture, None)
        learnt, _ = model._run(model.student_model, picture, taught)
        first = model.student_model.model[0].conv.weight
        reach = torch.autograd.grad(learnt[second].sum(), [first], allow_unused=True)[0]
        assert (reach is None) == (kind == "Apart")


def test_the_teacher_itself_has_nothing_to_learn(recipe: dict[str, Any]) -> None:
    model = _pair(recipe, "Staged")
    model.student_model.load_state_dict(model.teacher_model.state_dict())
    model.eval()
    picture = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        taught, wanted = model._run(model.teacher_model, picture, None)
        learnt, given = model._run(model.student_model, picture, taught)
    for end in recipe["STAGE_ENDS"]:
        torch.testing.assert_close(learnt[end], taught[end])
    torch.testing.assert_close(given["kpts"], wanted["kpts"])


def test_what_ships_is_the_mean_of_a_run_and_the_network_it_went_on_from(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    networks = []
    for number in (0.25, 0.75):
        network = PoseModel(recipe["ARCHITECTURE"], nc=1, verbose=False)
        for value in network.state_dict().values():
            value.fill_(number)
        networks.append(network)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    torch.save({"ema": networks[0], "model": None}, tmp_path / "run" / "weights" / "last.pt")
    torch.save({"model": networks[1].half()}, tmp_path / "before.pt")
    found = {}
    for average in (None, tmp_path / "before.pt"):
        given = Namespace(out=tmp_path, to=tmp_path / "to.pt", image_size=192, average=average)
        recipe["ship"](given)
        kept = torch.load(given.to, weights_only=False)
        assert kept["train_args"] == {"task": "pose", "imgsz": 192}
        found[average] = kept["model"].state_dict()
    alone, mean = found.values()
    learnt = [name for name, _ in networks[0].named_parameters()]
    assert len(learnt) > 100
    assert all((alone[name] == 0.25).all() and (mean[name] == 0.5).all() for name in learnt)
