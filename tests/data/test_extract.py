"""The poses of a data set in one store: the same as the detector's, and no clip detected twice."""

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

import numpy as np
import pytest
from conftest import child_environment
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.data import extract as extract_module
from pevl_cli.data.extract import PoseReader, export_pyskl, extract, shard
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.data.samples import read_sample
from pevl_cli.errors import PevlError
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.pose.files import read_poses
from pevl_cli.pose.pickles import read_pickle

MINI = CONFIGS["mini"]


def field(shared: Path, count: int) -> list[Item]:
    """Clips of field21 from all over its list."""
    items = read_manifest(shared / "data" / "field").items
    return list(items)[:: len(items) // count][:count]


def joints_of(store: Path, name: str) -> np.ndarray:
    stored = read_poses(store).get(name)
    assert stored is not None
    return stored.actor().joints


@pytest.mark.slow
def test_a_store_gives_what_the_detector_gives(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    items, store = field(shared, 3), tmp_path / "poses.npz"
    done = []
    summary = extract(
        items,
        store,
        str(pose_weights),
        "cpu",
        listener=lambda count, total: done.append((count, total)),
    )
    assert (summary.clips, summary.kept, summary.failed) == (3, 0, {})
    assert done == [(i, 3) for i in range(4)]
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
    with zipfile.ZipFile(store) as content:
        about = json.loads(content.read("about.json"))
    assert about["weights"] == detector.digest()
    assert about["settings"] == asdict(detector.settings) | {"batch": 0}


@pytest.mark.slow
def test_a_damaged_entry_is_noticed_and_detected_again(
    shared: Path, pose_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, store = field(shared, 3), tmp_path / "poses.npz"
    extract(items, store, str(pose_weights), "cpu")
    joints = joints_of(store, items[1].name)
    with zipfile.ZipFile(store) as content:
        info = content.getinfo(f"{items[1].name}/joints.npy")
    data = bytearray(store.read_bytes())
    middle = info.header_offset + 100 + info.compress_size // 2
    data[middle : middle + 8] = bytes(8)
    store.write_bytes(bytes(data))
    with pytest.raises(PevlError, match="is damaged"):
        read_poses(store).get(items[1].name)
    read: list[str] = []
    original = PoseReader.__call__

    def counted(reader: PoseReader, item: Item) -> bytes:
        read.append(item.name)
        return original(reader, item)

    monkeypatch.setattr(extract_module.PoseReader, "__call__", counted)
    summary = extract(items, store, str(pose_weights), "cpu")
    assert read == [items[1].name] and summary.kept == 2
    np.testing.assert_array_equal(joints_of(store, items[1].name), joints)


@pytest.mark.slow
def test_a_store_is_not_taken_for_other_clips(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    items, store = field(shared, 2), tmp_path / "poses.npz"
    extract(items[:1], store, str(pose_weights), "cpu")
    with pytest.raises(PevlError, match="contains 1 other clips"):
        extract(items[1:], store, str(pose_weights), "cpu")
    data = bytearray(store.read_bytes())
    with zipfile.ZipFile(store) as content:
        info = content.getinfo("about.json")
    data[info.header_offset + 50 : info.header_offset + 60] = bytes(10)
    store.write_bytes(bytes(data))
    with pytest.raises(PevlError, match=r"poses.npz"):
        read_poses(store).get(items[0].name)
    assert extract(items[:1], store, str(pose_weights), "cpu").clips == 1
    assert read_poses(store).get(items[0].name) is not None


@pytest.mark.slow
def test_a_run_that_was_killed_keeps_its_finished_clips(
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
    while not (parts.is_dir() and len(list(parts.glob("[!.]*.npz"))) >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(parts.glob("[!.]*.npz")))
    assert not store.exists()
    shutil.rmtree(tmp_path / "cache")  # finished clips do not come from the detector's cache
    result = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"poses of 6 clips, {finished} of them" in result.stderr
    assert not parts.exists()


@pytest.mark.slow
def test_loader_processes_and_shards_give_the_same(
    shared: Path, pose_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = field(shared, 4)
    items.insert(2, Item(tmp_path / "gone.mp4", "", name="gone"))
    summary = extract(items, tmp_path / "all.npz", str(pose_weights), "cpu", workers=2)
    assert summary.clips == 4
    assert list(summary.failed) == ["gone"] and "gone.mp4" in summary.failed["gone"]
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "other"))  # detected again
    items.pop(2)
    parts = tmp_path / "parts"
    parts.mkdir()
    for text in ("1/2", "2/2"):
        store = parts / f"p{text[0]}.npz"
        extract(shard(items, text), store, str(pose_weights), "cpu", workers=1)
    assert set(read_poses(parts).names) == {item.name for item in items}
    for item in items:
        np.testing.assert_array_equal(
            joints_of(parts, item.name), joints_of(tmp_path / "all.npz", item.name)
        )


@pytest.mark.slow
def test_a_broken_video_is_named_and_the_others_are_kept(
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
def test_ray_gives_the_same(shared: Path, pose_weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs the extra pevl[ray]")
    items = field(shared, 4)
    extract(items, tmp_path / "ray.npz", str(pose_weights), "cpu", workers=2, ray=True)
    extract(items, tmp_path / "here.npz", str(pose_weights), "cpu")
    for item in items:
        np.testing.assert_array_equal(
            joints_of(tmp_path / "ray.npz", item.name), joints_of(tmp_path / "here.npz", item.name)
        )


@pytest.mark.slow
def test_all_frames_are_a_pickle_for_other_tools(
    shared: Path, pose_weights: Path, tmp_path: Path
) -> None:
    source = field(shared, 1)[0]
    items = [
        Item(source.path, label, split, name=f"{split}/{label}")
        for label, split in (("a", "train"), ("b", "val"))
    ]
    store, target = tmp_path / "poses.npz", tmp_path / "poses.pkl"
    extract(items, store, str(pose_weights), "cpu", all_frames=True)
    export_pyskl(store, target, items, LabelSet(("b", "a"), ("b", "a")))
    annotations, splits = read_pickle(target)
    assert splits == {"train": ["train/a"], "val": ["val/b"]}
    assert [a["label"] for a in annotations] == [1, 0]
    length = sample_clip(source.path, 1).length
    first = annotations[0]
    assert first["keypoint"].shape == (1, length, 17, 2)
    assert first["keypoint"].dtype == np.float16
    assert first["keypoint_score"].shape == (1, length, 17)


def test_names_that_a_store_cannot_hold_are_refused(tmp_path: Path) -> None:
    twice = [Item(tmp_path / f"{k}.mp4", "", name="same") for k in range(2)]
    with pytest.raises(PevlError, match="two clips have the same name"):
        extract(twice, tmp_path / "poses.npz", None, "cpu")
    odd = [Item(tmp_path / "a.mp4", "", name="a\ud800"), Item(tmp_path / "b.mp4", "", name="b\n")]
    with pytest.raises(PevlError, match=r"no clip could be read; the first: its name cannot be wr"):
        extract(odd, tmp_path / "poses.npz", None, "cpu")


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", ""])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(PevlError, match="i/n is needed"):
        shard([], text)
