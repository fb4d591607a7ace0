"""Clips of a split: checked once, decoded once, kept within the limit of the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config
from tiny_runs import SMALL

from pevl_cli.cache import cache_folder
from pevl_cli.data import clips as clips_module
from pevl_cli.data.clips import Clips, trim_cache
from pevl_cli.data.manifest import read_manifest


@pytest.mark.parametrize("room", [0, 2.5])
def test_clips_beyond_the_cache_s_size_are_read_again(
    moves: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: float
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    manifest = read_manifest(moves)
    config = tiny_config(**SMALL)
    whole = Clips(manifest.items, manifest.labels.names, config, None)
    size = whole[0].frames.nbytes + whole[0].joints.nbytes + 4096
    for _ in range(2):
        clips = Clips(manifest.items, manifest.labels.names, config, None, room * size)
        assert clips.check(lambda done, total: None) == [] and len(clips) == 15
        assert len(list(cache_folder("samples").glob("*/*.npz"))) == int(room)
    assert np.array_equal(clips[14].frames, whole[14].frames)


def test_a_cache_that_cannot_be_written_leaves_no_clip_out(
    moves: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    manifest = read_manifest(moves)
    clips = Clips(manifest.items, manifest.labels.names, tiny_config(**SMALL), None)
    assert clips.check(lambda done, total: None) == [] and len(clips) == 15
    assert clips[3].frames.any()


def test_a_second_check_reads_no_video(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")
    manifest = read_manifest(data)

    def check(cache_bytes: float = 1e9) -> tuple[int, list[clips_module.LeftOut]]:
        clips = Clips(
            manifest.items, manifest.labels.names, tiny_config(**SMALL), None, cache_bytes
        )
        left_out = clips.check(lambda done, total: None)
        return len(clips), left_out

    first = check()
    assert first[0] == 15 and len(first[1]) == 1

    def never(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "read_sample", never)
        assert check() == first
    os.utime(data / "stay" / "text.mp4", (1, 1))
    shutil.copy(data / "stay" / "0.mp4", data / "stay" / "text.mp4")
    assert check()[0] == 16, "another file is looked at again"


def test_a_sample_from_the_cache_is_the_sample(moves: Path) -> None:
    manifest = read_manifest(moves)
    clips = Clips(manifest.items, manifest.labels.names, tiny_config(**SMALL), None)
    fresh = clips._read(clips.items[3])
    clips.check(lambda done, total: None)
    assert clips._entry(clips.items[3]).exists()
    for _ in range(2):
        stored = clips[3]
        for name, value in vars(fresh).items():
            other = getattr(stored, name)
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(other, value)
                assert other.dtype == value.dtype
            else:
                assert other == value, name
        clips._entry(clips.items[3]).write_bytes(b"damaged")


def test_the_cache_stays_within_its_limit(moves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(moves)
    monkeypatch.setenv("PEVL_CACHE", str(moves.parent / "small cache"))
    clips = Clips(manifest.items, manifest.labels.names, tiny_config(**SMALL), None)
    clips.check(lambda done, total: None)
    for age, item in enumerate(clips.items):
        os.utime(clips._entry(item), (1e9 - age, 1e9 - age))
    _ = clips[14]  # used just now
    size = clips._entry(clips.items[0]).stat().st_size
    trim_cache(4.5 * size)
    left = {i for i in range(15) if clips._entry(clips.items[i]).exists()}
    assert left == {0, 1, 2, 14}
    assert len(list(cache_folder("samples").glob("*/*.npz"))) == 4
