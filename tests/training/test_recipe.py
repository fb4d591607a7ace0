"""The recipes: groups of parameters, and whether they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, ON_CLIP, tiny_batch, tiny_config, tiny_model

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.matching import encode_labels
from pevl_cli.training.optimiser import make_optimiser, make_schedule, parameter_groups
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.training.trainer import Trainer

ACTIONS = (*LABELS, "forward roll")
CLIPS, STEPS = 8, 150


def settings_on_clip(folder: Path, recipe: str, **more: Any) -> TrainSettings:
    """The settings of `vit-b-16` with a tiny model."""
    given = {"data.dataset": folder, "recipe": recipe, "run.device": "cpu", "run.precision": "fp32"}
    settings = load_settings("vit-b-16", given | {"run.tracker": "none"} | more)
    changes = ON_CLIP | {"contrast": settings.model.contrast}
    return settings.model_copy(update={"model": tiny_config(**changes)})


def accuracy_after_training(settings: TrainSettings, **tau: float) -> float:
    """Train on eight clips of four actions; the share of them that is then named rightly."""
    torch.manual_seed(0)
    model = tiny_model(stirred=False, **settings.model.model_dump())
    with torch.no_grad():
        model.logit_scale.fill_(tau.get("logit_scale", 4.6052))
    labels = [i % len(ACTIONS) for i in range(CLIPS)]
    trainer = Trainer(model, LabelSet(ACTIONS, ACTIONS), settings)
    plan = BatchPlan(labels, CLIPS, STEPS, 1, 0.0, 0)
    clips = tiny_batch(CLIPS)
    schedule = make_schedule(trainer.optimiser, STEPS, STEPS // 10)
    for index in range(STEPS):
        order = [showing.clip for showing in plan.batch(1, index)]
        batch = type(clips)(clips.frames[order], clips.joints[order])  # type: ignore[index]
        trainer.step(iter([batch]), plan, 1, index)
        schedule.step()
    model.eval()
    with torch.no_grad():
        named = model(clips, encode_labels(model, trainer.labels)).argmax(1)
    return float((named == torch.tensor(labels)).float().mean())


@pytest.mark.slow
def test_the_shipped_recipe_learns_eight_clips_by_heart(tmp_path: Path) -> None:
    settings = settings_on_clip(tmp_path, "own", **{"optim.batch_size": CLIPS})
    assert accuracy_after_training(settings) == 1.0
    old = {"optim.lr": 8e-6, "optim.balance": 0.0, "model.contrast": "batch"}
    settings = settings_on_clip(tmp_path, "own", **{"optim.batch_size": CLIPS} | old)
    assert accuracy_after_training(settings, logit_scale=2.66) < 0.8


def test_each_group_has_its_rate_and_decay(tmp_path: Path) -> None:
    settings = settings_on_clip(tmp_path, "paper")
    for trained in (False, True):
        model = tiny_model(**ON_CLIP | {"train_base": trained})
        groups = {g["name"]: g for g in parameter_groups(model, settings.optim)}
        expected = {"new": (8e-5, 0.05), "new vectors": (8e-5, 0.0), "temperatures": (8e-5, 0.0)}
        if trained:
            expected |= {"pretrained": (8e-6, 0.05), "pretrained vectors": (8e-6, 0.0)}
        found = {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()}
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == pytest.approx(values), name
        held = [id(p) for g in groups.values() for p in g["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
        names = {id(p): name for name, p in model.named_parameters()}
        assert {names[id(p)] for p in groups["temperatures"]["params"]} == {
            "logit_scale",
            "refinement_scale",
        }
        for name, group in groups.items():
            for parameter in group["params"]:
                on_tower = names[id(parameter)].startswith(("visual.", "text."))
                assert on_tower == name.startswith("pretrained")
                assert name == "temperatures" or (parameter.ndim <= 1) == name.endswith("vectors")


def test_a_model_without_clip_is_all_new(tmp_path: Path) -> None:
    settings = load_settings("mini", {"data.dataset": tmp_path})
    rates = {g["name"]: g["lr"] for g in parameter_groups(tiny_model(), settings.optim)}
    assert rates == dict.fromkeys(("new", "new vectors", "temperatures"), settings.optim.lr)
    assert make_optimiser(tiny_model(), settings.optim).defaults["betas"] == (0.9, 0.999)
