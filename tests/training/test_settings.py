"""The config of a run: what wins over what, and how mistakes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pevl_cli.errors import UsageError
from pevl_cli.model.config import CONFIGS
from pevl_cli.training.build import load_settings_with_init
from pevl_cli.training.settings import OLD_NAMES, TrainSettings, load_settings, option_names

DATA = {"data.dataset": "clips"}


def test_the_paper_s_recipe() -> None:
    """Sec. 4.1, and X-CLIP's: new weights at ten times the base rate, beta2 0.98."""
    for config in ("vit-b-16", "vit-l-14", "mini"):
        optim = load_settings(config, DATA | {"recipe": "paper"}).optim
        assert optim.lr * optim.pretrained_rate == pytest.approx(8e-6)
        assert (optim.lr, optim.weight_decay, optim.epochs) == (8e-5, 0.05, 50)
        assert (optim.warmup_epochs, optim.beta2) == (3, 0.98)
        assert not optim.ema_decay and not optim.balance
    settings = load_settings("vit-b-16", DATA, ["recipe=paper", "optim.epochs=4"])
    assert settings.optim.epochs == 4
    assert settings.model.refinement_weight == 0.1
    assert settings.model.contrast == "batch"


def test_the_recipe_of_stored_settings_cannot_be_changed(tmp_path: Path) -> None:
    """Their values would win over those of the recipe, silently."""
    file = tmp_path / "settings.yaml"
    settings = load_settings("vit-b-16", DATA)
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(file, {"recipe": "own"}) == settings
    with pytest.raises(UsageError, match="has the values of recipe 'own'"):
        load_settings(file, {"recipe": "paper"})
    file.write_text("optim: {batch_size: 32}\n")
    optim = load_settings(file, DATA | {"recipe": "paper"}).optim
    assert (optim.batch_size, optim.lr) == (32, 8e-5)


def test_the_recipe_for_own_data_is_the_default() -> None:
    settings = load_settings("vit-b-16", DATA)
    assert (settings.recipe, settings.optim.lr, settings.optim.min_steps) == ("own", 3e-4, 400)
    assert settings.model == CONFIGS["vit-b-16"]
    assert load_settings("mini", DATA).optim.lr == 1e-3
    with pytest.raises(UsageError, match="recipe"):
        load_settings("mini", DATA | {"recipe": "fast"})


def test_flags_win_over_the_file_and_assignments_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {name: mini, crop: full, similarities: [vs, ps]}\n"
        "data: {dataset: here}\noptim: {lr: 1, epochs: 2, batch_size: 6}\n"
    )
    settings = load_settings(file, {"optim.lr": 2.0, "optim.epochs": 3}, ["optim.lr=4e-4"])
    assert (settings.optim.lr, settings.optim.epochs, settings.optim.batch_size) == (4e-4, 3, 6)
    assert settings.optim.ema_decay == load_settings("mini", DATA).optim.ema_decay, "the preset's"
    assert settings.model.crop == "full" and settings.model.similarities == ("vs", "ps")
    assert settings.model.width == CONFIGS["mini"].width
    assert settings.data.dataset == Path("here")


def test_a_stored_config_gives_the_same_run(tmp_path: Path) -> None:
    settings = load_settings("vit-l-14", DATA | {"run.seed": 7}, ["augment.turn_deg=3"])
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(file) == settings


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", "Did you mean optim.lr?"),
        ("optim.epoch=1", "Did you mean optim.epochs?"),
        ("epochs=1", "Did you mean optim.epochs?"),
        ("augment.turn=1", "Did you mean augment.turn_deg?"),
        ("model.crop=round", "model.crop"),
        ("optim.epochs=0", "optim.epochs"),
        ("optim.lr=fast", "fast"),
        ("optim.ema_decay=1", "optim.ema_decay"),
        ("run.tracker=paper", "run.tracker"),
        ("run.processes=3", "cannot be shared evenly among 3"),
        ("optim=3", "optim"),
        ("optim.lr", "KEY=VALUE"),
        ("optim.lr=[1", "cannot be read"),
        ("optim.lr.deep=1", "is not a section"),
        ("model.video=false", ""),
        ("model.heads=3", "heads must divide"),
        ("augment.joint_loss=0.1", "any more: use augment.joint_dropout."),
        ("augment.stream_loss=0.1", "any more: use augment.stream_dropout."),
        ("joint_loss=0.1", "no option joint_loss any more: use augment.joint_dropout."),
        ("model.both_ways=false", "use model.flip_at_test."),
        ("model.lacking_joints=true", "use model.allow_missing_joints."),
        ("model.frozen_base=false", "use model.train_base, which is the opposite."),
        ("model.video_temporal=true", "it was removed. The last commit that has it is 4854232."),
        ("model.stem=conv3d", "model.stem=conv3d was removed"),
        ("model.class_token=patches", "model.class_token=patches was removed"),
        ("model.crop=actor", "model.crop=actor was removed"),
    ],
)
def test_a_wrong_option_is_refused(assignment: str, message: str) -> None:
    given = DATA | {"model.pose": False} if "video" in assignment else dict(DATA)
    given["optim.lr"] = 1e-3
    with pytest.raises(UsageError) as error:
        load_settings("mini", given, [assignment])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim: {lr: 1", "not YAML"),
        ("- a\n- b\n", "sections"),
        ("optim: {}\n", "data is needed"),
        ("data: {}\n", "data.dataset is needed"),
        ("model: {name: huge}\ndata: {dataset: d}\n", "huge"),
        ("data: {dataset: d}\nnonsense: 1\n", "no option nonsense"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as error:
        load_settings(file)
    assert message in str(error.value)


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(UsageError, match="did you mean 'vit-b-16'"):
        load_settings("vit-b16", DATA)


def test_an_old_name_in_a_file_gives_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("model: {name: mini, frozen_base: false}\ndata: {dataset: d}\n")
    with pytest.raises(UsageError, match=r"no option model.frozen_base any more: use model.train_"):
        load_settings(file)


def test_the_new_names_exist() -> None:
    assert {new.partition(",")[0] for new in OLD_NAMES.values() if new} <= set(option_names())
    assert not OLD_NAMES.keys() & set(option_names())


def test_a_model_from_nothing_takes_no_clip_weights() -> None:
    """It would be trained from random weights, whatever --clip says."""
    given = DATA | {"clip": "ViT-B-16:openai"}
    with pytest.raises(UsageError, match="set train_base=true"):
        load_settings("vit-b-16", given, ["model.base=none"])
    with pytest.raises(UsageError, match=r"base 'none' \('vit-b-16'\) takes no CLIP weights"):
        load_settings("vit-b-16", given, ["model.base=none", "model.train_base=true"])
    with pytest.raises(UsageError, match=r"base 'none' \('mini'\) takes no CLIP weights"):
        load_settings_with_init(None, given | {"init": "pevl-mini"})
    trained = load_settings("vit-b-16", given, ["model.train_base=true"])
    assert trained.model.base == "clip" and trained.model.train_base


def test_every_option_can_be_named() -> None:
    keys = option_names()
    assert {"optim.lr", "model.crop", "init", "run.out", "augment.mirror"} <= set(keys)

    def flat(tree: dict[str, Any], before: str = "") -> set[str]:
        out = set()
        for key, value in tree.items():
            out |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key}
        return out

    settings: TrainSettings = load_settings("mini", DATA)
    assert flat(settings.model_dump()) == set(keys)


def test_a_new_mini_without_video_reads_poses_in_its_own_way() -> None:
    alone = load_settings("mini", {"data.dataset": ".", "model.video": False}).model
    assert (alone.pose_layers, alone.pose_pool) == (0, "max")
    chosen = {"data.dataset": ".", "model.video": False, "model.pose_pool": "mean"}
    assert load_settings("mini", chosen).model.pose_pool == "mean"
    for name, given in (("mini", {}), ("vit-b-16", {"model.video": False})):
        other = load_settings(name, {"data.dataset": ".", **given}).model
        assert (other.pose_layers, other.pose_pool) == (None, "mean")


def test_a_start_from_a_checkpoint_of_mini_is_shorter_and_options_win() -> None:
    start = {"data.dataset": "clips.csv", "init": "somewhere"}
    new = load_settings("mini", {"data.dataset": "clips.csv"}).optim
    onward = load_settings("mini", start, base=CONFIGS["mini"]).optim
    assert (onward.epochs, onward.batch_size, onward.min_steps) == (20, 8, 60)
    assert onward.lr == new.lr and onward.epochs < new.epochs
    assert load_settings("mini", start, ["optim.epochs=7"], CONFIGS["mini"]).optim.epochs == 7
    clip = load_settings("vit-b-16", start, base=CONFIGS["vit-b-16"]).optim
    assert clip.epochs != 20
