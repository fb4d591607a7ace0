"""Tests for benchmarks/make_mini.py: what a new `pevl-mini` starts from, what of a run ships."""

import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from pevl_cli.model import checkpoint
from pevl_cli.training.build import load_settings_with_init, make_model

RECIPE = REPOSITORY / "benchmarks" / "make_mini.py"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE), run_name="make_mini")


def test_a_start_keeps_poses_and_words_and_takes_a_new_video(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["start"](Namespace(checkpoint="pevl-mini", to=tmp_path / "start"))
    whole, _ = checkpoint.load(checkpoint.find("pevl-mini"))
    kept, facts = checkpoint.load(tmp_path / "start")
    assert not facts.model.video and facts.model.pose
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], msg=name)
    given = {"data.dataset": "clips.csv", "init": str(tmp_path / "start"), "model.video": True}
    settings = load_settings_with_init(None, given)
    model, _ = make_model(settings, facts.label_set)
    new = {name.split(".")[0] for name in model.state_dict().keys() - kept.state_dict().keys()}
    assert new == {"visual", "video_adapters", "p2v", "v2p"}
    assert model.config.has_body_token and model.config.allow_missing_joints


def test_weights_are_averaged_and_counts_are_kept(recipe: dict[str, Any]) -> None:
    states = [
        {"weight": torch.tensor([1.0, 2.0]), "batches": torch.tensor(7)},
        {"weight": torch.tensor([3.0, 2.0]), "batches": torch.tensor(9)},
    ]
    mean = recipe["averaged"](states)
    assert mean["weight"].tolist() == [2.0, 2.0] and mean["batches"] == 7
