"""Where the model to train comes from: nothing, CLIP, or a checkpoint."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm_models import tiny_open_clip_model
from tiny import LABELS, ON_CLIP, stir, tiny_batch, tiny_config, tiny_model
from tiny_runs import SMALL, settings_of
from torch import Tensor

from pevl_cli.data.batches import BatchPlan
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.clip_weights import ClipWeights
from pevl_cli.model.config import CONFIGS, ModelConfig
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.weights_file import state_digest
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.training import build
from pevl_cli.training.build import load_settings_with_init, make_model
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.training.train import train
from pevl_cli.training.trainer import Trainer
from pevl_cli.weights import BUNDLED_WEIGHTS

LABEL_SET = LabelSet(LABELS, LABELS)
TWO_LABELS = LabelSet(("a", "b"), ("one way", "another"))


def test_starting_from_a_checkpoint_with_other_labels(moves: Path, tmp_path: Path) -> None:
    train(settings_of(moves, tmp_path / "first", optim__epochs=1, optim__min_steps=3))
    data = shutil.copytree(moves, tmp_path / "other")
    (data / "stay").rename(data / "rest")
    given = {
        "data.dataset": data,
        "init": str(tmp_path / "first" / "best"),
        "run.out": tmp_path / "second",
        "run.device": "cpu",
        "optim.epochs": 1,
        "optim.min_steps": 1,
        "optim.batch_size": 4,
        "optim.lr": 1e-9,
        "optim.ema_decay": 0.0,
    }
    settings = load_settings_with_init("mini", given)
    assert settings.model.width == SMALL["width"], "the checkpoint's model"
    train(settings)
    old, _ = checkpoint.load(tmp_path / "first" / "best")
    new, facts = checkpoint.load(tmp_path / "second" / "last")
    assert facts.labels.names == ("rest", "run_back", "run_on")
    assert facts.training["init"] == given["init"]
    for (name, a), b in zip(old.named_parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-2, msg=name)
    with pytest.raises(UsageError, match="of config 'mini', not 'vit-b-16'"):
        load_settings_with_init("vit-b-16", given)
    other = load_settings_with_init(None, given, ["model.width=64", "model.heads=4"])
    with pytest.raises(PevlError, match="another size"):
        train(other)


def test_video_can_be_added_to_what_was_learnt_from_poses(moves: Path, tmp_path: Path) -> None:
    alone = settings_of(moves, tmp_path / "run", model__video=False, model__pose=True)
    learnt, _ = make_model(alone, TWO_LABELS)
    stir(learnt)
    source = tmp_path / "poses"
    facts = checkpoint.make_facts(learnt.config, TWO_LABELS, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    both = settings_of(
        *(moves, tmp_path / "both"), init=str(source), model__pose=True, model__pose_layers=0
    )
    model, _ = make_model(both, TWO_LABELS)
    before, state = learnt.state_dict(), model.state_dict()
    added = {name.partition(".")[0] for name in state.keys() - before.keys()}
    assert added == {"video_adapters", "p2v", "v2p", "visual"}
    towers = {name.split(".")[1] for name in state.keys() - before.keys() if "visual." in name}
    assert towers == {"conv1", "body"}
    kept = state.keys() & before.keys()
    assert any(name.startswith("pose_embedding.") for name in kept)
    for name in kept:
        torch.testing.assert_close(state[name], before[name], msg=name)


def test_another_stem_starts_from_nothing_and_the_rest_is_kept(moves: Path, tmp_path: Path) -> None:
    old_stem = {"model__stem": "patch", "model__patch_size": 16}
    learnt, _ = make_model(settings_of(moves, tmp_path / "run", **old_stem), TWO_LABELS)
    source = tmp_path / "before"
    facts = checkpoint.make_facts(learnt.config, TWO_LABELS, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    new_stem = {"model__stem": "pose", "model__patch_size": 32, "model__image_size": 64}
    settings = settings_of(moves, tmp_path / "new", init=str(source), **new_stem)
    model, _ = make_model(settings, TWO_LABELS)
    before, state = learnt.state_dict(), model.state_dict()
    network = pose_network_layers(BUNDLED_WEIGHTS).state_dict()
    for name, value in state.items():
        inside = name.removeprefix("visual.conv1.layers.")
        if inside != name:
            torch.testing.assert_close(value, network[inside], msg=name)
        elif not name.startswith("visual.conv1."):
            torch.testing.assert_close(value, before[name], msg=name)


def test_a_body_token_can_be_added_to_what_was_learnt_without(moves: Path, tmp_path: Path) -> None:
    without = {"model__class_token": "learned"}
    learnt, _ = make_model(settings_of(moves, tmp_path / "run", **without), TWO_LABELS)
    source = tmp_path / "before"
    facts = checkpoint.make_facts(learnt.config, TWO_LABELS, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    body = {"model__class_token": "body", "model__pose": True}
    settings = settings_of(moves, tmp_path / "new", init=str(source), **body)
    model, _ = make_model(settings, TWO_LABELS)
    added = model.state_dict().keys() - learnt.state_dict().keys()
    assert any(name.startswith("visual.body.") for name in added)
    for name in model.state_dict().keys() - added:
        torch.testing.assert_close(model.state_dict()[name], learnt.state_dict()[name], msg=name)


def test_fixed_classes_are_learnt_anew(moves: Path, tmp_path: Path) -> None:
    given = {"model__text": False, "model__similarities": ["vs"], "model__classes": 3}
    train(settings_of(moves, tmp_path / "first", optim__epochs=1, optim__min_steps=1, **given))
    model, _ = checkpoint.load(tmp_path / "first" / "best")
    assert model.class_vectors.shape[0] == 3


# -- on CLIP --------------------------------------------------------------------------------------


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of both towers that `load_clip` gives without a download."""
    model = tiny_model(seed=5, **ON_CLIP)
    towers = {k: v for k, v in model.state_dict().items() if k.startswith(checkpoint.BASE_PREFIXES)}

    def load_clip(source: str, config: ModelConfig, trained: bool = False) -> ClipWeights:
        return ClipWeights(dict(towers), config, 4.25, state_digest(towers))

    for module in (build, checkpoint):
        monkeypatch.setattr(module, "load_clip", load_clip)
    return towers


def on_clip(*assignments: str, **options: Any) -> TrainSettings:
    given = {"data.dataset": ".", "run.device": "cpu", "run.precision": "fp32"}
    given |= {"run.tracker": "none", "optim.batch_size": 3, "optim.lr": 0.1, "clip": "mine"}
    return load_settings(None, given | options, assignments, base=tiny_config(**ON_CLIP))


def stored(model: PeVL, base: checkpoint.Base | None, folder: Path) -> Path:
    facts = checkpoint.make_facts(model.config, LABEL_SET, base, {}, None)
    checkpoint.save(folder, model.half().float().state_dict(), facts)
    return folder


@pytest.mark.parametrize("train_base", [False, True])
def test_the_towers_start_from_clip_and_are_trained_only_when_asked(
    clip: dict[str, Tensor], train_base: bool
) -> None:
    settings = on_clip(*(["model.train_base=true"] if train_base else []))
    model, base = make_model(settings, LABEL_SET)
    assert base == checkpoint.Base(source="mine", digest=state_digest(clip))
    for name, value in clip.items():
        assert torch.equal(model.state_dict()[name], value), name
    trainer = Trainer(model, LABEL_SET, settings)
    trainer.step(iter([tiny_batch(3)]), BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0), 1, 0)
    blocks = "visual.transformer."
    moved = [n for n in clip if not torch.equal(model.state_dict()[n], clip[n])]
    assert any(name.startswith(blocks) for name in moved) is train_base
    assert bool(moved) is train_base


def test_the_temperature_starts_as_the_towers_own(clip: dict[str, Tensor], tmp_path: Path) -> None:
    model, base = make_model(on_clip(), LABEL_SET)
    assert model.logit_scale.item() == 4.25
    folder = stored(model, base, tmp_path / "best")
    assert checkpoint.load(folder)[0].logit_scale.item() == 4.25
    assert make_model(on_clip(init=str(folder)), LABEL_SET)[0].logit_scale.item() == 4.25
    settings = on_clip("model.base=none", "model.train_base=true", clip=None)
    without, _ = make_model(settings, LABEL_SET)
    assert without.temperature.item() == pytest.approx(0.07)


def test_a_trained_base_is_stored_and_loaded_without_clip(
    clip: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = make_model(on_clip("model.train_base=true"), LABEL_SET)
    stir(model)
    with torch.no_grad():
        model.visual.proj.mul_(1.5)
    folder = stored(model, base, tmp_path / "best")

    def never(*_: object) -> None:
        raise AssertionError("loaded CLIP's weights")

    monkeypatch.setattr(checkpoint, "load_clip", never)
    again, facts = checkpoint.load(folder)
    assert facts.base == base and not facts.base_is_separate
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_frozen_base_is_loaded_from_clip(clip: dict[str, Tensor], tmp_path: Path) -> None:
    model, base = make_model(on_clip(), LABEL_SET)
    folder = stored(model, base, tmp_path / "best")
    assert not load_file(folder / "model.safetensors").keys() & clip.keys()
    again, facts = checkpoint.load(folder)
    assert facts.base_is_separate
    for name, value in clip.items():
        assert torch.equal(again.state_dict()[name], value), name


def test_what_a_base_is_cannot_change_on_the_way(clip: dict[str, Tensor], tmp_path: Path) -> None:
    """A base that was trained is not CLIP's: frozen, it would be stored as CLIP's."""
    model, base = make_model(on_clip("model.train_base=true"), LABEL_SET)
    source = str(stored(model, base, tmp_path / "trained"))
    with pytest.raises(PevlError, match=r"leave model.train_base=true"):
        make_model(on_clip(init=source), LABEL_SET)
    with pytest.raises(PevlError, match=r"has model.base=clip, not none"):
        settings = on_clip("model.train_base=true", init=source)
        model_config = settings.model.model_copy(update={"base": "none"})
        make_model(settings.model_copy(update={"model": model_config}), LABEL_SET)
    unfrozen, _ = make_model(on_clip("model.train_base=true", init=source), LABEL_SET)
    assert all(p.requires_grad for p in unfrozen.visual.parameters())


def test_a_tower_that_lacks_a_weight_is_refused(clip: dict[str, Tensor]) -> None:
    del clip["visual.proj"]
    with pytest.raises(PevlError, match=r"mine: .* weight 'visual.proj' is missing"):
        make_model(on_clip(), LABEL_SET)


def test_a_config_without_usual_clip_weights_says_so() -> None:
    settings = on_clip(clip=None)
    with pytest.raises(PevlError, match="config 'mini' has no default CLIP weights; give some"):
        make_model(settings, LABEL_SET)


@pytest.mark.parametrize("name", ["PE-Core-B-16", "ViT-B-16-SigLIP2"])
def test_other_towers_are_trained_on_and_stored_as_clip_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, config = tiny_open_clip_model(name, monkeypatch)
    file = tmp_path / "towers.safetensors"
    save_file(theirs.state_dict(), file)
    given = {"data.dataset": ".", "run.device": "cpu", "run.tracker": "none", "clip": str(file)}
    given |= {"optim.batch_size": 3, "run.precision": "bf16", "optim.lr": 0.1}
    monkeypatch.setitem(CONFIGS, name, config)
    settings = load_settings(name, given)
    monkeypatch.setattr("pevl_cli.model.pevl.tokenise", random_ids)  # of a downloaded vocabulary
    model, base = make_model(settings, LABEL_SET)
    assert model.logit_scale.item() == pytest.approx(theirs.logit_scale.item())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = Trainer(model, LABEL_SET, settings).step(
        iter([tiny_batch(3)]), BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0), 1, 0
    )
    assert math.isfinite(result.loss)
    # Frozen matrices are rounded to bfloat16.
    moved = [
        key
        for key, value in model.state_dict().items()
        if not torch.allclose(value.float(), before[key], rtol=0.01)
    ]
    parts = {key.partition(".")[0] for key in moved}
    assert parts >= {"video_adapters", "pose_adapters", "text_adapters", "p2v", "v2p"}
    assert not parts & {"visual", "text"}
    folder = stored(make_model(settings, LABEL_SET)[0], base, tmp_path / "best")
    again, facts = checkpoint.load(folder)
    assert facts.base_is_separate and again.config == facts.model
    for key in before:
        if key.startswith(checkpoint.BASE_PREFIXES):
            assert again.state_dict()[key].equal(before[key])


def random_ids(texts: Sequence[str], config: ModelConfig) -> Tensor:
    ids = torch.randint(3, 400, (len(texts), config.context_length))
    ids[:, 5], ids[:, 6:] = 49407, 0
    return ids
