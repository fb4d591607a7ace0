"""Checkpoints of format 1, which commit 4854232 and earlier ones wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, ON_CLIP, tiny_batch, tiny_model
from torch import Tensor

from pevl_cli import weights
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.model import checkpoint
from pevl_cli.model.pevl import PeVL

# pevl-mini's config.json at that commit, without most of its labels and training facts.
FORMAT_1 = json.loads("""{
 "format": 1,
 "model": {"name": "mini", "embed_dim": 128, "width": 128, "layers": 2, "heads": 4,
  "patch_size": 32, "image_size": 192, "text_width": 128, "text_layers": 2, "text_heads": 4,
  "context_length": 32, "vocab_size": 8192, "quick_gelu": false, "image_mean": [0.0, 0.0, 0.0],
  "image_std": [1.0, 1.0, 1.0], "tokenizer": "words", "stem": "pose", "class_token": "body",
  "frozen_base": false, "video_frames": 16, "pose_frames": 48, "layout": "coco17", "joints": 17,
  "lacking_joints": true, "pose_layers": null, "pose_features": "body", "pose_pool": "mean",
  "crop": "follow", "both_ways": true, "video": true, "pose": true, "text": true, "classes": 0,
  "video_adapters": true, "pose_adapters": true, "text_adapters": true, "video_temporal": false,
  "p2v": true, "v2p": true, "p2v_layers": [], "refinement_loss": true, "refinement_weight": 0.1,
  "similarities": ["vs", "ps", "fw"], "semantic_loss": false, "contrast": "labels",
  "fine_temperature": 0.1, "branch_loss_weight": 1.0, "dropout": 0.1},
 "labels": {"names": ["yoga_triangle", "yoga_child"], "texts": ["triangle pose", "child's pose"],
  "prompt": "{text}, a video of action", "others": [["yoga triangle"], ["yoga child", "balasana"]]},
 "base": null,
 "calibration": {"temperature": 0.0724319063643654, "agreement": 0.8646322245014658, "slope":
  34.133767027710526, "offset": -23.638752700517493, "familiarity": [13.87763591905598,
  0.945460555670054], "threshold": 0.3153700545077815, "split": "val", "clips": 184},
 "training": {"pevl": "0.1.0", "data": ["field", "jhmdb14_split1_train", "tennis4_train"],
  "seed": 0, "epochs_done": 11, "val_top1": 0.8424}
}""")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The config.json of format 1, beside no weights."""
    change(tmp_path, FORMAT_1)
    return tmp_path


def change(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")


def in_format_1(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of today, without a calibration, as they were written."""
    model = dict(facts["model"])
    model["frozen_base"] = not model.pop("train_base")
    model["lacking_joints"] = model.pop("allow_missing_joints")
    model["both_ways"] = model.pop("flip_at_test")
    del model["base"]
    return {**facts, "format": 1, "model": model | {"video_temporal": False}}


def similarity(model: PeVL) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tiny_batch(), model.encode_text(LABELS))
    return result


def test_format_1_is_read_in_the_names_of_today(folder: Path) -> None:
    facts = checkpoint.read_facts(folder)
    today = checkpoint.read_facts(weights.BUNDLED / "pevl-mini")
    assert facts.format == today.format == checkpoint.FORMAT
    assert facts.model == today.model
    assert (facts.model.base, facts.model.train_base) == ("none", True)
    assert facts.model.flip_at_test and facts.model.allow_missing_joints
    assert facts.labels.names == ("yoga_triangle", "yoga_child")
    assert facts.base is None and facts.training == FORMAT_1["training"]


def test_scores_of_format_1_are_what_they_were(folder: Path) -> None:
    """Its sigmoid, agreement and prototype term, by the formula of that commit."""
    calibration, old = checkpoint.read_facts(folder).calibration, FORMAT_1["calibration"]
    assert calibration is not None
    generator = torch.Generator().manual_seed(0)
    similarities = 0.5 + 0.4 * torch.rand(6, 3, 4, generator=generator).double()
    near = 0.6 + 0.4 * torch.rand(6, 4, generator=generator).double()
    slope, typical = old["familiarity"]
    logits = old["slope"] * similarities.mean(1) + old["offset"]
    logits = logits + slope * (near.amax(1) - typical)[:, None]
    log_p = (similarities / old["temperature"]).log_softmax(2).mean(1)
    agreement = log_p.exp().sum(1) / old["agreement"]
    expected = logits.sigmoid() * agreement.clamp(max=1)[:, None]
    torch.testing.assert_close(calibration.scores(similarities, near), expected)
    assert calibration.threshold == old["threshold"]
    assert (calibration.split, calibration.clips) == ("val", 184)


def test_a_calibration_of_the_temperature_alone_is_read(folder: Path) -> None:
    change(folder, {**FORMAT_1, "calibration": {"temperature": 0.2, "split": "val", "clips": 9}})
    calibration = checkpoint.read_facts(folder).calibration
    assert calibration is not None and calibration.temperature == 0.2
    assert calibration.platt is calibration.prototype is calibration.typical_agreement is None
    change(folder, {**FORMAT_1, "calibration": None})
    assert checkpoint.read_facts(folder).calibration is None


@pytest.mark.parametrize("changes", [{}, ON_CLIP])
def test_a_model_of_format_1_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = tiny_model(**changes)
    labels = LabelSet(("J", "T", "S"), LABELS)
    today = checkpoint.make_facts(before.config, labels, None, {})
    checkpoint.save(tmp_path / "new", before.state_dict(), today)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    change(tmp_path / "old", in_format_1(today.model_dump()))
    (old, facts), (new, _) = (checkpoint.load(tmp_path / name) for name in ("old", "new"))
    assert facts == today
    assert torch.equal(similarity(old), similarity(new))


def test_a_base_of_format_1_is_a_frozen_one(folder: Path) -> None:
    base = {"source": "ViT-B-16-quickgelu:openai", "digest": "00"}
    model = FORMAT_1["model"] | {"stem": "patch", "class_token": "learned"}
    for frozen in (True, False):  # its weights were left out of the file either way
        change(folder, {**FORMAT_1, "base": base, "model": model | {"frozen_base": frozen}})
        facts = checkpoint.read_facts(folder)
        assert (facts.model.base, facts.model.train_base) == ("clip", False)
        assert facts.base_is_separate


@pytest.mark.parametrize(
    ("key", "value"),
    [("stem", "conv3d"), ("class_token", "patches"), ("crop", "actor"), ("video_temporal", True)],
)
def test_a_removed_option_is_named_in_one_sentence(folder: Path, key: str, value: object) -> None:
    change(folder, {**FORMAT_1, "model": FORMAT_1["model"] | {key: value}})
    with pytest.raises(PevlError, match="4854232") as error:
        checkpoint.read_facts(folder)
    message = str(error.value)
    assert f"model.{key}={json.dumps(value)}" in message
    assert message.startswith(str(folder / "config.json")) and message.endswith(".")
    assert "\n" not in message and error.value.exit_code == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": {"name": "mini"}}, "model.embed_dim"),
        ({"calibration": 7}, "calibration"),
        ({"calibration": {}}, "calibration.temperature"),
        ({"calibration": {"temperature": 1.0, "slope": "a", "offset": 1.0}}, "calibration.platt"),
    ],
)
def test_a_damaged_config_of_format_1_is_refused(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    change(folder, {**FORMAT_1, **changes})
    with pytest.raises(PevlError, match=named) as error:
        checkpoint.read_facts(folder)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)
