"""`pevl pose`: joints of videos as JSON, CSV and drawings, with a stand-in detector."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from command import Pevl
from conftest import MakeVideo, number_of, picture

from pevl_cli.media.video import iter_frames, read_timeline
from pevl_cli.pose.detector import PoseDetector, PoseSettings
from pevl_cli.pose.skeletons import LAYOUTS


@pytest.mark.parametrize(("frames", "count"), [("48", 48), ("all", 60)])
def test_pose_json_has_the_documented_fields(
    pevl: Pevl, make_video: MakeVideo, weights: Path, frames: str, count: int
) -> None:
    film = make_video(frames=60)
    done = pevl("pose", film, "--pose-weights", weights, "--frames", frames)
    assert (done.code, done.err) == (0, "")
    (record,) = done.records
    assert list(record) == ["video", "layout", "width", "height", "frames"]
    assert record["video"] == str(film) and record["layout"] == "coco17"
    assert (record["width"], record["height"]) == (160, 128)
    assert len(record["frames"]) == count
    for place, frame in enumerate(record["frames"]):
        assert list(frame) == ["index", "time_s", "joints", "bridged"]
        assert frame["index"] == (place if frames == "all" else int(1.25 * place + 0.625))
        assert frame["time_s"] == pytest.approx(frame["index"] / 25, abs=1e-3)
        assert frame["bridged"] is False
        assert len(frame["joints"]) == 17 and all(len(j) == 3 for j in frame["joints"])
        # The stand-in detector counts the frames that it is given.
        assert frame["joints"][0] == pytest.approx([40 + place, 20, 0.8], abs=1e-3)


def test_pose_of_a_short_part(pevl: Pevl, make_video: MakeVideo, weights: Path) -> None:
    film = make_video(frames=60)
    command = ["pose", film, "--pose-weights", weights, "--start", 1.0, "--end", 1.2]
    (part,) = pevl(*command, "--frames", "all").records
    assert [f["index"] for f in part["frames"]] == [25, 26, 27, 28, 29]
    (sampled,) = pevl(*command).records
    assert [f["index"] for f in sampled["frames"]] == [
        25 + int((k + 0.5) * 5 / 48) for k in range(48)
    ]


def test_pose_is_null_without_a_person(
    pevl: Pevl, make_video: MakeVideo, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], size: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for i, frame in frames:
            seen = i in {*range(4), *range(6, 10)} and size != PoseSettings().cut_out_px
            box = np.array([[10, 14, 70, 114, 0.9]])[: int(seen)]
            yield i, frame, box, np.full((1, 17, 3), 0.8)[: int(seen)]

    monkeypatch.setattr(PoseDetector, "detect", detect)
    # 10 frames a second: the gap of two is bridged, and no person is detected after frame 9.
    film = make_video(frames=12, fps=10)
    (record,) = pevl("pose", film, "--pose-weights", weights, "--frames", "all").records
    assert [f["joints"] is None for f in record["frames"]] == [False] * 10 + [True] * 2
    assert [f["bridged"] for f in record["frames"]] == [i in {4, 5} for i in range(12)]


def test_pose_csv_has_a_row_for_each_joint(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path
) -> None:
    film, target = make_video(frames=6, fps=10), tmp_path / "joints.csv"
    command = ["pose", film, "--pose-weights", weights, "--frames", "all"]
    (record,) = pevl(*command).records
    done = pevl(*command, "--format", "csv", "--output", target)
    assert (done.code, done.out, done.err) == (0, "", "")
    rows = list(csv.DictReader(target.open()))
    head = ["video", "frame", "time_s", "joint", "x_px", "y_px", "score", "bridged"]
    assert list(rows[0]) == head and len(rows) == 6 * 17
    for place, row in enumerate(rows):
        frame = record["frames"][place // 17]
        assert (row["video"], row["bridged"]) == (str(film), "no")
        assert row["joint"] == LAYOUTS["coco17"].names[place % 17]
        assert (int(row["frame"]), float(row["time_s"])) == (frame["index"], frame["time_s"])
        joint = [float(row[column]) for column in ("x_px", "y_px", "score")]
        assert joint == frame["joints"][place % 17]


def test_pose_csv_leaves_frames_without_a_person_out(pevl: Pevl, tmp_path: Path) -> None:
    joints = np.full((1, 3, 17, 2), 9.0, np.float16)
    scores = np.full((1, 3, 17), 0.5, np.float16)
    scores[:, 2] = 0
    one = {"frame_dir": "a", "label": 0, "img_shape": (64, 64), "total_frames": 3}
    file = tmp_path / "poses.pkl"
    file.write_bytes(pickle.dumps([one | {"keypoint": joints, "keypoint_score": scores}]))
    done = pevl("pose", file, "--format", "csv")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert {row["frame"] for row in rows} == {"0", "1"} and len(rows) == 2 * 17
    assert {row["time_s"] for row in rows} == {""}, "stored poses have no times"


def changed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Where a drawing changed a picture clearly."""
    return abs(after.astype(int) - before.astype(int)).max(-1) > 80


@pytest.mark.parametrize("name", ["drawn.mp4", "drawn.mkv", "drawn.mov"])
def test_a_drawn_film_decodes_again(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path, name: str
) -> None:
    film, target = make_video(frames=30, fps=10), tmp_path / name
    done = pevl("pose", film, "--pose-weights", weights, "--frames", "all", "--draw", target)
    assert done.code == 0 and len(done.records) == 1
    drawn = read_timeline(target)
    assert (len(drawn), drawn.width, drawn.height) == (30, 160, 128)
    np.testing.assert_allclose(drawn.times_s, np.arange(30) / 10, atol=2e-3)
    for i, frame in iter_frames(drawn, [3, 20]):
        assert number_of(frame) == i
        marked = changed(frame, picture(i))
        assert marked[20:110, 38 + i : 43 + i].mean() > 0.3, "no skeleton where the joints are"
        assert marked[:, 60 + i :].mean() < 0.02
    assert [p.name for p in tmp_path.iterdir() if "drawn" in p.name] == [name]


def test_a_drawn_film_keeps_uneven_times(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path
) -> None:
    times_ms = [0, 40, 80, 1000, 1040, 2000, 2500]
    film, target = make_video(frames=7, pts_ms=times_ms), tmp_path / "drawn.mp4"
    assert (
        pevl("pose", film, "--pose-weights", weights, "--frames", "all", "--draw", target).code == 0
    )
    np.testing.assert_allclose(read_timeline(target).times_s, np.array(times_ms) / 1000, atol=2e-3)


def test_a_drawn_sample_of_a_long_film_takes_as_long(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path
) -> None:
    film, target = make_video(frames=100, fps=1), tmp_path / "drawn.mp4"
    assert pevl("pose", film, "--pose-weights", weights, "--draw", target).code == 0
    drawn = read_timeline(target)
    assert len(drawn) == 48
    assert drawn.times_s[-1] == pytest.approx(98, abs=2)


@pytest.mark.parametrize("name", ["strip.png", "strip.jpg"])
def test_a_drawn_picture_is_a_strip_of_six(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path, name: str
) -> None:
    film, target = make_video(frames=30), tmp_path / name
    assert pevl("pose", film, "--pose-weights", weights, "--draw", target).code == 0
    strip = cv2.imread(str(target))
    assert strip is not None and strip.shape == (360, 6 * 450, 3)
    for k, tile in enumerate(np.split(strip[..., ::-1], 6, axis=1)):
        frame = cv2.resize(tile, (160, 128), interpolation=cv2.INTER_AREA)
        # Six of the 30 frames, evenly, first and last among them.
        number = round(k * 29 / 5)
        assert changed(frame, picture(number))[20:110, 37 + number : 44 + number].mean() > 0.2


def test_a_drawn_film_plays_in_ordinary_players(
    pevl: Pevl, make_video: MakeVideo, weights: Path, tmp_path: Path
) -> None:
    """H.264 in 4:2:0, which needs even sides."""
    odd = [np.full((99, 151, 3), 90 + i, np.uint8) for i in range(4)]
    film, target = make_video("odd.gif", frames=odd), tmp_path / "drawn.mp4"
    assert pevl("pose", film, "--pose-weights", weights, "--draw", target).code == 0
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (150, 98)
