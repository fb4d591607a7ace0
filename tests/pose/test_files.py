"""Poses that others found, in their forms, and our own store of all poses of a data set."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeVideo, child_environment
from pose_data import annotation, learnable
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.data import extract as extracting
from pevl_cli.data.clips import Clips
from pevl_cli.data.extract import extract, shard
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.data.samples import pose_sample, read_sample
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model import checkpoint
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.pose.json_files import read_json
from pevl_cli.pose.pickles import read_pickle
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.pose.stored import StoredPoses

MINI = CONFIGS["mini"]
BODY = np.random.default_rng(1).uniform(40, 90, (17, 2))


def people(*places: float) -> np.ndarray:
    """One frame: a body at each place, (P, 17, 3)."""
    return np.array([np.c_[BODY + np.array([x, 0]), np.full(17, 0.9)] for x in places]).reshape(
        -1, 17, 3
    )


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


# -- the forms ------------------------------------------------------------------------------------


def mmpose(frames: list[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "frame_id": t,
            "instances": [
                {"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist()} for p in frame
            ],
        }
        for t, frame in enumerate(frames)
    ]


def ultralytics(frames: list[np.ndarray]) -> list[list[dict[str, Any]]]:
    def person(p: np.ndarray) -> dict[str, Any]:
        x, y, score = p.T.tolist()
        return {"name": "person", "keypoints": {"x": x, "y": y, "visible": score}}

    return [[person(p) for p in frame] for frame in frames]


def coco_results(frames: list[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"image_id": f"clip_{t:05d}", "category_id": 1, "keypoints": p.ravel().tolist()}
        for t, frame in enumerate(frames)
        for p in frame
    ]


@pytest.mark.parametrize("form", ["mmpose", "mmpose with meta", "ultralytics", "text", "coco"])
def test_json_of_other_tools(form: str, tmp_path: Path) -> None:
    frames = [people(0, 60), people(1), people(2, 62)]
    contents: dict[str, object] = {
        "mmpose": mmpose(frames),
        "mmpose with meta": {"meta_info": {}, "instance_info": mmpose(frames)},
        "ultralytics": ultralytics(frames),
        "text": [json.dumps(f) for f in ultralytics(frames)],
        "coco": coco_results(frames),
    }
    stored = read_json(written(tmp_path / "a.json", contents[form]))
    assert stored.layout == "coco17"
    for read, frame in zip(stored.people, frames, strict=True):
        np.testing.assert_allclose(read, frame, atol=1e-3)
    assert stored.width == 0 and stored.canvas[0] >= 62 + BODY[:, 0].max()


def test_a_frame_with_nobody_stays_a_frame(tmp_path: Path) -> None:
    frames = [people(), people(5), people(), people(6)]
    for content in (mmpose(frames), ultralytics(frames)):
        stored = read_json(written(tmp_path / "a.json", content))
        assert [len(p) for p in stored.people] == [0, 1, 0, 1]


def test_smarthome_json_is_by_columns(tmp_path: Path) -> None:
    pose2d = [*range(100, 113), *range(200, 213)]
    pose2d[2] = pose2d[15] = -1  # right knee: not found
    content = {"njts": 13, "K": [], "frames": [[], [{"pose2d": pose2d, "pose3d": [0] * 39}]]}
    stored = read_json(written(tmp_path / "Walk_p02_r00_v01_c01_pose3d.json", content))
    assert (stored.name, stored.layout) == ("Walk_p02_r00_v01_c01", "smarthome13")
    nobody, (person,) = stored.people
    assert len(nobody) == 0 and (stored.width, stored.height) == (640, 480)
    names = LAYOUTS["smarthome13"].names
    assert person[names.index("left_ankle")].tolist() == [101, 201, 1]
    assert person[names.index("head")].tolist() == [112, 212, 1]
    assert person[names.index("right_knee")].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "its form is not known"),
        ([[{"keypoints": {"x": [1]}}]], "not poses as MMPose"),
        ([{"frame_id": 0, "instances": [{"keypoints": [[1, 2]]}]}], "not poses as MMPose"),
        (mmpose([people(0)[:, :9]]), "9 joints are none of the skeletons that are known"),
        ([], "there is no frame in it"),
        ([{"image_id": f"{v}_1", "keypoints": [1] * 51} for v in "ab"], "several videos"),
    ],
)
def test_json_that_holds_no_poses(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PevlError, match=message):
        read_json(written(tmp_path / "a.json", content))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(PevlError, match="cannot be read as JSON"):
        read_json(tmp_path / "b.json")


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
    with pytest.raises(PevlError, match=r"'c' has keypoint_score \(1, 3, 17\)"):
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


def test_without_a_known_size_joints_stay_where_they_are(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    clip = sample_clip(make_video("a.mp4", frames=10), 48)
    stored = read_json(written(tmp_path / "a.json", mmpose([people(0)] * 10)))
    np.testing.assert_allclose(stored.actor_in(clip).joints[3, :, :2], BODY, atol=1e-3)


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


def test_a_joint_that_one_end_of_a_gap_lacks_is_not_made_up() -> None:
    tracks = np.repeat(people(100)[:, None], 30, 1)
    tracks[0, 10] = 0
    tracks[0, 11, 5] = 0
    actor = StoredPoses.of_tracks("a", tracks, "coco17", 300, 200, None).actor()
    assert actor.bridged[10] and actor.joints[10, 5].tolist() == [0, 0, 0]
    np.testing.assert_allclose(actor.joints[10, 4], tracks[0, 9, 4], atol=1e-3)


def test_the_person_who_moves_most_in_the_middle_is_the_actor() -> None:
    rng = np.random.default_rng(0)
    frames = [
        np.concatenate([people(0), people(120) + rng.normal(0, 6, (1, 17, 3)) * [1, 1, 0]])
        for _ in range(20)
    ]
    actor = StoredPoses("two", [f.astype(np.float32) for f in frames], "coco17", 320, 200).actor()
    assert actor.people == 2 and actor.seen.all()
    assert actor.joints[:, :, 0].mean() > 150


def test_short_gaps_are_bridged_and_what_is_not_a_number_is_not_seen() -> None:
    tracks = np.repeat(people(0)[:, None], 30, 1)
    tracks[0, 10:12] = 0
    tracks[0, 20, 3] = np.nan
    tracks[0, :, :, 0] += np.arange(30)[:, None]
    tracks[0, 10:12] = 0
    actor = StoredPoses.of_tracks("a", tracks, "coco17", 200, 200, None).actor()
    assert actor.bridged.nonzero()[0].tolist() == [10, 11]
    np.testing.assert_allclose(actor.joints[10, :, 0], BODY[:, 0] + 10, atol=0.5)
    assert actor.joints[20, 3].tolist() == [0, 0, 0]


# -- from poses to what the model takes -----------------------------------------------------------


def test_joints_move_straight_between_the_frames_of_a_recording() -> None:
    tracks = np.repeat(people(0)[:, None], 24, 1)
    tracks[0, :, :, 0] += 2 * np.arange(24)[:, None]
    stored = StoredPoses.of_tracks("a", tracks, "coco17", 200, 200, None)
    sample = pose_sample(Path("poses.pkl"), stored, MINI)
    steps = np.diff(sample.joints[:, :, 0], axis=0) * 175 / MINI.image_size  # back in its pixels
    np.testing.assert_allclose(steps[1:-1], 1, atol=1e-3)  # 24 frames over 48 places
    assert sample.frames is None and sample.seen == 48


def test_nobody_in_a_recording_is_told() -> None:
    empty = StoredPoses.of_tracks("a", np.zeros((1, 5, 17, 3)), "coco17", 9, 9, None)
    with pytest.raises(PevlError, match="nobody is seen in 'a'"):
        pose_sample(Path("poses.pkl"), empty, MINI)


def test_recorded_frames_are_those_of_the_video(make_video: MakeVideo) -> None:
    """A part of a video, whose stored has as many frames: each goes with its own."""
    video = make_video("a.mp4", frames=60)
    clip = sample_clip(video, 48, 0.4, 1.6)
    tracks = np.repeat(people(0)[:, None], clip.length, 1)
    tracks[0, :, :, 0] += np.arange(clip.length)[:, None]
    stored = StoredPoses.of_tracks("a", tracks, "coco17", clip.width, clip.height, None)
    got = stored.actor_in(clip).joints[:, 0, 0] - tracks[0, 0, 0, 0]
    np.testing.assert_allclose(got, clip.indices - 10, atol=1e-4)


# -- the store ------------------------------------------------------------------------------------


def field(shared: Path, count: int) -> list[Item]:
    manifest = read_manifest(shared / "data" / "field")
    return list(manifest.items)[:: len(manifest.items) // count][:count]


def test_a_store_gives_what_the_detector_gives(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    items = field(shared, 3)
    store = tmp_path / "poses.npz"
    summary = extract(items, store, str(pose_weights), "cpu")
    assert (summary.clips, summary.kept, summary.failed) == (3, 0, {})
    assert list(tmp_path.iterdir()) == [store]
    poses = read_poses(store)
    detector = PoseDetector(pose_weights, device="cpu")
    for item in items:
        fresh = read_sample(item.path, MINI, detector)
        kept = read_sample(item.path, MINI, None, stored=poses.get(item.name))
        visible = (fresh.joints[..., 2] >= 0.3) & (kept.joints[..., 2] >= 0.3)
        assert visible.mean() > 0.5
        # Where a clip has fewer than 48 frames a place may fall to the neighbouring frame.
        apart = np.abs(fresh.joints - kept.joints)[visible][:, :2]
        assert np.quantile(apart, 0.9) < 0.02 * MINI.image_size
        np.testing.assert_array_equal(fresh.frames, kept.frames)
    with np.load(store) as arrays:
        assert arrays[f"{items[0].name}/joints"].shape == (48, 17, 3)
    about = json.loads(zipfile.ZipFile(store).read("about.json"))
    assert about["weights"] == detector.digest()
    assert about["settings"] == asdict(detector.settings) | {"batch": 0}


def test_a_damaged_entry_is_noticed_and_made_again(
    shared: Path, pose_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, store = field(shared, 3), tmp_path / "poses.npz"
    extract(items, store, str(pose_weights), "cpu")
    good = read_poses(store).get(items[1].name)
    with zipfile.ZipFile(store) as z:
        info = z.getinfo(f"{items[1].name}/joints.npy")
    data = bytearray(store.read_bytes())
    middle = info.header_offset + 100 + info.compress_size // 2
    data[middle : middle + 8] = bytes(8)
    store.write_bytes(bytes(data))
    with pytest.raises(PevlError, match="is damaged"):
        read_poses(store).get(items[1].name)
    looked: list[str] = []
    real = extracting.Finder.__call__

    def counted(finder: Any, item: Item) -> tuple[bytes, str]:
        looked.append(item.name)
        return real(finder, item)

    monkeypatch.setattr(extracting.Finder, "__call__", counted)
    summary = extract(items, store, str(pose_weights), "cpu")
    assert looked == [items[1].name] and summary.kept == 2
    again = read_poses(store).get(items[1].name)
    assert again is not None and good is not None
    np.testing.assert_array_equal(np.stack(again.actor().joints), np.stack(good.actor().joints))


def test_a_store_is_not_taken_for_other_clips(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    items, store = field(shared, 2), tmp_path / "poses.npz"
    extract(items[:1], store, str(pose_weights), "cpu")
    with pytest.raises(PevlError, match="holds 1 clips that are not asked for"):
        extract(items[1:], store, str(pose_weights), "cpu")
    data = bytearray(store.read_bytes())
    with zipfile.ZipFile(store) as z:
        info = z.getinfo("about.json")
    data[info.header_offset + 50 : info.header_offset + 60] = bytes(10)
    store.write_bytes(bytes(data))
    with pytest.raises(PevlError, match=r"poses.npz"):
        read_poses(store).get(items[0].name)
    assert extract(items[:1], store, str(pose_weights), "cpu").clips == 1
    assert read_poses(store).get(items[0].name) is not None


def test_a_run_that_was_killed_does_not_look_again(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    folder, store = tmp_path / "clips", tmp_path / "poses.npz"
    folder.mkdir()
    for i, item in enumerate(field(shared, 6)):
        shutil.copy(item.path, folder / f"{i}{item.path.suffix}")
    line = [sys.executable, "-m", "pevl_cli", "pose", str(folder), "--store", str(store)]
    line += ["--pose-weights", str(pose_weights), "--device", "cpu"]
    environment = child_environment(PEVL_CACHE=str(tmp_path / "cache"))
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    parts = tmp_path / "poses.npz.parts"
    deadline = time.monotonic() + 120
    while not (parts.is_dir() and len(list(parts.glob("[!.]*.npz"))) >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(parts.glob("[!.]*.npz")))
    assert not store.exists()
    shutil.rmtree(tmp_path / "cache")  # what is finished does not rest on it
    said = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert f"poses of 6 clips, {finished} of them found before" in said.stderr
    assert not parts.exists()


def test_several_processes_and_shards_give_the_same(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    items = field(shared, 4)
    extract(items, tmp_path / "all.npz", str(pose_weights), "cpu", processes=2)
    parts = tmp_path / "parts"
    parts.mkdir()
    for text in ("1/2", "2/2"):
        name = f"p{text[0]}.npz"
        extract(shard(items, text), parts / name, str(pose_weights), "cpu")
    whole, split = read_poses(tmp_path / "all.npz"), read_poses(parts)
    assert set(whole.names) == set(split.names) == {item.name for item in items}
    for name in whole.names:
        a, b = whole.get(name), split.get(name)
        assert a is not None and b is not None
        np.testing.assert_array_equal(a.actor().joints, b.actor().joints)
    with pytest.raises(PevlError, match="i/n is needed"):
        shard(items, "3/2")


def test_ray_gives_the_same(shared: Path, pose_weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs the extra pevl[ray]")
    items = field(shared, 4)
    extract(items, tmp_path / "ray.npz", str(pose_weights), "cpu", processes=2, ray=True)
    extract(items, tmp_path / "own.npz", str(pose_weights), "cpu")
    ray, own = read_poses(tmp_path / "ray.npz"), read_poses(tmp_path / "own.npz")
    for item in items:
        a, b = ray.get(item.name), own.get(item.name)
        assert a is not None and b is not None
        np.testing.assert_array_equal(a.actor().joints, b.actor().joints)


def test_a_broken_video_is_told_and_the_others_are_kept(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    shutil.copy(field(shared, 1)[0].path, tmp_path / "clips" / "good.mp4")
    store = tmp_path / "poses.npz"
    line = ["pose", str(tmp_path / "clips"), "--store", str(store), "--device", "cpu"]
    said = CliRunner().invoke(app, [*line, "--pose-weights", str(pose_weights)])
    assert said.exit_code == 1 and "poses of 1 clips" in said.output
    assert "broken.mp4" in said.output


def test_all_frames_as_a_pickle_for_other_tools(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    for label, item in zip(("a", "b"), field(shared, 2), strict=True):
        for split in ("train", "val"):
            target = tmp_path / "own" / split / label / f"{split}{item.path.suffix}"
            target.parent.mkdir(parents=True)
            shutil.copy(item.path, target)
    out = tmp_path / "own.pkl"
    line = ["pose", str(tmp_path / "own"), "--export", "pyskl", "--output", str(out)]
    line += ["--frames", "all", "--pose-weights", str(pose_weights), "--device", "cpu"]
    said = CliRunner().invoke(app, line)
    assert said.exit_code == 0, said.output
    annotations, splits = read_pickle(out)
    names = {"train": ["train/a/train", "train/b/train"], "val": ["val/a/val", "val/b/val"]}
    assert {k: sorted(v) for k, v in splits.items()} == names
    first = annotations[0]
    frames = sample_clip(field(shared, 2)[0].path, 1).length
    assert first["keypoint"].shape == (1, frames, 17, 2) and first["keypoint"].dtype == np.float16
    assert first["keypoint_score"].shape == (1, frames, 17)
    assert {a["label"] for a in annotations} == {0, 1}


# -- pictures and commands ------------------------------------------------------------------------


def test_recorded_poses_are_drawn_over_an_empty_frame(tmp_path: Path) -> None:
    file = tmp_path / "poses.pkl"
    file.write_bytes(pickle.dumps([annotation("a"), annotation("b")]))
    said = CliRunner().invoke(app, ["pose", str(file)])
    assert "holds 2 clips" in str(said.exception)
    line = ["pose", str(file), "--clip", "a", "--draw"]
    said = CliRunner().invoke(app, [*line, str(tmp_path / "a.png")])
    assert said.exit_code == 0 and json.loads(said.stdout)[0]["layout"] == "coco17"
    drawn = cv2.imread(str(tmp_path / "a.png"))
    assert drawn is not None and drawn.shape[0] == 360
    assert 0.001 < (drawn.max(-1) > 60).mean() < 0.5
    said = CliRunner().invoke(app, [*line, str(tmp_path / "a.mp4")])
    assert said.exit_code == 0 and sample_clip(tmp_path / "a.mp4", 9).length == 9


def test_three_estimators_of_smarthome_are_read(shared: Path) -> None:
    for estimator, seen in (("LCRNet2d", 1.0), ("OP2d", 0.3), ("Alphapose2d", 1.0)):
        file = shared / "data" / "poses" / f"WatchTV_p02_r03_v05_c05_{estimator}.npz"
        poses = read_poses(file)
        actor = poses.get(file.stem).actor()  # type: ignore[union-attr]
        assert len(actor.seen) in (1379, 1380)
        assert (actor.joints[..., 2] > 0).mean() >= seen


def test_poses_alone_are_learnt_and_measured_with_one_line_each(tmp_path: Path) -> None:
    file, out = learnable(tmp_path), tmp_path / "run"
    small = ["model.width=32", "model.embed_dim=16", "model.text_width=16", "model.vocab_size=300"]
    line = ["train", "--dataset", str(file), "--out", str(out), "--device", "cpu"]
    for given in (*small, "run.tracker=none", "optim.min_steps=240"):
        line += ["--set", given]
    said = CliRunner().invoke(app, [*line, "--epochs", "6", "--batch-size", "8"])
    assert said.exit_code == 0, said.output
    config = json.loads((out / "best" / "config.json").read_text())["model"]
    assert (config["layout"], config["video"]) == ("jhmdb15", False)
    assert (config["pose_layers"], config["pose_pool"]) == (0, "max")
    figures = tmp_path / "f.json"
    line = ["benchmark", "--dataset", str(file), "--checkpoint", str(out / "best")]
    said = CliRunner().invoke(app, [*line, "--device", "cpu", "--output", str(figures)])
    assert said.exit_code == 0, said.output
    outcome = json.loads(figures.read_text())
    assert outcome["split"] == "test" and outcome["accuracy"]["count"] == 4
    assert outcome["accuracy"]["top1"] == 1.0
    assert "trained on these clips" not in said.output
    said = CliRunner().invoke(app, [*line, "--split", "train", "--device", "cpu"])
    assert "trained on these clips" in said.output
    beside = tmp_path / "halves.txt"
    beside.rename(tmp_path / "away.txt")  # numbers without names are those of the checkpoint
    said = CliRunner().invoke(app, [*line, "--device", "cpu"])
    assert said.exit_code == 0 and "named by the checkpoint" in said.output
    (tmp_path / "away.txt").rename(beside)
    (tmp_path / "other.txt").write_text("lower half\nupper half\n")
    said = CliRunner().invoke(app, [*line, "--labels", str(tmp_path / "other.txt")])
    assert "label 0 is 'lower half' in halves.pkl and 'upper half' in" in str(said.exception)
    said = CliRunner().invoke(app, [*line, "--split", "train", "--fold", "9"])
    assert "is a fold '9'" in str(said.exception)


def test_what_is_chosen_for_poses_alone_is_kept(tmp_path: Path) -> None:
    line = ["train", "--dataset", str(learnable(tmp_path)), "--dry-run", "--device", "cpu"]
    said = CliRunner().invoke(app, [*line, "--set", "model.pose_pool=mean"])
    assert said.exit_code == 0, said.output
    assert "pose_pool: mean" in said.output and "pose_layers: 0" in said.output


def test_joints_that_the_checkpoint_lacks_are_refused(tmp_path: Path) -> None:
    file, strict = learnable(tmp_path), tmp_path / "strict"
    shutil.copytree(checkpoint.find("pevl-mini"), strict)
    facts = json.loads((strict / "config.json").read_text())
    facts["model"]["allow_missing_joints"] = False
    (strict / "config.json").write_text(json.dumps(facts))
    line = ["train", "--dataset", str(file), "--init", str(strict), "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, line)
    assert "of layout coco17" in str(said.exception) and "jhmdb15" in str(said.exception)
    line = ["benchmark", "--dataset", str(file), "--checkpoint", "pevl-mini"]
    said = CliRunner().invoke(app, line)
    assert said.exit_code == 1 and "'upper half', is none of the 37 labels" in str(said.exception)


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
