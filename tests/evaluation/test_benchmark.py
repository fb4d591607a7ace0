"""A checkpoint's figures on a data set, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeVideo
from pose_data import learnable
from typer.testing import CliRunner

from pevl_cli import recognise
from pevl_cli.cli.app import app
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.benchmark import benchmark, choose_split, clip_names, seen_in_training
from pevl_cli.model import checkpoint
from pevl_cli.model.features import Batch, Texts
from pevl_cli.model.sgmc import Similarities

COUNT = 20  # with some that are named wrongly


@pytest.fixture(scope="module")
def some_clips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of field21's val clips, as a folder of classes, and a broken one."""
    root = tmp_path_factory.mktemp("data") / "some"
    for item in read_manifest(shared / "data" / "field").in_split("val")[::4][:COUNT]:
        (root / "val" / item.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, root / "val" / item.label / item.path.name)
    (root / "train" / "yoga_lotus").mkdir(parents=True)
    shutil.copy(item.path, root / "train" / "yoga_lotus" / item.path.name)
    broken = next(root.glob("val/*")) / "broken.mp4"
    broken.write_bytes(b"no video")
    return root


@pytest.mark.slow
def test_together_they_are_named_as_one_by_one(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    line = ["benchmark", "--dataset", str(some_clips), "--device", "cpu"]
    line += ["--pose-weights", str(pose_weights), "--output", str(figures)]
    completed = CliRunner().invoke(app, line)
    assert completed.exit_code == 0, completed.output
    outcome = json.loads(figures.read_text())
    assert (outcome["split"], outcome["accuracy"]["count"]) == ("val", COUNT)
    assert [c["clip"].endswith("broken") for c in outcome["left_out"]] == [True]
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    right = 0
    for clip in read_manifest(some_clips).in_split("val"):
        if not clip.name.endswith("broken"):
            right += recogniser.classify(clip.path).predictions[0].label == clip.label
    assert outcome["accuracy"]["top1"] == right / COUNT


@pytest.mark.slow
def test_figures_are_the_same_for_any_batch_and_number_of_workers(
    some_clips: Path, pose_weights: Path
) -> None:
    manifest = read_manifest(some_clips)
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    outcomes = [
        benchmark(manifest, recogniser, "pevl-mini", split="val", batch=batch, workers=workers)
        for batch, workers in ((16, None), (1, 0), (3, 2))
    ]
    one = outcomes[0]
    assert (one.groups, len(one.clips), len(one.left_out)) == (0, COUNT, 1)
    for other in outcomes[1:]:
        assert other.accuracy.per_class == one.accuracy.per_class
        assert other.accuracy.confused == one.accuracy.confused
        assert other.intervals == one.intervals
        assert [c.reason for c in other.left_out] == [c.reason for c in one.left_out]
        for a, b in zip(one.clips, other.clips, strict=True):
            assert (a.clip, a.rank, [n for n, _ in a.predictions]) == (
                *(b.clip, b.rank),
                [n for n, _ in b.predictions],
            )
            assert a.score == pytest.approx(b.score, abs=1e-4)


@pytest.mark.slow
def test_less_goes_through_the_model_at_a_time_where_the_memory_is_too_small(
    some_clips: Path, pose_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    sizes: list[int] = []
    match = recogniser.model.match

    def small(batch: Batch, texts: Texts) -> Similarities:
        assert batch.joints is not None
        sizes.append(len(batch.joints))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return match(batch, texts)

    monkeypatch.setattr(recogniser.model, "match", small)
    outcome = benchmark(read_manifest(some_clips), recogniser, "pevl-mini", split="val")
    assert outcome.accuracy.count == COUNT
    # Each clip as it is and mirrored.
    assert max(sizes) > 4 and sum(size for size in sizes if size <= 4) == 2 * COUNT
    monkeypatch.setattr(
        recogniser.model, "match", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    with pytest.raises(PevlError, match="too small for one clip"):
        benchmark(read_manifest(some_clips), recogniser, "pevl-mini", split="val")


@pytest.mark.slow
def test_a_report_is_written_and_compared(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    weights = ("--pose-weights", pose_weights, "--device", "cpu")
    one, two = tmp_path / "one", tmp_path / "two"
    completed = run("benchmark", "--dataset", some_clips, *weights, "--out", one)
    assert completed.exit_code == 0, completed.output
    assert f"report: {one / 'report.html'}" in completed.output.replace("\n", "")
    result = json.loads((one / "result.json").read_text())
    fitted = result["calibration"]
    assert (fitted["split"], fitted["clips"]) == ("val", 184)
    speed = result["speed"]
    total = speed["decode_s"] + speed["pose_s"] + speed["model_s"]
    assert speed["clips_per_s"] == pytest.approx(1 / total) and speed["clips"] == 8
    assert speed["pose_s"] > speed["decode_s"] > 0 and speed["memory_bytes"] > 1e8
    wrong = [c for c in result["clips"] if c["rank"] > 1]
    page = (one / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(wrong) > 0
    assert "| pevl-mini | **" in (one / "table.md").read_text()
    line = ("benchmark", "--dataset", some_clips, *weights, "--out", two)
    completed = run(*line, "--no-pose", "--views", 3)
    assert completed.exit_code == 0, completed.output
    assert json.loads((two / "result.json").read_text())["views"] == 3
    completed = run("compare", one, two)
    assert (
        completed.exit_code == 0
        and f"two compared with one on {COUNT} common clips" in completed.output
    )
    completed = run("compare", one, two, "--output", tmp_path / "both.md")
    assert (tmp_path / "both.md").read_text().startswith("| run, % | split |")


@pytest.mark.slow
def test_the_mean_over_classes_is_that_of_its_classes(some_clips: Path, pose_weights: Path) -> None:
    manifest = read_manifest(some_clips)
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    outcome = benchmark(manifest, recogniser, "pevl-mini", split="val")
    values = list(outcome.accuracy.per_class.values())
    assert outcome.accuracy.mean_class == pytest.approx(sum(values) / len(values))
    assert outcome.incomplete == f"val {COUNT} of {COUNT + 1} clips"


def test_what_cannot_be_measured_is_refused_in_one_line(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    recogniser = recognise.load("pevl-mini", use_pose=False, device="cpu")
    for label in ("squat", "lunge"):
        make_video(f"own/val/{label}/1.mp4", frames=8)
        make_video(f"own/train/{label}/2.mp4", frames=8)
    own = read_manifest(tmp_path / "own")
    with pytest.raises(PevlError, match=r"label 0 of .*, 'lunge', is none of the 37 labels"):
        benchmark(own, recogniser, "pevl-mini")
    with pytest.raises(UsageError, match="has no split 'test'; it has train, val"):
        benchmark(own, recogniser, "pevl-mini", split="test")
    for label in ("yoga_lotus", "yoga_child"):
        for split in ("train", "val"):
            clip = tmp_path / "bad" / split / label / "1.mp4"
            clip.parent.mkdir(parents=True)
            clip.write_bytes(b"no video")
    with pytest.raises(PevlError, match="none of the 2 clips of split 'val' can be read; the fi"):
        benchmark(read_manifest(tmp_path / "bad"), recogniser, "pevl-mini")


def test_clips_that_were_trained_on_are_reported(tmp_path: Path, make_video: MakeVideo) -> None:
    """Where splits are drawn anew, what is all of a changed set is mostly training clips."""
    for label in ("yoga_lotus", "yoga_child"):
        for k in range(3):
            make_video(f"field/{label}/{k}.mp4", frames=8)
    manifest = read_manifest(tmp_path / "field")
    assert choose_split(manifest, "pevl-mini", None)[0] == "all"
    assert seen_in_training("all", manifest, "pevl-mini")  # whose data set has this name
    assert not seen_in_training("val", manifest, "pevl-mini")


@pytest.mark.slow
def test_labels_are_the_same_by_another_phrasing(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(some_clips / "val", own / "val")
    for folder in (own / "val").iterdir():
        folder.rename(folder.with_name(folder.name.replace("_", "-").upper()))
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    (own / "train").mkdir()
    shutil.copytree(next((own / "val").iterdir()), own / "train" / "YOGA-LOTUS")
    there = benchmark(read_manifest(some_clips), recogniser, "pevl-mini", split="val")
    here = benchmark(read_manifest(own), recogniser, "pevl-mini", split="val")
    assert here.accuracy.per_class == there.accuracy.per_class
    clip = next((own / "val" / "YOGA-CHILD").iterdir())
    named = recogniser.classify(clip, ["yoga child", "Yoga-Lotus"])
    assert named.predictions[0].label == "yoga child"
    assert not any("not trained on" in warning for warning in named.warnings)


def test_each_clip_has_a_name_of_its_own() -> None:
    files = ("0.mp4", "0.mov", "0.mov", "1.mov")
    items = [Item(Path(f"a/{file}"), "x", name=f"a/{file[0]}") for file in files]
    assert [*clip_names(items).values()] == ["a/0.mp4", "a/0.mov", "a/0.mov #2", "a/1"]


@pytest.mark.slow
def test_names_that_look_like_markup_are_shown_as_they_are(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    for label in ("yoga_lotus", "yoga_child"):
        for split in ("train", "val"):
            make_video(f"clips [old]/{split}/{label}/1.mp4", frames=8)
    line = ["benchmark", "--dataset", str(tmp_path / "clips [old]"), "--no-pose"]
    completed = CliRunner().invoke(app, [*line, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert completed.exit_code == 0, completed.output
    assert "clips [old], split val" in completed.output
    (tmp_path / "file").write_text("")
    completed = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "file")])
    assert isinstance(completed.exception, UsageError) and "cannot be created" in str(
        completed.exception
    )


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused(some_clips: Path, pose_weights: Path) -> None:
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    with torch.no_grad():
        recogniser.model.visual.proj.fill_(float("nan"))
    with pytest.raises(PevlError, match="its weights are damaged"):
        benchmark(read_manifest(some_clips), recogniser, "pevl-mini", split="val")


def test_a_checkpoint_of_another_layout_is_refused(tmp_path: Path) -> None:
    """J-HMDB's skeleton has no eyes and ears, which a model may need."""
    file, strict = learnable(tmp_path), tmp_path / "strict"
    shutil.copytree(checkpoint.find("pevl-mini"), strict)
    facts = json.loads((strict / "config.json").read_text())
    facts["model"]["allow_missing_joints"] = False
    (strict / "config.json").write_text(json.dumps(facts))
    known = checkpoint.read_facts(strict).labels.names
    (tmp_path / "known.txt").write_text("\n".join(known))
    line = ["benchmark", "--dataset", str(file), "--labels", str(tmp_path / "known.txt")]
    line += ["--checkpoint", str(strict), "--out", str(tmp_path / "report"), "--device", "cpu"]
    completed = CliRunner().invoke(app, line)
    assert isinstance(completed.exception, PevlError), completed.output
    message = str(completed.exception)
    assert "jhmdb15" in message and "coco17" in message and "left_eye" in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_without_splits_all_clips_are_measured_but_those_held_out_by_training(
    some_clips: Path, pose_weights: Path, tmp_path: Path
) -> None:
    recogniser = recognise.load("pevl-mini", pose_weights=pose_weights, device="cpu")
    flat = tmp_path / "flat"
    shutil.copytree(some_clips / "val", flat)
    outcome = benchmark(read_manifest(flat), recogniser, "pevl-mini")
    assert (outcome.split, outcome.accuracy.count) == ("all", COUNT)
    poseless = recognise.load("pevl-mini", use_pose=False, device="cpu")
    poseless.model.config = poseless.model.config.model_copy(update={"video": False})
    with pytest.raises(UsageError, match="uses poses only"):
        benchmark(read_manifest(flat), poseless, "pevl-mini")
