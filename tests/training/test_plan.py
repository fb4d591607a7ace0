"""What a run will need: memory, disk, steps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import stir, tiny_batch, tiny_config, tiny_model
from tiny_runs import settings_of

from pevl_cli.data.manifest import read_manifest
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.engine import attention_kernel
from pevl_cli.training.plan import activation_bytes, make_plan
from pevl_cli.training.train import train


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_activations_is_what_autograd_keeps(checkpointing: bool) -> None:
    config = tiny_config()
    model = tiny_model().train()
    stir(model)
    model.checkpointing = checkpointing
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept[place] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    batch = tiny_batch(5)
    assert batch.frames is not None
    kernel = attention_kernel(torch.device("cpu"))  # as in training
    with kernel, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = model.encode(batch)
    real = sum(size for size, _ in kept.values())
    guess = activation_bytes(config, 5, checkpointing)
    assert guess == pytest.approx(real, rel=0.01)


def test_the_paper_s_model_fits_a_32_gb_card_with_a_batch_of_8() -> None:
    config = CONFIGS["vit-b-16"]
    whole, less = activation_bytes(config, 8), activation_bytes(config, 8, checkpointing=True)
    assert 10e9 < whole < 30e9 and less < whole / 5


def test_clips_without_a_file_are_not_planned(moves: Path, tmp_path: Path) -> None:
    manifest = read_manifest(moves)
    items = [replace(item, on_disk=i % 5 != 0) for i, item in enumerate(manifest.items)]
    plan = make_plan(settings_of(moves, tmp_path / "run"), replace(manifest, items=tuple(items)))
    assert plan.train_clips + plan.val_clips == 12 and plan.missing_clips == 3
    assert dict(plan.rows())["clips"].endswith("to validate; 3 more have no file")


def test_listed_clips_that_are_not_there_are_not_planned(moves: Path, tmp_path: Path) -> None:
    """A CSV may list files that do not exist; only `on_disk` was looked at."""
    data = shutil.copytree(moves, tmp_path / "moves")
    manifest = read_manifest(data)
    (data / "stay" / "0.mp4").unlink()
    plan = make_plan(settings_of(data, tmp_path / "run"), manifest)
    assert plan.train_clips + plan.val_clips == 14 and plan.missing_clips == 1


@pytest.mark.slow
def test_a_plan_counts_steps_and_bytes(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__epochs=5, optim__min_steps=12)
    plan = make_plan(settings, read_manifest(moves))
    assert (plan.train_clips, plan.val_clips, plan.classes, plan.steps) == (12, 3, 3, 15)
    train(settings)
    state = sum((tmp_path / "run" / n).stat().st_size for n in ("state.pt", "state.older.pt"))
    assert plan.state_bytes == pytest.approx(state, rel=0.2)
    stored = sum(f.stat().st_size for f in (tmp_path / "run").glob("*/model.safetensors"))
    assert plan.checkpoint_bytes == pytest.approx(stored, rel=0.2)
    assert plan.parameters == sum(p.numel() for p in PeVL(settings.model).parameters())
