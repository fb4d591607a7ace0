"""Our store of the poses of a data set: what `pevl pose --store` writes, and how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import child_environment
from poses import field
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.data import extract as extracting
from pevl_cli.data.extract import extract, shard
from pevl_cli.data.manifest import Item
from pevl_cli.data.samples import read_sample
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.pose.pickles import read_pickle

MINI = CONFIGS["mini"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"poses of 6 clips, {finished} of them found before" in result.stderr
    assert not parts.exists()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_broken_video_is_told_and_the_others_are_kept(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    shutil.copy(field(shared, 1)[0].path, tmp_path / "clips" / "good.mp4")
    store = tmp_path / "poses.npz"
    line = ["pose", str(tmp_path / "clips"), "--store", str(store), "--device", "cpu"]
    result = CliRunner().invoke(app, [*line, "--pose-weights", str(pose_weights)])
    assert result.exit_code == 1 and "poses of 1 clips" in result.output
    assert "broken.mp4" in result.output


@pytest.mark.slow
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
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    annotations, splits = read_pickle(out)
    names = {"train": ["train/a/train", "train/b/train"], "val": ["val/a/val", "val/b/val"]}
    assert {k: sorted(v) for k, v in splits.items()} == names
    first = annotations[0]
    frames = sample_clip(field(shared, 2)[0].path, 1).length
    assert first["keypoint"].shape == (1, frames, 17, 2) and first["keypoint"].dtype == np.float16
    assert first["keypoint_score"].shape == (1, frames, 17)
    assert {a["label"] for a in annotations} == {0, 1}
