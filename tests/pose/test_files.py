"""Files and folders of poses: which kind they are, which clips they hold, and what uses them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeVideo
from pose_data import annotation, learnable
from poses import BODY, mmpose, people, written
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model import checkpoint
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.files import read_poses


def test_a_pickle_of_poses_is_found_by_clip(tmp_path: Path) -> None:
    file = tmp_path / "poses.pkl"
    broken = annotation("c") | {"keypoint_score": np.ones((1, 3, 17))}
    file.write_bytes(pickle.dumps([annotation("x/a"), annotation("b", joints=13), broken]))
    poses = read_poses(file)
    stored = poses.get("a")  # by its last part, which is unique
    assert stored is not None and (stored.width, stored.height) == (320, 240)
    expected = annotation("x/a")["keypoint"][0].astype(np.float32)
    np.testing.assert_array_equal(np.stack(stored.people)[:, 0, :, :2], expected)
    assert poses.get("b").layout == "coco13"  # type: ignore[union-attr]
    assert poses.get("nobody") is None
    with pytest.raises(PevlError, match=r"'c' has keypoint_score of shape \(1, 3, 17\)"):
        poses.get("c")
    with pytest.raises(PevlError, match="layout smarthome13 has 13"):
        read_poses(file, "smarthome13").get("a")


def test_clips_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for label, x in (("squat", 0), ("lunge", 100)):
        (tmp_path / label).mkdir()
        written(tmp_path / label / "001.json", mmpose([people(x)]))
    poses = read_poses(tmp_path)
    for name, x in (("squat/001", 0), ("lunge/001", 100), ("train/squat/001", 0)):
        stored = poses.get(name)
        assert stored is not None
        assert stored.people[0][0, 0, 0] == pytest.approx(BODY[0, 0] + x)
    assert poses.get("jump/001") is None and poses.get("001") is None


@pytest.mark.parametrize(
    "change",
    [
        {"keypoint": np.full((1, 9, 17, 2), "x")},
        {"img_shape": ("a", "b")},
        {"img_shape": 5},
        {"keypoint": np.zeros((1, 0, 17, 2)), "keypoint_score": np.zeros((1, 0, 17))},
        {"keypoint": np.zeros((1, 9, 17, 4))},
    ],
)
def test_a_bad_clip_of_a_pickle_is_told_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "poses.pkl"
    file.write_bytes(pickle.dumps([annotation("good"), annotation("bad") | change]))
    poses = read_poses(file)
    assert poses.get("good") is not None
    with pytest.raises(PevlError, match="'bad'"):
        poses.get("bad")


# -- pictures and commands ------------------------------------------------------------------------


def test_recorded_poses_are_drawn_over_an_empty_frame(tmp_path: Path) -> None:
    file = tmp_path / "poses.pkl"
    file.write_bytes(pickle.dumps([annotation("a"), annotation("b")]))
    result = CliRunner().invoke(app, ["pose", str(file)])
    assert "contains 2 clips" in str(result.exception)
    line = ["pose", str(file), "--clip", "a", "--draw"]
    result = CliRunner().invoke(app, [*line, str(tmp_path / "a.png")])
    assert result.exit_code == 0 and json.loads(result.stdout)[0]["layout"] == "coco17"
    drawn = cv2.imread(str(tmp_path / "a.png"))
    assert drawn is not None and drawn.shape[0] == 360
    assert 0.001 < (drawn.max(-1) > 60).mean() < 0.5
    result = CliRunner().invoke(app, [*line, str(tmp_path / "a.mp4")])
    assert result.exit_code == 0 and sample_clip(tmp_path / "a.mp4", 9).length == 9


def test_three_estimators_of_smarthome_are_read(shared: Path) -> None:
    for estimator, seen in (("LCRNet2d", 1.0), ("OP2d", 0.3), ("Alphapose2d", 1.0)):
        file = shared / "data" / "poses" / f"WatchTV_p02_r03_v05_c05_{estimator}.npz"
        poses = read_poses(file)
        actor = poses.get(file.stem).actor()  # type: ignore[union-attr]
        assert len(actor.seen) in (1379, 1380)
        assert (actor.joints[..., 2] > 0).mean() >= seen


@pytest.mark.slow
def test_poses_alone_are_learnt_and_measured_with_one_line_each(tmp_path: Path) -> None:
    file, out = learnable(tmp_path), tmp_path / "run"
    small = ["model.width=32", "model.embed_dim=16", "model.text_width=16", "model.vocab_size=300"]
    line = ["train", "--dataset", str(file), "--out", str(out), "--device", "cpu"]
    for given in (*small, "run.tracker=none", "optim.min_steps=240"):
        line += ["--set", given]
    result = CliRunner().invoke(app, [*line, "--epochs", "6", "--batch-size", "8"])
    assert result.exit_code == 0, result.output
    config = json.loads((out / "best" / "config.json").read_text())["model"]
    assert (config["layout"], config["video"]) == ("jhmdb15", False)
    assert (config["pose_layers"], config["pose_pool"]) == (0, "max")
    figures = tmp_path / "f.json"
    line = ["benchmark", "--dataset", str(file), "--checkpoint", str(out / "best")]
    result = CliRunner().invoke(app, [*line, "--device", "cpu", "--output", str(figures)])
    assert result.exit_code == 0, result.output
    outcome = json.loads(figures.read_text())
    assert outcome["split"] == "test" and outcome["accuracy"]["count"] == 4
    assert outcome["accuracy"]["top1"] == 1.0
    assert "trained on these clips" not in result.output
    result = CliRunner().invoke(app, [*line, "--split", "train", "--device", "cpu"])
    assert "trained on these clips" in result.output
    beside = tmp_path / "halves.txt"
    beside.rename(tmp_path / "away.txt")  # numbers without names are those of the checkpoint
    result = CliRunner().invoke(app, [*line, "--device", "cpu"])
    assert result.exit_code == 0 and "their names come from the checkpoint" in result.output
    (tmp_path / "away.txt").rename(beside)
    (tmp_path / "other.txt").write_text("lower half\nupper half\n")
    result = CliRunner().invoke(app, [*line, "--labels", str(tmp_path / "other.txt")])
    assert "label 0 is 'lower half' in halves.pkl and 'upper half' in" in str(result.exception)
    result = CliRunner().invoke(app, [*line, "--split", "train", "--fold", "9"])
    assert "is a fold '9'" in str(result.exception)


def test_what_is_chosen_for_poses_alone_is_kept(tmp_path: Path) -> None:
    line = ["train", "--dataset", str(learnable(tmp_path)), "--dry-run", "--device", "cpu"]
    result = CliRunner().invoke(app, [*line, "--set", "model.pose_pool=mean"])
    assert result.exit_code == 0, result.output
    assert "pose_pool: mean" in result.output and "pose_layers: 0" in result.output


def test_joints_that_the_checkpoint_lacks_are_refused(tmp_path: Path) -> None:
    file, strict = learnable(tmp_path), tmp_path / "strict"
    shutil.copytree(checkpoint.find("pevl-mini"), strict)
    facts = json.loads((strict / "config.json").read_text())
    facts["model"]["allow_missing_joints"] = False
    (strict / "config.json").write_text(json.dumps(facts))
    line = ["train", "--dataset", str(file), "--init", str(strict), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, line)
    assert "of layout coco17" in str(result.exception) and "jhmdb15" in str(result.exception)
    line = ["benchmark", "--dataset", str(file), "--checkpoint", "pevl-mini"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1 and "'upper half', is none of the 37 labels" in str(
        result.exception
    )


def test_a_clip_of_a_csv_whose_file_is_gone_is_one_of_poses(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    """So a data set may mix videos with the poses of others, by one CSV."""
    make_video("here.mp4", frames=20)
    (tmp_path / "poses").mkdir()
    file = tmp_path / "poses" / "others.pkl"
    file.write_bytes(pickle.dumps([annotation("gone", joints=17), annotation("here", joints=17)]))
    rows = ["path,label,split", "here.mp4,a,train", "gone.mp4,b,train", "nowhere.mp4,b,train"]
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    manifest = read_manifest(tmp_path / "clips.csv")
    clips = Clips(
        manifest.items, manifest.labels.names, CONFIGS["mini"], None, 0, read_poses(file.parent)
    )
    left_out = clips.check(lambda done, total: None)
    assert [clip.item.name for clip in left_out] == ["nowhere"]
    here, gone = clips[0], clips[1]
    assert here.frames is not None and here.seen == 48
    assert gone.frames is None and gone.seen == 48
