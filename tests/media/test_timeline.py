"""A long film is scanned once, however many clips are cut from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeVideo, number_of, write_video

from pevl_cli.cache import cache_folder
from pevl_cli.media import timeline as timeline_module
from pevl_cli.media import video
from pevl_cli.media.timeline import MIN_FRAMES_ON_DISK, Timeline
from pevl_cli.media.video import read_timeline, sample_clip

FRAMES = MIN_FRAMES_ON_DISK + 50


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "long.mp4", FRAMES)


@pytest.fixture
def scans(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are scanned, in a process that has read nothing yet."""
    scanned: list[Path] = []
    scan = video._scan

    def record(container: Any, path: Path) -> Timeline:
        scanned.append(path)
        return scan(container, path)

    monkeypatch.setattr(video, "_scan", record)
    new_process()
    return scanned


def new_process() -> None:
    """Forget what is in memory, as a new process does."""
    if hasattr(video, "_timeline"):
        video._timeline.cache_clear()


def equal(a: Timeline, b: Timeline) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Timeline))
    return all(np.array_equal(x, y) and type(x) is type(y) for x, y in pairs)


def test_fifty_clips_of_one_film_scan_it_once(film: Path, scans: list[Path]) -> None:
    for k in range(50):
        clip = sample_clip(film, 3, start_s=k * 0.8, end_s=k * 0.8 + 0.12)
        assert [number_of(f) for f in clip.frames] == [(20 * k + i) % 320 for i in range(3)]
    assert scans == [film]


def test_other_processes_read_it_from_the_disk(film: Path, scans: list[Path]) -> None:
    first = read_timeline(film)
    new_process()
    again = read_timeline(film)
    assert equal(first, again) and scans == [film]
    with pytest.raises(ValueError, match="read-only"):
        again.pts[0] = 1


def test_a_film_with_other_content_is_scanned_again(film: Path, scans: list[Path]) -> None:
    read_timeline(film)
    changed_ns = film.stat().st_mtime_ns + 1_000_000_000
    os.utime(film, ns=(changed_ns, changed_ns))
    read_timeline(film)
    assert scans == [film, film]


def test_a_relative_path_means_another_file_in_another_folder(
    make_video: MakeVideo, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = [make_video(f"{name}/a.mp4", frames=5) for name in "xy"]
    for path in ones:
        os.utime(path, (1e9, 1e9))
        monkeypatch.chdir(path.parent)
        assert len(read_timeline("a.mp4")) == 5
    assert scans == [Path("a.mp4")] * 2


def test_short_clips_leave_no_file(make_video: MakeVideo, scans: list[Path]) -> None:
    read_timeline(make_video(frames=60))
    assert not cache_folder("timelines").exists()


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_or_read_only_cache_does_not_matter(
    film: Path, scans: list[Path], own_cache: Path, content: bytes | None
) -> None:
    expected = read_timeline(film)
    (entry,) = cache_folder("timelines").iterdir()
    if content is None:  # no file can be in a folder that is a file
        entry.unlink()
        cache_folder("timelines").rmdir()
        cache_folder("timelines").write_text("a file where the folder should be")
    else:
        entry.write_bytes(content)
    new_process()
    assert equal(read_timeline(film), expected) and scans == [film, film]


def test_the_folder_stays_within_its_limit(
    film: Path, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_timeline(film)
    (first,) = cache_folder("timelines").iterdir()
    os.utime(first, (1e9, 1e9))
    monkeypatch.setattr(timeline_module, "MAX_DISK_BYTES", 1.5 * first.stat().st_size)
    monkeypatch.setattr(timeline_module, "TRIM_EVERY", 1)
    other = tmp_path / "other.mp4"
    other.write_bytes(film.read_bytes())
    read_timeline(other)
    (left,) = cache_folder("timelines").iterdir()
    assert left != first, "the least recently used one is removed"


def test_only_the_wanted_part_is_decoded(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = video._decode_on

    def record(*arguments: Any) -> Iterator[tuple[int, Any]]:
        for index, frame in decode(*arguments):
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(video, "_decode_on", record)
    clip = sample_clip(film, 10, start_s=30.0, end_s=31.0)
    assert clip.indices[0] == 751 and clip.indices[-1] == 773
    assert min(decoded) >= 740 and max(decoded) == 773 and len(decoded) < 40
