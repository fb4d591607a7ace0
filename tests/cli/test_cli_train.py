"""`pevl train` from arguments to checkpoints, on tiny clips and a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command import SIZES, Pevl, one_line
from conftest import picture, write_video
from tiny import tiny_config

from pevl_cli import recognise
from pevl_cli.cli.progress import TrainingView
from pevl_cli.cli.train import _summary
from pevl_cli.errors import PevlError
from pevl_cli.model import checkpoint
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.detector import PoseDetector
from pevl_cli.training import train as training
from pevl_cli.training.progress import Result
from pevl_cli.training.settings import PRESETS, load_settings


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


@pytest.mark.slow
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
    printed = " ".join(done.err.split())
    for part in ("held out", "left out", "broken.mp4", "validation top-1", "best epoch"):
        assert part in printed, part
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
    # Each label is judged alone once scores are calibrated: their sum may be above 1.
    assert all(0 <= p["score"] <= 1 for p in record["predictions"])


@pytest.mark.slow
@pytest.mark.usefixtures("small_mini")
def test_a_model_trained_without_poses_uses_no_detector(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    """It was trained on the whole picture, and must be used so."""
    out = tmp_path / "out"
    trained = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 1, "--out", out)
    assert trained.code == 0, trained.err

    def never(*_: object) -> None:
        raise AssertionError("the detector was used")

    monkeypatch.setattr(PoseDetector, "actor", never)
    film = dataset / "run_on" / "0.mp4"
    options = ["--checkpoint", out / "best", "--format", "json"]
    plain = pevl("classify", film, "--pose-weights", weights, *options)
    assert plain.code == 0
    assert plain.records == pevl("classify", film, "--no-pose", *options).records


@pytest.mark.slow
@pytest.mark.usefixtures("small_mini")
def test_poses_are_trained_on(pevl: Pevl, dataset: Path, tmp_path: Path, weights: Path) -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        similarities = recogniser.match([sample], recogniser.labels).values
        assert similarities[:, :1].isfinite().all()
        # Prototypes are of the stored weights, or left out.
        assert (recogniser.calibration.prototype is None) == (recogniser.model.prototypes is None)


@pytest.mark.slow
@pytest.mark.usefixtures("small_mini")
def test_ctrl_c_on_the_command_line(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, event: training.Event) -> None:
        if event.stage == "training":
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingView, "show", stop)
    out = tmp_path / "out"
    done = pevl("train", "--dataset", dataset, "--no-pose", "--epochs", 3, "--out", out)
    assert "Traceback" not in done.err and "interrupted" in done.err
    assert checkpoint.load(out / "best")[0].config.name == "mini"

    def stop_at_once(self: object, event: training.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingView, "show", stop_at_once)
    done = pevl("train", "--dataset", dataset, "--no-pose", "--out", tmp_path / "none")
    assert done.code == 130 and "Traceback" not in done.err


@pytest.mark.usefixtures("small_mini")
def test_training_that_cannot_start_gives_one_line(
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
def test_a_folder_that_cannot_be_written_is_reported_before_training(
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
    printed, _, table = done.out.partition("would train")
    settings = yaml.safe_load(printed)
    assert settings["optim"]["epochs"] == 7 and settings["model"]["pose"] is False
    parts = ("6 to train, 2 to validate", "parameters", "steps", "memory", "GiB free")
    for part in (*parts, "first epoch │ about", "decoding", "step", "random weights"):
        assert part in " ".join(table.split()), part
    assert not out.exists()
    file = tmp_path / "again.yaml"
    file.write_text(printed)
    again = pevl("train", "--config", file, "--dry-run")
    assert again.out.partition("would train")[0] == printed, "the printed settings can be given"


@pytest.mark.usefixtures("small_mini")
def test_of_several_processes_only_the_first_shows_the_plan(
    pevl: Pevl, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    done = pevl("train", "--dataset", dataset, "--no-pose", "--dry-run")
    assert (done.code, done.out) == (0, "")


def test_resume_of_a_run_by_an_older_version_is_one_sentence(tmp_path: Path, pevl: Pevl) -> None:
    """And not the first of its options that has another name now."""
    file = tmp_path / "settings.yaml"
    file.write_text("model: {name: mini, both_ways: true}\ndata: {dataset: clips}\n")
    (tmp_path / "state.pt").write_bytes(b"")
    again = pevl("train", "--out", tmp_path, "--resume")
    assert again.code == 1
    message = one_line(again.err)
    assert f"{file}: written by another version of pevl" in message
    assert "without --resume" in message


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert all(0 <= p["score"] <= 1 for p in answer.records[0]["predictions"])
    assert not any("not trained on" in w for w in answer.records[0]["warnings"])
    labels.write_text("run_on\nrun_off\n")
    refused = pevl("train", "--dataset", dataset, *options, labels)
    assert refused.code == 1
    assert "missing 'run_back'; without clips 'run_off'" in refused.err.splitlines()[-1]


@pytest.mark.usefixtures("small_mini")
def test_an_earlier_run_is_not_replaced_without_a_word(
    pevl: Pevl, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise PevlError("stopped.")

    monkeypatch.setattr(training, "train", stop)
    out = tmp_path / "out"
    line = ("train", "--dataset", dataset, "--no-pose", "--out", out, "--device", "cpu")
    assert "earlier run" not in pevl(*line).err
    out.mkdir()
    (out / "state.pt").write_bytes(b"")
    printed = " ".join(pevl(*line).err.split())
    assert "the earlier run in this folder is replaced" in printed and "--resume" in printed
    assert "earlier run" not in pevl(*line, "--dry-run").err, "a dry run replaces nothing"


def test_nothing_is_said_of_clips_that_were_not_reached() -> None:
    """Ctrl-C in the first epoch said that there were no validation clips."""
    result = Result(
        *(Path("run"), 12, 3, 0, 0, None, None),
        seconds=5.0,
        wait=0.0,
        interrupted=True,
        stopped_early=False,
    )
    (line,) = _summary(result)
    assert "first epoch" in line and "--resume" in line
