"""`pevl classify` with a tiny checkpoint: forms of the result, batches, labels."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import LABELS, Pevl, one_line
from conftest import MakeVideo, picture

from pevl_cli import recognise
from pevl_cli.data.samples import view
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.detector import PoseDetector


def test_json_has_the_documented_fields(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, weights: Path
) -> None:
    film = make_video(frames=30)
    done = pevl(
        *("classify", film, "--checkpoint", tiny_checkpoint, "--pose-weights", weights),
        *("--format", "json", "--top-k", 99, "--device", "cpu"),
    )
    assert (done.code, done.err) == (0, "")
    (record,) = done.records
    first = ["video", "start_s", "end_s", "predictions", "person", "warnings"]
    assert list(record) == [*first, "threshold", "none_of_these"]
    assert record["video"] == str(film)
    assert (record["threshold"], record["none_of_these"]) == (None, False), "nothing was fitted"
    assert (record["start_s"], record["end_s"]) == (0.0, pytest.approx(1.2))
    assert record["warnings"] == []
    predictions = record["predictions"]
    assert all(list(p) == ["label", "score", "similarity"] for p in predictions)
    assert sorted(p["label"] for p in predictions) == sorted(LABELS.names)
    scores = np.array([p["score"] for p in predictions])
    assert 0 < scores.sum() <= 1 + 1e-5
    assert (np.diff(scores) <= 0).all() and scores.min() > 0
    likeness = np.array([p["similarity"] for p in predictions])
    assert (np.diff(likeness) <= 0).all() and abs(likeness).max() <= 1
    assert scores[0] - scores[-1] > 1e-4, "the scores of all labels are equal"
    # Scores grow with similarities: their logarithms lie on one line.
    slope = np.polyfit(likeness, np.log(scores), 1)
    np.testing.assert_allclose(np.polyval(slope, likeness), np.log(scores), atol=1e-3)
    person = record["person"]
    assert list(person) == ["frames_seen", "frames", "box"]
    assert (person["frames_seen"], person["frames"]) == (48, 48)
    # 30 distinct frames: the box that holds the person in all of them.
    assert person["box"] == pytest.approx([10, 14, 10 + 29 + 60, 114], abs=0.01)


def test_without_pose_the_detector_is_not_used(
    pevl: Pevl,
    make_video: MakeVideo,
    tiny_checkpoint: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film = make_video(frames=30)
    command = ["classify", film, "--checkpoint", tiny_checkpoint, "--format", "json"]
    (with_pose,) = pevl(*command, "--pose-weights", weights).records

    def never(*_: object) -> None:
        raise AssertionError("the detector was used")

    monkeypatch.setattr(PoseDetector, "actor", never)
    done = pevl(*command, "--no-pose")
    assert done.code == 0
    (record,) = done.records
    assert record["person"] == {"frames_seen": 0, "frames": 48, "box": None}
    assert record["warnings"] == [], "no detector, so no warning"
    assert record["predictions"] != with_pose["predictions"]


def test_no_person_is_a_warning(
    pevl: Pevl,
    make_video: MakeVideo,
    tiny_checkpoint: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
) -> None:
    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], size: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for i, frame in frames:
            yield i, frame, np.zeros((0, 5)), np.zeros((0, 17, 3))

    monkeypatch.setattr(PoseDetector, "detect", detect)
    film = make_video(frames=5)
    command = ["classify", film, "--checkpoint", tiny_checkpoint, "--pose-weights", weights]
    (record,) = pevl(*command, "--format", "json").records
    assert record["person"] == {"frames_seen": 0, "frames": 48, "box": None}
    assert len(record["warnings"]) == 1 and "no person" in record["warnings"][0]
    shown = pevl(*command)
    assert shown.code == 0 and "no person" in one_line(shown.err)


def test_top_k_cuts_the_list_and_not_the_scores(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path
) -> None:
    command = ["classify", make_video(frames=20), "--checkpoint", tiny_checkpoint, "--no-pose"]
    (whole,) = pevl(*command, "--format", "json", "--top-k", 7).records
    (default,) = pevl(*command, "--format", "json").records
    assert len(default["predictions"]) == 5
    assert default["predictions"] == whole["predictions"][:5]


def test_csv(pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    films = [make_video(f"{i}, take.mp4", frames=20 + i) for i in range(2)]
    command = ["classify", *films, "--checkpoint", tiny_checkpoint, "--no-pose", "--top-k", 3]
    done = pevl(*command, "--format", "csv")
    records = pevl(*command, "--format", "json").records
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [r["video"] for r in rows] == [str(films[0])] * 3 + [str(films[1])] * 3
    assert [int(r["rank"]) for r in rows] == [1, 2, 3] * 2
    predicted = [p for record in records for p in record["predictions"]]
    assert [r["label"] for r in rows] == [p["label"] for p in predicted]
    for row, p in zip(rows, predicted, strict=True):
        assert float(row["score"]) == pytest.approx(p["score"], abs=1e-6)
        assert float(row["similarity"]) == pytest.approx(p["similarity"], abs=1e-6)
    assert float(rows[0]["end_s"]) == pytest.approx(0.8)


def test_table(pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, weights: Path) -> None:
    film = make_video(frames=20)
    command = ["classify", film, "--checkpoint", tiny_checkpoint, "--pose-weights", weights]
    done = pevl(*command)
    (record,) = pevl(*command, "--format", "json").records
    assert (done.code, done.err) == (0, "")
    shown = [p["label"] for p in record["predictions"]]
    places = [done.out.index(label) for label in shown]
    assert places == sorted(places), "best first"
    assert "film.mp4" in "".join(done.out.split())
    assert "48 of 48" in done.out


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_output_goes_to_a_file(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path, form: str
) -> None:
    command = ["classify", make_video(frames=5), "--checkpoint", tiny_checkpoint, "--no-pose"]
    target = tmp_path / "answer.txt"
    done = pevl(*command, "--format", form, "--output", target)
    assert (done.code, done.out, done.err) == (0, "", "")
    text = target.read_text()
    if form != "table":
        assert text == pevl(*command, "--format", form).out
    (record,) = pevl(*command, "--format", "json").records
    assert all(p["label"] in text for p in record["predictions"])
    assert [p.name for p in tmp_path.iterdir() if "answer" in p.name] == ["answer.txt"]


def test_a_part_of_the_video(pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    # Numbers run down the picture, so that the two halves look different.
    film = make_video(frames=100)
    command = ["classify", film, "--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"]
    (whole,) = pevl(*command).records
    (part,) = pevl(*command, "--start", 2.5, "--end", 3.5).records
    assert (part["start_s"], part["end_s"]) == (2.5, 3.5)
    assert part["predictions"] != whole["predictions"]
    done = pevl(*command, "--start", 9)
    assert done.code == 1 and "outside" in one_line(done.err)


def test_three_views_are_averaged(
    pevl: Pevl, tmp_path: Path, tiny_checkpoint: Path, make_video: MakeVideo
) -> None:
    wide = [np.concatenate([picture(i), picture(i + 100)], 1) for i in range(20)]
    film = make_video(frames=wide)
    command = ["classify", film, "--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"]
    (one,) = pevl(*command, "--top-k", 7).records
    (three,) = pevl(*command, "--top-k", 7, "--views", 3).records
    recogniser = recognise.load(tiny_checkpoint, use_pose=False, device="cpu")
    sample, texts = recogniser.read(film), recogniser.encode(LABELS)
    with torch.inference_mode():
        each = [
            recogniser.model(view(sample, recogniser.model.config, place), texts)[0]
            for place in range(3)
        ]
    mean = dict(zip(LABELS.names, torch.stack(each).mean(0).tolist(), strict=True))
    for p in three["predictions"]:
        assert p["similarity"] == pytest.approx(mean[p["label"]], abs=1e-5)
    assert {p["label"]: p["similarity"] for p in one["predictions"]} != pytest.approx(mean)


def test_folders_and_patterns(pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    films = [make_video(name, frames=3) for name in ("in/b.mp4", "in/deep/a.gif", "in/c.mkv")]
    folder = films[0].parent
    (folder / "notes.txt").write_text("not a film")
    options = ["--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"]
    videos = [r["video"] for r in pevl("classify", folder, *options).records]
    assert sorted(videos) == sorted(map(str, films))
    videos = [r["video"] for r in pevl("classify", folder / "*.m*", *options).records]
    assert videos == [str(folder / "b.mp4"), str(folder / "c.mkv")]
    done = pevl("classify", folder / "*.wmv", *options)
    assert done.code == 1 and "nothing matches" in one_line(done.err)


def test_a_batch_goes_on_after_bad_files(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    good = [make_video(f"{n}.mp4", frames=5) for n in ("first", "last")]
    text, empty, cut = (tmp_path / f"{n}.mp4" for n in ("text", "empty", "cut"))
    text.write_text("this is no film\n" * 30)
    empty.touch()
    whole = make_video("whole.mp4", frames=60).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    bad = [text, empty, cut, tmp_path / "gone.mp4"]
    done = pevl(
        *("classify", good[0], *bad, good[1]),
        *("--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"),
    )
    assert done.code == 1
    assert [r["video"] for r in done.records] == [str(g) for g in good]
    lines = done.err.splitlines()
    assert len(lines) == 5
    for line, path in zip(lines, bad, strict=False):
        assert line.startswith(f"error: {path}: ")
    assert "4 of 6" in lines[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no labels"),
        (b"# only a comment\n\n", "no labels"),
        (b"jump\n\nturn\njump\n", "line 4"),
        (b"jump\nturn\t\n", "line 2"),
        ("jump\nsauté\n".encode("latin-1"), "line 2"),
    ],
)
def test_a_wrong_label_file(
    pevl: Pevl, make_video: MakeVideo, tmp_path: Path, content: bytes, message: str
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_bytes(content)
    done = pevl("classify", make_video(frames=2), "--labels", labels, "--no-pose")
    assert (done.code, done.out) == (1, "")
    assert message in one_line(done.err) and str(labels) in done.err


def test_labels_decide_which_names_are_predicted(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    film, labels = make_video(frames=5), tmp_path / "labels.txt"
    options = ["--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json", "--top-k", 99]
    labels.write_text("cartwheel\nhandstand\n")
    (custom,) = pevl("classify", film, "--labels", labels, *options).records
    assert sorted(p["label"] for p in custom["predictions"]) == ["cartwheel", "handstand"]
    assert 0 < sum(p["score"] for p in custom["predictions"]) < 1 + 1e-5
    (bundled,) = pevl("classify", film, "--labels", "gym99", *options).records
    assert len(bundled["predictions"]) == 99
    # A label that the checkpoint was trained on keeps the text that it was trained with.
    (trained,) = pevl("classify", film, *options).records
    labels.write_text("turn\njump\n")
    (known,) = pevl("classify", film, "--labels", labels, *options).records
    likeness = {p["label"]: p["similarity"] for p in trained["predictions"]}
    for p in known["predictions"]:
        assert p["similarity"] == pytest.approx(likeness[p["label"]], abs=1e-5)


def test_label_texts_are_encoded_once(
    pevl: Pevl,
    make_video: MakeVideo,
    tiny_checkpoint: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []
    encode = PeVL.encode_text

    def counted(self: PeVL, prompts: list[str]) -> Any:
        encoded.append(len(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(PeVL, "encode_text", counted)
    film = make_video(frames=5)
    options = ["--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"]

    def likeness(*more: object) -> dict[str, float]:
        (record,) = pevl("classify", film, *options, *more).records
        return {p["label"]: p["similarity"] for p in record["predictions"]}

    first = likeness()
    (stored,) = (own_cache / "texts").iterdir()
    assert encoded == [7]
    assert likeness() == pytest.approx(first, abs=1e-6)
    assert encoded == [7], "encoded again"
    labels = film.with_name("labels.txt")
    labels.write_text("hop\nskip\n")
    assert len(likeness("--labels", labels)) == 2
    assert encoded == [7, 2] and len(list((own_cache / "texts").iterdir())) == 2
    stored.write_bytes(stored.read_bytes()[:100])
    assert likeness() == pytest.approx(first, abs=1e-6)
    assert encoded == [7, 2, 7], "a damaged file was used"
    assert likeness() == pytest.approx(first, abs=1e-6)
    assert len(encoded) == 3, "the damaged file was not replaced"


def test_a_folder_that_is_no_checkpoint(pevl: Pevl, make_video: MakeVideo, tmp_path: Path) -> None:
    for name in (tmp_path / "gone", tmp_path):
        done = pevl("classify", make_video(frames=2), "--checkpoint", name, "--no-pose")
        assert (done.code, done.out) == (1, "")
        assert str(name) in one_line(done.err)


@pytest.mark.slow
def test_every_real_clip_gets_a_ranking(pevl: Pevl, shared: Path, tiny_checkpoint: Path) -> None:
    done = pevl(
        *("classify", shared / "data" / "clips", "--checkpoint", tiny_checkpoint),
        *("--no-pose", "--format", "json", "--top-k", 7),
    )
    assert (done.code, done.err) == (0, "")
    assert len(done.records) == 20
    for record in done.records:
        scores = [p["score"] for p in record["predictions"]]
        assert 0 < sum(scores) < 1 + 1e-4, record["video"]
        damaged = record["video"].endswith("corrupted.mp4")
        assert [w for w in record["warnings"] if "28 of 50" in w] == record["warnings"]
        assert bool(record["warnings"]) == damaged


def test_labels_that_a_model_from_scratch_was_not_trained_on_give_a_warning(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("juggling\nknitting\n")
    options = ("--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json")
    (other,) = pevl("classify", make_video(frames=5), *options, "--labels", labels).records
    assert any("not trained on 2 of the 2" in w and "juggling" in w for w in other["warnings"])
    (custom,) = pevl("classify", make_video(frames=5), *options).records
    assert not any("not trained on" in w for w in custom["warnings"])


def test_none_of_these_where_no_score_reaches_the_threshold(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, weights: Path, tmp_path: Path
) -> None:
    film = make_video(frames=30)
    folder = tmp_path / "fitted"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    for threshold, none in ((0.999, True), (0.0, False)):
        config["calibration"] = {
            "temperature": 0.5,
            "threshold": threshold,
            "split": "val",
            "clips": 9,
        }
        (folder / "config.json").write_text(json.dumps(config))
        command = ["classify", film, "--checkpoint", folder, "--pose-weights", weights]
        (record,) = pevl(*command, "--format", "json").records
        assert (record["threshold"], record["none_of_these"]) == (threshold, none)
        for form in ("csv", "table"):
            message = pevl(*command, "--format", form).out
            assert (
                "none of these" in message if form == "table" else ",yes," in message
            ) == none, message
        assert len(record["predictions"]) > 1, "the labels are ranked all the same"
