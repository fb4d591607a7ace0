"""A checkpoint's figures on a data set, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import MakeVideo
from typer.testing import CliRunner

from pevl_cli import recognise
from pevl_cli.benchmark import benchmark
from pevl_cli.cli import app
from pevl_cli.datasets.manifest import read_manifest
from pevl_cli.errors import PevlError, UsageError


@pytest.fixture(scope="module")
def some_clips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty of field21's val clips, as a folder of classes, and a broken one."""
    root = tmp_path_factory.mktemp("data") / "some"
    for item in read_manifest(shared / "data" / "field").of("val")[::4][:20]:
        (root / "val" / item.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, root / "val" / item.label / item.path.name)
    (root / "train" / "yoga_lotus").mkdir(parents=True)
    shutil.copy(item.path, root / "train" / "yoga_lotus" / item.path.name)
    broken = next(root.glob("val/*")) / "broken.mp4"
    broken.write_bytes(b"no video")
    return root


def test_together_they_are_named_as_one_by_one(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    line = ["benchmark", "--dataset", str(some_clips), "--device", "cpu"]
    line += ["--pose-weights", str(pose_weights), "--output", str(figures)]
    said = CliRunner().invoke(app, line)
    assert said.exit_code == 0, said.output
    outcome = json.loads(figures.read_text())
    assert (outcome["split"], outcome["accuracy"]["count"]) == ("val", 20)
    assert [c["clip"].endswith("broken") for c in outcome["left_out"]] == [True]
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    right = 0
    for clip in read_manifest(some_clips).of("val"):
        if not clip.name.endswith("broken"):
            right += recogniser.classify(clip.path).predictions[0].label == clip.label
    assert outcome["accuracy"]["top1"] == right / 20


def test_the_mean_over_classes_is_that_of_its_classes(some_clips: Path, pose_weights: Path) -> None:
    manifest = read_manifest(some_clips)
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    outcome = benchmark(manifest, recogniser, "pevl-mini", split="val")
    values = list(outcome.accuracy.per_class.values())
    assert outcome.accuracy.mean_class == pytest.approx(sum(values) / len(values))
    assert outcome.incomplete == "val 20 of 21 clips"


def test_what_cannot_be_measured_is_refused_in_one_line(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    recogniser = recognise.load("pevl-mini", use_pose=False, device="cpu")
    for label in ("squat", "lunge"):
        make_video(f"own/val/{label}/1.mp4", frames=8)
        make_video(f"own/train/{label}/2.mp4", frames=8)
    own = read_manifest(tmp_path / "own")
    with pytest.raises(PevlError, match=r"label 0 of .*, 'lunge', is none of the 21 labels"):
        benchmark(own, recogniser, "pevl-mini")
    with pytest.raises(UsageError, match="has no split 'test', but train, val"):
        benchmark(own, recogniser, "pevl-mini", split="test")
    for label in ("yoga_lotus", "yoga_child"):
        for split in ("train", "val"):
            clip = tmp_path / "bad" / split / label / "1.mp4"
            clip.parent.mkdir(parents=True)
            clip.write_bytes(b"no video")
    with pytest.raises(PevlError, match="none of the 2 clips of split 'val' can be read; the fi"):
        benchmark(read_manifest(tmp_path / "bad"), recogniser, "pevl-mini")


def test_without_splits_all_clips_are_measured_but_those_held_out_by_training(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    flat = tmp_path / "flat"
    shutil.copytree(some_clips / "val", flat)
    outcome = benchmark(read_manifest(flat), recogniser, "pevl-mini")
    assert (outcome.split, outcome.accuracy.count) == ("all", 20)
    poseless = recognise.load("pevl-mini", use_pose=False, device="cpu")
    poseless.model.config = poseless.model.config.model_copy(update={"video": False})
    with pytest.raises(UsageError, match="looks at poses only"):
        benchmark(read_manifest(flat), poseless, "pevl-mini")
