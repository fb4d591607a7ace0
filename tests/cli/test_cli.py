"""The command `pevl`, from arguments to what stands on stdout and stderr and the exit code."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import MakeVideo, child_environment, number_of, picture, write_video
from tiny import tiny_config, tiny_model

from pevl_cli import __version__, recognise
from pevl_cli.cli import app as cli
from pevl_cli.cli import console
from pevl_cli.data.samples import view
from pevl_cli.labels import LabelSet
from pevl_cli.media.video import iter_frames, read_timeline
from pevl_cli.model import checkpoint
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.pevl import PeVL
from pevl_cli.model.sgmc import Similarities
from pevl_cli.pose.detector import PoseDetector, PoseSettings
from pevl_cli.training import train as training
from pevl_cli.training.settings import PRESETS, load_settings

LABELS = LabelSet(
    ("jump", "turn", "split", "kick", "roll", "walk", "sit"),
    ("a high jump", "a full turn", "a split leap", "a kick", "a roll", "walking", "sitting down"),
    "{text}, a video of gymnastic action",
)
SIZES = {"video_frames": 16, "pose_frames": 48, "joints": 17, "dropout": 0.0}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads(self.out)
        return loaded


Pevl = Callable[..., Done]


@pytest.fixture
def pevl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Pevl:
    """Run the command in this process: pevl("classify", path) gives code, stdout and stderr."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["pevl", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            monkeypatch.setattr(console, "debug", False)
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = tiny_model(seed=3, **SIZES)
    state = model.state_dict()
    checkpoint.save(folder, state, checkpoint.facts_of(model.config, LABELS, None, {}))
    return folder


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector that sees one person, whose box is 60 x 100 px, walk to the right."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")

    def detect(
        self: PoseDetector, frames: Iterable[tuple[int, np.ndarray]], image_size_px: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        for i, frame in frames:
            left = 10 + i
            box = np.array([[left, 14, left + 60, 114, 0.9]])
            joints = np.full((1, 17, 3), 0.8)
            joints[0, :, 0], joints[0, :, 1] = left + 30, np.linspace(20, 110, 17)
            yield i, frame, box, joints

    monkeypatch.setattr(PoseDetector, "detect", detect)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_line(text: str) -> str:
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert "Traceback" not in text
    return text.strip()


# -- before anything heavy ---------------------------------------------------------------------

QUICK = """
import sys
from pevl_cli.cli.app import main
sys.argv = ["pevl", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = {"torch", "ultralytics", "open_clip"} & sys.modules.keys()
print("code", code, "loaded", sorted(heavy))
"""


def in_a_process(*arguments: object) -> tuple[str, str]:
    """Last line of stdout, and stderr, of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *map(str, arguments)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize("command", ["", "classify", "pose", "train"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    last, err = in_a_process(*([command] if command else []), "--help")
    assert last == "code 0 loaded []"
    assert err == ""


def test_wrong_input_is_told_before_torch_is_loaded(tmp_path: Path, make_video: MakeVideo) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("jump\nturn\njump\n")
    last, err = in_a_process("classify", make_video(frames=2), "--labels", labels)
    assert last == "code 1 loaded []"
    assert "line 3" in one_line(err)
    last, err = in_a_process("train", "--dataset", tmp_path / "gone")
    assert last == "code 1 loaded []"
    assert str(tmp_path / "gone") in one_line(err)


@pytest.mark.parametrize("arguments", [["--version"], ["--debug", "--version"]], ids=" ".join)
def test_version(pevl: Pevl, arguments: list[str]) -> None:
    done = pevl(*arguments)
    assert (done.code, done.out, done.err) == (0, f"pevl {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classify", "{film}", "--views", "2"], "--views 2"),
        (["classify", "{film}", "--output", "{film}/.."], "folder"),
        (["classify", "{film}", "--output", "gone/answer.json"], "does not exist"),
        (["classify", "{film}", "--pose-weights", "gone.pt"], "gone.pt"),
        (["classify", "{film}", "--clip", "ViT-B-16:openai"], "--labels"),
        (["classify", "{film}", "--checkpoint", "{tiny}", "--device", "abacus"], "abacus"),
        (
            [
                *("classify", "{film}", "--checkpoint", "{tiny}", "--precision", "fp16"),
                *("--device", "cpu", "--no-pose"),
            ],
            "fp16",
        ),
        (["pose", "{film}", "--draw", "film.xyz"], ".mp4"),
        (["pose", "{film}", "{film}2", "--draw", "film.mp4"], "one video"),
        (["train", "--dataset", ".", "--config", "huge"], "mini"),
        (["train", "--dataset", ".", "--no-video", "--no-pose"], "nothing to look at"),
    ],
    ids=lambda v: " ".join(v[2:]) if isinstance(v, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, arguments: list[str], said: str
) -> None:
    film = make_video(frames=2)
    done = pevl(*(a.format(film=film, tiny=tiny_checkpoint) for a in arguments))
    assert (done.code, done.out) == (2, "")
    assert said in one_line(done.err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classify"], "VIDEO"),
        (["classify", "a.mp4", "--bogus"], "--bogus"),
        (["classify", "a.mp4", "--top-k", "0"], "--top-k"),
        (["classify", "a.mp4", "--format", "xml"], "--format"),
        (["classify", "a.mp4", "--start", "soon"], "--start"),
        (["pose", "a.mp4", "--frames", "7"], "--frames"),
        (["train"], "--dataset"),
        (["train", "--dataset", ".", "--epochs", "0"], "--epochs"),
        (["train", "--dataset", ".", "--crop", "round"], "--crop"),
        (["train", "--dataset", ".", "--gpus", "0"], "--gpus"),
        (["train", "--dataset", ".", "--learning-rate", "-1"], "--learning-rate"),
        (["train", "--dataset", ".", "--seed", "-1"], "--seed"),
        (["dance"], "dance"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_the_parser_refuses_ends_with_exit_code_2(
    pevl: Pevl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, 2)
    monkeypatch.chdir(tmp_path)
    done = pevl(*arguments, *(["--no-pose"] if "--dataset" in arguments else []))
    assert (done.code, done.out) == (2, "")
    assert said in done.err and "Traceback" not in done.err


# -- classify ----------------------------------------------------------------------------------


def test_json_is_what_the_issue_says(
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
    assert scores[0] - scores[-1] > 1e-4, "the model says the same of every label"
    # Scores grow with similarities: their logarithms lie on one line.
    slope = np.polyfit(likeness, np.log(scores), 1)
    np.testing.assert_allclose(np.polyval(slope, likeness), np.log(scores), atol=1e-3)
    person = record["person"]
    assert list(person) == ["frames_seen", "frames", "box"]
    assert (person["frames_seen"], person["frames"]) == (48, 48)
    # 30 distinct frames: the box that holds the person in all of them.
    assert person["box"] == pytest.approx([10, 14, 10 + 29 + 60, 114], abs=0.01)


def test_without_pose_nobody_is_looked_for(
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
        raise AssertionError("the detector was asked")

    monkeypatch.setattr(PoseDetector, "actor", never)
    done = pevl(*command, "--no-pose")
    assert done.code == 0
    (record,) = done.records
    assert record["person"] == {"frames_seen": 0, "frames": 48, "box": None}
    assert record["warnings"] == [], "nobody was looked for, so nobody is missed"
    assert record["predictions"] != with_pose["predictions"]


def test_nobody_found_is_a_warning(
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
    assert len(record["warnings"]) == 1 and "nobody" in record["warnings"][0]
    shown = pevl(*command)
    assert shown.code == 0 and "nobody" in one_line(shown.err)


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
    told = [p for record in records for p in record["predictions"]]
    assert [r["label"] for r in rows] == [p["label"] for p in told]
    for row, p in zip(rows, told, strict=True):
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


def test_a_clip_is_judged_as_it_is_and_mirrored_unless_a_label_names_a_side(
    tmp_path: Path, tiny_checkpoint: Path, make_video: MakeVideo
) -> None:
    folder = tmp_path / "flip_at_test"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["flip_at_test"] = True
    (folder / "config.json").write_text(json.dumps(config))
    recogniser = recognise.load(folder, use_pose=False, device="cpu")
    halves = [np.concatenate([picture(i) // 4, picture(i + 100)], 1) for i in range(20)]
    sample = recogniser.read(make_video(frames=halves))
    for names, ways in (("jump", "turn"), (False, True)), (("left jump", "turn"), (False,)):
        labels = LabelSet(names, names)
        assert labels.names_a_side == (len(ways) == 1)
        texts = recogniser.encode(labels)
        with torch.inference_mode():
            each = [
                recogniser.model.match(view(sample, recogniser.model.config, 0, way), texts)
                for way in (False, True)
            ]
            each = [one.similarities for one in each]
            found = recogniser.match([sample], labels).values
        assert (each[0] - each[1]).nan_to_num().abs().max() > 1e-4
        mean = torch.stack(each[: len(ways)]).mean(0)
        torch.testing.assert_close(found, mean, equal_nan=True, atol=1e-6, rtol=0)


def test_folders_and_patterns(pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    films = [make_video(name, frames=3) for name in ("in/b.mp4", "in/deep/a.gif", "in/c.mkv")]
    folder = films[0].parent
    (folder / "notes.txt").write_text("not a film")
    options = ["--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json"]
    found = [r["video"] for r in pevl("classify", folder, *options).records]
    assert sorted(found) == sorted(map(str, films))
    found = [r["video"] for r in pevl("classify", folder / "*.m*", *options).records]
    assert found == [str(folder / "b.mp4"), str(folder / "c.mkv")]
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
    ("content", "said"),
    [
        (b"", "no labels"),
        (b"# only a comment\n\n", "no labels"),
        (b"jump\n\nturn\njump\n", "line 4"),
        (b"jump\nturn\t\n", "line 2"),
        ("jump\nsauté\n".encode("latin-1"), "line 2"),
    ],
)
def test_a_wrong_label_file(
    pevl: Pevl, make_video: MakeVideo, tmp_path: Path, content: bytes, said: str
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_bytes(content)
    done = pevl("classify", make_video(frames=2), "--labels", labels, "--no-pose")
    assert (done.code, done.out) == (1, "")
    assert said in one_line(done.err) and str(labels) in done.err


def test_labels_rule_which_names_are_told(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    film, labels = make_video(frames=5), tmp_path / "labels.txt"
    options = ["--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json", "--top-k", 99]
    labels.write_text("cartwheel\nhandstand\n")
    (own,) = pevl("classify", film, "--labels", labels, *options).records
    assert sorted(p["label"] for p in own["predictions"]) == ["cartwheel", "handstand"]
    assert 0 < sum(p["score"] for p in own["predictions"]) < 1 + 1e-5
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
    assert encoded == [7, 2, 7], "a damaged file was believed"
    assert likeness() == pytest.approx(first, abs=1e-6)
    assert len(encoded) == 3, "the damaged file was not replaced"


def test_debug_shows_where_an_error_came_from(
    pevl: Pevl, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = ["classify", tmp_path / "gone.mp4", "--checkpoint", tiny_checkpoint, "--no-pose"]
    plain, debugged = pevl(*command), pevl("--debug", *command)
    assert plain.code == debugged.code == 1
    assert "no such file" in one_line(plain.err)
    assert "Traceback" in debugged.err and "_check_there" in debugged.err
    assert debugged.err.splitlines()[-1] == plain.err.strip()


def test_a_folder_that_is_no_checkpoint(pevl: Pevl, make_video: MakeVideo, tmp_path: Path) -> None:
    for name in (tmp_path / "gone", tmp_path):
        done = pevl("classify", make_video(frames=2), "--checkpoint", name, "--no-pose")
        assert (done.code, done.out) == (1, "")
        assert str(name) in one_line(done.err)


def test_in_a_process_of_its_own(make_video: MakeVideo, tiny_checkpoint: Path) -> None:
    good, bad = make_video("good.mp4", frames=5), make_video("bad.mp4", frames=1)
    bad.write_bytes(b"")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pevl_cli", "classify", str(good), str(bad), "--no-pose"),
            *("--checkpoint", str(tiny_checkpoint), "--format", "json", "--device", "cpu"),
        ],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert [r["video"] for r in json.loads(done.stdout)] == [str(good)]
    error, summary = done.stderr.splitlines()
    assert error.startswith(f"error: {bad}: ") and "1 of 2" in summary


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


# -- pose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "count"), [("48", 48), ("all", 60)])
def test_pose_json_is_what_the_issue_says(
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


def test_pose_of_nobody_is_null(
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
    # 10 frames a second: the gap of two is bridged, and nobody is there after frame 9.
    film = make_video(frames=12, fps=10)
    (record,) = pevl("pose", film, "--pose-weights", weights, "--frames", "all").records
    assert [f["joints"] is None for f in record["frames"]] == [False] * 10 + [True] * 2
    assert [f["bridged"] for f in record["frames"]] == [i in {4, 5} for i in range(12)]


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


# -- train ----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two classes of four clips: a square that runs forwards, and one that runs back."""
    root = tmp_path / "moves"
    for label, way in (("run_on", 1), ("run_back", -1)):
        (root / label).mkdir(parents=True)
        for k in range(4):
            frames = [picture(100 + way * 3 * i + k) for i in range(16)]
            write_video(root / label / f"{k}.mp4", frames)
    return root


@pytest.fixture
def small_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--config mini` means a model that trains in no time, and few steps."""
    monkeypatch.setitem(CONFIGS, "mini", tiny_config(**SIZES))
    quick = PRESETS["mini"] | {"optim": PRESETS["mini"]["optim"] | {"min_steps": 0}}
    monkeypatch.setitem(PRESETS, "mini", quick)


@pytest.mark.usefixtures("small_mini")
def test_train_then_classify(pevl: Pevl, dataset: Path, tmp_path: Path) -> None:
    (dataset / "run_on" / "broken.mp4").write_bytes(b"")
    out = tmp_path / "out"
    done = pevl(
        *("train", "--dataset", dataset, "--no-pose", "--epochs", 2, "--batch-size", 3),
        *("--out", out, "--device", "cpu", "--seed", 1),
    )
    assert done.code == 0, done.err
    assert done.out == f"pevl classify VIDEO --checkpoint {out / 'best'}\n"
    told = " ".join(done.err.split())
    for part in ("held out", "left out", "broken.mp4", "validation top-1", "best epoch"):
        assert part in told, part
    assert "Traceback" not in done.err
    for name in ("best", "last"):
        facts = checkpoint.read_facts(out / name)
        assert facts.labels.names == ("run_back", "run_on")
        assert facts.labels.texts == ("run back", "run on")
        assert facts.training["val_clips"] in {2, 3}
        assert 1 <= facts.training["epochs_done"] <= 2
    answer = pevl(
        *("classify", dataset / "run_on" / "0.mp4", "--checkpoint", out / "best"),
        *("--no-pose", "--format", "json"),
    )
    assert answer.code == 0, answer.err
    (record,) = answer.records
    assert sorted(p["label"] for p in record["predictions"]) == ["run_back", "run_on"]
    assert 0 < sum(p["score"] for p in record["predictions"]) < 1 + 1e-5


@pytest.mark.usefixtures("small_mini")
def test_a_model_that_never_saw_poses_asks_for_none(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    """It was trained on the whole picture, and must be used so."""
    out = tmp_path / "out"
    trained = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 1, "--out", out)
    assert trained.code == 0, trained.err

    def never(*_: object) -> None:
        raise AssertionError("the detector was asked")

    monkeypatch.setattr(PoseDetector, "actor", never)
    film = dataset / "run_on" / "0.mp4"
    options = ["--checkpoint", out / "best", "--format", "json"]
    plain = pevl("classify", film, "--pose-weights", weights, *options)
    assert plain.code == 0
    assert plain.records == pevl("classify", film, "--no-pose", *options).records


@pytest.mark.usefixtures("small_mini")
def test_poses_are_learnt_from(pevl: Pevl, dataset: Path, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    done = pevl(
        *("train", "--dataset", dataset, "--no-video", "--pose-weights", weights),
        *("--epochs", 1, "--out", out),
    )
    assert done.code == 0, done.err
    config = checkpoint.read_facts(out / "best").model
    assert config.pose and not config.video
    film = dataset / "run_on" / "0.mp4"
    options = ["--checkpoint", out / "best", "--format", "json"]
    (record,) = pevl("classify", film, "--pose-weights", weights, *options).records
    assert record["person"]["frames_seen"] == 48
    refused = pevl("classify", film, "--no-pose", *options)
    assert refused.code in {1, 2} and "pose" in one_line(refused.err)


@pytest.mark.usefixtures("small_mini")
def test_the_same_seed_gives_the_same_weights(pevl: Pevl, dataset: Path, tmp_path: Path) -> None:
    def weights_of(name: str, seed: int) -> bytes:
        options = ["--no-pose", "--epochs", 1, "--batch-size", 2, "--seed", seed]
        done = pevl("train", "--dataset", dataset, *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
        return (tmp_path / name / "last" / "model.safetensors").read_bytes()

    first = weights_of("a", 5)
    assert weights_of("b", 5) == first
    assert weights_of("c", 6) != first


@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.usefixtures("small_mini")
def test_ctrl_c_leaves_usable_checkpoints(dataset: Path, tmp_path: Path, events: int) -> None:
    seen = 0

    def listener(event: training.Event) -> None:
        nonlocal seen
        seen += event.stage == "training"
        if seen == events:
            raise KeyboardInterrupt

    settings = load_settings(
        "mini",
        {
            "data.dataset": dataset,
            "model.pose": False,
            "model.crop": "full",
            "optim.epochs": 9,
            "optim.batch_size": 3,
            "optim.ema_decay": 0.9,
            "optim.min_steps": 0,
            "run.out": tmp_path / "out",
            "run.device": "cpu",
        },
    )
    result = training.train(settings, listener)
    assert result.interrupted and result.epochs == (events - 1) // 2
    for name in ("best", "last"):
        recogniser = recognise.load(tmp_path / "out" / name, use_pose=False, device="cpu")
        answer = recogniser.classify(dataset / "run_on" / "1.mp4")
        assert all(0 < p.score < 1 for p in answer.predictions)
        assert all(w.isfinite().all() for w in recogniser.model.state_dict().values())
        sample = recogniser.read(dataset / "run_on" / "1.mp4")
        assert recogniser.labels is not None
        found = recogniser.match([sample], recogniser.labels).values
        assert found[:, :1].isfinite().all()
        # What clips look like is of the very weights, or left out.
        assert (recogniser.familiarity is None) == (recogniser.model.prototypes is None)


@pytest.mark.usefixtures("small_mini")
def test_ctrl_c_on_the_command_line(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, event: training.Event) -> None:
        if event.stage == "training":
            raise KeyboardInterrupt

    monkeypatch.setattr(console.TrainingView, "show", stop)
    out = tmp_path / "out"
    done = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 3, "--out", out)
    assert "Traceback" not in done.err and "stopped" in done.err
    assert checkpoint.load(out / "best")[0].config.name == "mini"

    def stop_at_once(self: object, event: training.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console.TrainingView, "show", stop_at_once)
    done = pevl("train", "--dataset", dataset, "--no-pose", "--out", tmp_path / "none")
    assert done.code == 130 and "Traceback" not in done.err


@pytest.mark.usefixtures("small_mini")
def test_training_that_cannot_start_is_told_in_one_line(
    pevl: Pevl, dataset: Path, tmp_path: Path
) -> None:
    done = pevl("train", "--dataset", tmp_path / "gone", "--no-pose")
    assert done.code == 1 and "gone" in one_line(done.err)
    table = tmp_path / "clips.csv"
    table.write_text("path,label,split\nmoves/run_on/0.mp4,a,train\ngone.mp4,b,train\n")
    done = pevl("train", "--dataset", table, "--no-pose", "--out", tmp_path / "out")
    assert done.code == 1 and "fewer than two classes" in done.err and "gone.mp4" in done.err
    assert "Traceback" not in done.err and not list((tmp_path / "out").glob("*/config.json"))


@pytest.mark.usefixtures("small_mini")
def test_a_place_that_cannot_be_written_is_told_before_training(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file, not a folder")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained first")

    monkeypatch.setattr(training.Trainer, "fit", never)
    done = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 1, "--out", taken)
    assert done.code in {1, 2} and "Traceback" not in done.err
    assert str(taken) in done.err.splitlines()[-1]
    assert taken.read_text() == "a file, not a folder"


@pytest.mark.usefixtures("small_mini")
def test_a_dry_run_shows_what_would_be_done_and_does_nothing(
    pevl: Pevl, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--no-pose", "--out", out, "--dry-run", "--set", "optim.epochs=7")
    done = pevl("train", "--dataset", dataset, *options)
    assert done.code == 0, done.err
    told, _, table = done.out.partition("would train")
    settings = yaml.safe_load(told)
    assert settings["optim"]["epochs"] == 7 and settings["model"]["pose"] is False
    for part in ("6 to train, 2 to validate", "parameters", "steps", "memory", "GiB free"):
        assert part in " ".join(table.split()), part
    assert not out.exists()
    file = tmp_path / "again.yaml"
    file.write_text(told)
    again = pevl("train", "--config", file, "--dry-run")
    assert again.out.partition("would train")[0] == told, "what is printed can be given"


@pytest.mark.usefixtures("small_mini")
def test_resume_finds_the_run_and_its_settings(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    none = pevl("train", "--dataset", dataset, "--no-pose", "--resume")
    assert none.code == 1 and "no run to continue" in none.err.splitlines()[-1]
    first = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 2, "--batch-size", 3)
    assert first.code == 0, first.err
    folder = tmp_path / "runs" / "moves-mini"
    stored = (folder / "last" / "model.safetensors").read_bytes()
    for options in (["--dataset", dataset], ["--out", folder]):
        again = pevl("train", *options, "--resume")
        assert again.code == 0, again.err
        assert (folder / "last" / "model.safetensors").read_bytes() == stored
    other = pevl("train", "--out", folder, "--resume", "--batch-size", 2)
    assert other.code == 1 and "batch_size = 3, not 2" in other.err.splitlines()[-1]
    assert pevl("train", "--resume").code == 2


@pytest.mark.usefixtures("small_mini")
def test_a_label_file_gives_the_texts_to_train_with(
    pevl: Pevl, dataset: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("# prompt: a film of {text}\nrun_on\tgoing on\tforwards\nrun_back\tback\n")
    options = ("--no-pose", "--epochs", 1, "--out", tmp_path / "out", "--labels")
    done = pevl("train", "--dataset", dataset, *options, labels)
    assert done.code == 0, done.err
    stored = checkpoint.read_facts(tmp_path / "out" / "best").label_set
    assert stored.names == ("run_on", "run_back") and stored.others == (("forwards",), ())
    film = dataset / "run_on" / "0.mp4"
    answer = pevl("classify", film, "--checkpoint", tmp_path / "out" / "best", "--format", "json")
    assert 0 < sum(p["score"] for p in answer.records[0]["predictions"]) < 1 + 1e-5
    assert not any("never learnt" in w for w in answer.records[0]["warnings"])
    labels.write_text("run_on\nrun_off\n")
    refused = pevl("train", "--dataset", dataset, *options, labels)
    assert refused.code == 1
    assert "missing 'run_back'; without clips 'run_off'" in refused.err.splitlines()[-1]


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


def test_labels_that_a_model_from_scratch_never_read_are_warned_of(
    pevl: Pevl, make_video: MakeVideo, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("juggling\nknitting\n")
    options = ("--checkpoint", tiny_checkpoint, "--no-pose", "--format", "json")
    (other,) = pevl("classify", make_video(frames=5), *options, "--labels", labels).records
    assert any("never learnt 2 of the 2" in w and "juggling" in w for w in other["warnings"])
    (own,) = pevl("classify", make_video(frames=5), *options).records
    assert not any("never learnt" in w for w in own["warnings"])


def test_what_a_clip_looks_like_is_compared_with_the_labels_that_are_asked_for(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model, facts = checkpoint.load(tiny_checkpoint)
    model.prototypes = torch.eye(len(LABELS), model.config.embed_dim)
    likely = {"slope": 5.0, "offset": 0.0, "familiarity": (3.0, 0.5)}
    fitted = checkpoint.Calibration(temperature=1.0, **likely, split="val", clips=9)
    stored = facts.model_copy(update={"calibration": fitted})
    checkpoint.save(tmp_path / "familiar", model.state_dict(), stored)
    recogniser = recognise.load(tmp_path / "familiar", use_pose=False, device="cpu")
    first, second, *_ = LABELS.names
    looks_like_the_second = 0.9 * torch.eye(model.config.embed_dim)[1:2]
    similarities = torch.tensor([[[0.3, 0.1]]])

    def score(*names: str) -> float:
        found = Similarities(similarities, looks_like_the_second)
        sure = recogniser.scores(found, LabelSet(names, names))
        assert sure.shape == (1, 2)
        return float(sure[0, 0])

    def expected(familiar: float) -> float:
        return float(torch.sigmoid(torch.tensor(5.0 * 0.3 + 3.0 * (familiar - 0.5))))

    assert score(first, second) == score(second, first) == pytest.approx(expected(0.9), abs=1e-3)
    assert score(first, "juggling") == pytest.approx(expected(0.0), abs=1e-3)
    assert score("juggling", second) == pytest.approx(expected(0.5), abs=1e-3), "never learnt"


def test_none_of_these_is_said_where_no_score_reaches_the_threshold(
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
            said = pevl(*command, "--format", form).out
            assert ("none of these" in said if form == "table" else ",yes," in said) == none, said
        assert len(record["predictions"]) > 1, "what it would be is told all the same"
