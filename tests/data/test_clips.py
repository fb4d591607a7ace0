"""A split's clips: what is left out, what is cached, which are chosen."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture, write_video
from tiny import tiny_config

from pevl_cli.cache import cache_folder
from pevl_cli.data import clips as clips_module
from pevl_cli.data.clips import Clips, LeftOut, write_left_out
from pevl_cli.data.loader import Loader
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.sample_cache import SampleCache
from pevl_cli.errors import PevlError, UsageError

SMALL: dict[str, Any] = {"image_size": 32, "pose": False, "crop": "full"}


@pytest.fixture(scope="module")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five clips."""
    root = tmp_path_factory.mktemp("data") / "moves"
    for label, step in (("run_on", 1), ("run_back", -1), ("stay", 0)):
        (root / label).mkdir(parents=True)
        for k in range(5):
            frames = [picture(100 + step * 3 * i + 7 * k) for i in range(16)]
            write_video(root / label / f"{k}.mp4", frames)
    return root


def clips_of(folder: Path, cache_bytes: float = 1e9) -> Clips:
    manifest = read_manifest(folder)
    config = tiny_config(**SMALL)
    return Clips(manifest.items, manifest.labels.names, config, None, cache_bytes)


def ignore(done: int, total: int) -> None:
    return None


def never(*_: object) -> None:
    raise AssertionError("read again")


def stored() -> set[Path]:
    """The samples in the cache."""
    return set(cache_folder("samples").glob("*/*.npz"))


def test_unreadable_clips_are_left_out_with_the_reason(moves: Path, tmp_path: Path) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")
    (data / "stay" / "empty.mp4").write_bytes(b"")
    clips = clips_of(data)
    gone = next(item for item in clips.items if item.path.name == "2.mp4" and item.label == "stay")
    gone.path.unlink()
    done = []
    left_out = clips.check(lambda count, total: done.append((count, total)))
    assert done == [(i, 17) for i in range(1, 18)]
    assert {c.item.path.name for c in left_out} == {"text.mp4", "empty.mp4", gone.path.name}
    assert len(clips) == 14 == len(clips.labels)
    assert [clips.labels[i] for i in range(14)] == [
        ["run_back", "run_on", "stay"].index(item.label) for item in clips.items
    ]
    write_left_out(tmp_path / "left_out.csv", left_out)
    with (tmp_path / "left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reason"] for row in rows] == [c.reason for c in left_out]
    assert all(row["label"] == "stay" and row["reason"] for row in rows)


@pytest.mark.slow
def test_loader_processes_find_and_cache_the_same(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")
    found = []
    for workers in (0, 2):
        monkeypatch.setenv("PEVL_CACHE", str(tmp_path / str(workers)))
        clips = clips_of(data)
        left_out = clips.check(ignore, workers)
        entries = {path.name for path in cache_folder("samples").glob("*/*")}
        found.append((clips.items, left_out, entries))
    assert found[0] == found[1] and len(found[0][2]) == 16


@pytest.mark.parametrize("room", [0, 2.5])
def test_clips_beyond_the_cache_s_size_are_read_again(
    moves: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: float
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    whole = clips_of(moves)
    first = whole[0]
    assert first.frames is not None
    size = first.frames.nbytes + first.joints.nbytes + 4096
    for _ in range(2):
        clips = clips_of(moves, room * size)
        assert clips.check(ignore) == [] and len(clips) == 15
        assert len(list(cache_folder("samples").glob("*/*.npz"))) == int(room)
    assert np.array_equal(clips[14].frames, whole[14].frames)


def test_a_cache_that_cannot_be_written_leaves_no_clip_out(
    moves: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    clips = clips_of(moves)
    assert clips.check(ignore) == [] and len(clips) == 15
    frames = clips[3].frames
    assert frames is not None and frames.any()


def test_a_second_check_reads_no_video(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")

    def check() -> tuple[int, list[LeftOut]]:
        clips = clips_of(data)
        left_out = clips.check(ignore)
        return len(clips), left_out

    first = check()
    assert first[0] == 15 and len(first[1]) == 1

    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "read_sample", never)
        assert check() == first
    shutil.copy(data / "stay" / "0.mp4", data / "stay" / "text.mp4")
    assert check()[0] == 16, "another file of the same name"


def test_files_that_are_only_opened_are_not_decoded(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")

    monkeypatch.setattr(clips_module, "read_sample", never)
    clips = clips_of(data)
    left_out = clips.check(ignore, decode=False)
    assert [c.item.path.name for c in left_out] == ["text.mp4"] and len(clips) == 15


def test_a_sample_from_the_cache_is_the_sample(moves: Path) -> None:
    clips = clips_of(moves)
    fresh = clips._read(clips.items[3])
    clips.check(ignore)
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


def test_the_cache_stays_within_its_limit(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path))
    clips = clips_of(moves)
    clips.check(ignore)
    for age, item in enumerate(clips.items):
        os.utime(clips._entry(item), (1e9 - age, 1e9 - age))
    _ = clips[14]  # used last
    size = clips._entry(clips.items[0]).stat().st_size
    SampleCache(4.5 * size).make_room()
    left = {i for i in range(15) if clips._entry(clips.items[i]).exists()}
    assert left == {0, 1, 2, 14}
    assert len(stored()) == 4


def test_a_full_cache_makes_room_by_what_no_run_uses_any_more(moves: Path, own_cache: Path) -> None:
    clips = clips_of(moves)
    clips.check(ignore)
    entries = [clips._entry(item) for item in clips.items]
    for entry in entries[:4]:
        os.utime(entry, (1e9, 1e9))
    limit = sum(entry.stat().st_size for entry in entries)
    SampleCache(1.2 * limit).make_room()
    assert len(stored()) == 15, "not full"
    SampleCache(limit).make_room()
    assert stored() == set(entries[4:])
    for entry in entries[4:12]:
        os.utime(entry, (1e9, 1e9))
    SampleCache(limit / 15 * 11).make_room()
    assert len(stored()) == 5, "down to half of the limit"


@pytest.mark.parametrize("decode", [False, True])
def test_a_clip_is_stored_when_it_is_first_decoded(
    moves: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, decode: bool
) -> None:
    clips = clips_of(moves)
    clips.check(ignore, decode=False)
    assert not stored()
    first = [clips[i] for i in range(15)]
    assert len(stored()) == 15
    monkeypatch.setattr(clips_module, "read_sample", never)
    clips = clips_of(moves)
    assert clips.check(ignore, decode=decode) == []
    assert all(np.array_equal(clips[i].frames, first[i].frames) for i in range(15))


def test_an_unreadable_clip_is_decoded_once(
    moves: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = clips_of(moves)
    counted: list[Path] = []

    def broken(path: Path, *_: object) -> None:
        counted.append(path)
        raise PevlError("it is damaged")

    monkeypatch.setattr(clips_module, "read_sample", broken)
    for _ in range(2):
        with pytest.raises(PevlError, match="it is damaged"):
            clips[0]
    assert len(counted) == 1

    def without_gpu(*_: object) -> None:
        raise UsageError("--device cuda: not available")

    monkeypatch.setattr(clips_module, "read_sample", without_gpu)
    with pytest.raises(UsageError):
        clips[1]
    monkeypatch.undo()
    assert clips_of(moves)[1].frames is not None, "the clip was not to blame"


def test_a_cache_that_cannot_be_marked_as_used_is_read(
    moves: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's cache: only its owner may set a file's times."""
    first = clips_of(moves)[0]

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", forbidden)
    monkeypatch.setattr(clips_module, "read_sample", never)
    assert np.array_equal(clips_of(moves)[0].frames, first.frames)


def test_a_measurement_writes_nothing(moves: Path, own_cache: Path) -> None:
    clips = clips_of(moves, 0)
    assert clips[0].frames is not None and not own_cache.exists()


@pytest.mark.slow
def test_processes_share_the_room_for_samples(moves: Path, own_cache: Path) -> None:
    """As the loader processes of two ranks."""
    first = clips_of(moves, 0)[0]
    assert first.frames is not None
    limit = 6.5 * (first.frames.nbytes + first.joints.nbytes + 4096)
    ranks = [Loader(clips_of(moves, limit).__getitem__, range(15), workers=2) for _ in range(2)]
    for _ in range(2):
        for one, other in zip(*ranks, strict=True):
            assert np.array_equal(one.frames, other.frames)
        assert 3 <= len(stored()) <= 6  # a clip that both read at once counts twice
        assert sum(path.stat().st_size for path in stored()) <= limit


def test_shots_are_drawn_by_the_seed_for_each_class(moves: Path) -> None:
    chosen = []
    for seed in (0, 0, 1, 2):
        clips = clips_of(moves)
        clips.keep_shots(2, seed)
        assert [clips.labels.count(c) for c in range(3)] == [2, 2, 2]
        chosen.append([item.path for item in clips.items])
    assert chosen[0] == chosen[1] and len({tuple(c) for c in chosen}) > 1


def test_examples_are_drawn_by_the_seed_for_each_class(moves: Path) -> None:
    clips = clips_of(moves)
    drawn = [clips.draw_examples(2, seed) for seed in (0, 0, 1, 2)]
    assert all([clips.labels[i] for i in d] == [0, 0, 1, 1, 2, 2] for d in drawn)
    assert drawn[0] == drawn[1] and len({tuple(d) for d in drawn}) > 1


def test_the_check_is_shared_among_processes(moves: Path, own_cache: Path, tmp_path: Path) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    for name in ("x", "y"):
        (data / "stay" / f"{name}.mp4").write_text("not a video")
    alone = clips_of(data)
    everything = alone.check(ignore)
    reasons: dict[int, str] = {}
    for _ in range(2):  # in the second round, each process gets the reasons of both
        for rank in range(2):
            monitored: list[int] = []

            def listener(done: int, total: int, seen: list[int] = monitored) -> None:
                seen.append(done)

            def merge(part: dict[int, str]) -> dict[int, str]:
                reasons.update(part)
                return reasons

            clips = clips_of(data)
            left_out = clips.check(listener, rank=rank, world=2, merge=merge)
            assert monitored == [min(2 * k, 17) for k in range(1, len(monitored) + 1)]
            assert len(monitored) == (9, 8)[rank]
    assert left_out == everything and len(left_out) == 2
    assert clips.items == alone.items and clips.labels == alone.labels


def test_a_loader_process_gets_no_samples_with_the_clips(moves: Path) -> None:
    clips = clips_of(moves)
    clips._pose_samples[clips.items[0]] = clips[0]
    assert pickle.loads(pickle.dumps(clips))._pose_samples == {}
    assert clips._pose_samples
