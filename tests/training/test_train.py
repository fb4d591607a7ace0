"""Training as users run it: killed, continued, shared among processes, on clips that are bad."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import child_environment, picture, write_video
from safetensors.torch import load_file, save_file
from tiny import LABELS, ON_CLIP, J, S, stir, tiny_batch, tiny_config, tiny_model

from pevl_cli.cache import cache_folder
from pevl_cli.data import clips as clips_module
from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.batches import AugmentedClips, BatchPlan, Showing
from pevl_cli.data.clips import Clips, trim_cache
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.samples import Sample, collate, view
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.labels import LabelSet
from pevl_cli.matching import encode_labels, prototypes, sum_video_features
from pevl_cli.metrics import Accuracy
from pevl_cli.model import checkpoint
from pevl_cli.model.calibration import Fitted
from pevl_cli.model.config import CONFIGS
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.pose.detector import pose_network_layers
from pevl_cli.training import run_folder as run
from pevl_cli.training import train as training
from pevl_cli.training.plan import activation_bytes, make_plan
from pevl_cli.training.settings import TrainSettings, load_settings
from pevl_cli.weights import BUNDLED_WEIGHTS

MOVES = {"run_on": 1, "run_back": -1, "stay": 0}
# A model that trains in no time, with what is random in a real one: dropout, batch statistics.
SMALL: dict[str, Any] = {
    "width": 32,
    "embed_dim": 16,
    "image_size": 32,
    "text_width": 16,
    "vocab_size": 300,
    "pose": False,
    "crop": "full",
}


@pytest.fixture(scope="module")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five clips: a square that runs forwards, back, or stays."""
    root = tmp_path_factory.mktemp("data") / "moves"
    for label, way in MOVES.items():
        (root / label).mkdir(parents=True)
        for k in range(5):
            frames = [picture(100 + way * 3 * i + 7 * k) for i in range(16)]
            write_video(root / label / f"{k}.mp4", frames)
    return root


def settings_of(dataset: Path, out: Path, **given: Any) -> TrainSettings:
    said = {
        "data.dataset": dataset,
        "run.out": out,
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.tracker": "none",
        "optim.batch_size": 4,
        "optim.epochs": 4,
        "optim.min_steps": 12,
        **{f"model.{k}": v for k, v in SMALL.items()},
        **{k.replace("__", "."): v for k, v in given.items()},
    }
    return load_settings("mini", said)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["model"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- nothing is lost ------------------------------------------------------------------------------


def command(settings: TrainSettings, folder: Path, *more: str) -> list[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    options = ["train", "--config", str(file), "--out", str(folder), *more]
    return [sys.executable, "-m", "pevl_cli", *options]


def call(line: list[str]) -> subprocess.CompletedProcess[str]:
    environment = child_environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)


def test_a_killed_run_that_is_continued_ends_as_if_nothing_had_happened(
    moves: Path, tmp_path: Path
) -> None:
    """A real process, killed at a moment of no one's choosing."""
    settings = settings_of(moves, tmp_path, run__save_minutes=0, optim__epochs=10)
    whole = call(command(settings, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    line = command(settings, folder)
    process = subprocess.Popen(
        line,
        env=child_environment() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = time.monotonic()
    while not (folder / "state.older.pt").exists() and time.monotonic() - started < 120:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = run.load_state(folder)["steps"]
    assert 0 < done < 20, "killed on the way"
    resumed = call([*line, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert same(weights(tmp_path / "whole"), weights(folder))
    for name in ("best", "last"):
        file = Path(name) / "model.safetensors"
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), name


class _StopError(Exception):
    pass


def stop_after(steps: int) -> Callable[[training.Event], None]:
    def listener(event: training.Event) -> None:
        if event.stage == "training" and event.done == steps + 1:
            raise _StopError

    return listener


@pytest.mark.parametrize("accumulate", [1, 2])
def test_continued_within_an_epoch(moves: Path, tmp_path: Path, accumulate: int) -> None:
    given = {"run__save_minutes": 0, "optim__accumulate": accumulate, "optim__batch_size": 2}
    training.train(settings_of(moves, tmp_path / "whole", **given))
    settings = settings_of(moves, tmp_path / "cut", **given)
    with pytest.raises(_StopError):
        training.train(settings, stop_after(5))
    result = training.train(settings, resume=True)
    assert result.epochs == 4
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_damaged_state_gives_way_to_the_older_one(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run")
    training.train(settings)
    wanted = weights(tmp_path / "run")
    file = tmp_path / "run" / "state.pt"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="damaged"):
        training.train(settings, resume=True)
    assert same(weights(tmp_path / "run"), wanted), "the last epoch was done again"
    for name in ("state.pt", "state.older.pt"):
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.warns(UserWarning), pytest.raises(PevlError, match="no state of the run"):
        training.train(settings, resume=True)


def test_a_run_is_continued_with_its_own_settings(moves: Path, tmp_path: Path) -> None:
    training.train(settings_of(moves, tmp_path / "run", optim__epochs=1))
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "0.mp4").unlink()
    fewer = settings_of(data, tmp_path / "run", optim__epochs=1)
    with pytest.raises(PevlError, match=r"data.dataset = .*, not"):
        training.train(fewer, resume=True)
    with pytest.raises(PevlError, match=r"the training clips .* changed"):
        given = settings_of(moves, tmp_path / "run", optim__epochs=1)
        training.train(given, resume=True, manifest=read_manifest(data))
    stored = (tmp_path / "run" / "settings.yaml").read_text()
    other = settings_of(moves, tmp_path / "run", optim__epochs=1, optim__lr=0.5)
    with pytest.raises(PevlError, match=r"optim.lr = 0.001, not 0.5"):
        training.train(other, resume=True)
    assert (tmp_path / "run" / "settings.yaml").read_text() == stored
    with pytest.raises(PevlError, match="no run to continue"):
        training.train(settings_of(moves, tmp_path / "none"), resume=True)


def test_a_new_run_in_the_folder_of_an_old_one(moves: Path, tmp_path: Path) -> None:
    """It is not taken for a part of it, and the old one can still be had back."""
    settings = settings_of(moves, tmp_path / "run", optim__epochs=1)
    training.train(settings)
    old = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(_StopError):
        training.train(settings_of(moves, tmp_path / "run", run__seed=4), stop_after(0))
    assert (tmp_path / "run" / "state.replaced.pt").read_bytes() == old
    assert run.load_state(tmp_path / "run")["steps"] == 0, "the new one's"
    result = training.train(settings_of(moves, tmp_path / "run", run__seed=4), resume=True)
    training.train(settings_of(moves, tmp_path / "whole", run__seed=4))
    assert result.epochs == 4 and same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_is_told_and_costs_nothing_saved(moves: Path, tmp_path: Path) -> None:
    """No file may grow to the size of the state, and an earlier run lies in the folder."""
    # Without layers that a checkpoint keeps and a state does not.
    stem = {"model__stem": "conv3d", "model__patch_size": 16}
    settings = settings_of(moves, tmp_path, optim__epochs=2, **stem)
    folder = tmp_path / "run"
    assert call(command(settings, folder)).returncode == 0
    kept = (folder / "state.pt").read_bytes()
    limit = (folder / "state.pt").stat().st_size // 2
    line = command(settings_of(moves, tmp_path, optim__epochs=2, **stem), folder)
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv = {['pevl', *line[3:]]!r}\n"
        "from pevl_cli.cli.app import main\nmain()\n"
    )
    done = call([sys.executable, "-c", script])
    assert done.returncode == 1, done.stderr
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith("error:") and "state.pt" in told and "Traceback" not in done.stderr
    assert (folder / "state.replaced.pt").read_bytes() == kept
    assert not list(folder.glob(".*.tmp"))
    assert run.load_state(folder)["steps"] == 0, "the first, small one can be continued"


# -- several processes ----------------------------------------------------------------------------


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    """Loss and gradients of one step over the same eight clips, by gloo."""
    script = Path(__file__).with_name("two_processes.py")
    found = []
    for processes in (1, 2):
        target = tmp_path / f"{processes}.pt"
        done = call([sys.executable, str(script), str(processes), str(target)])
        assert done.returncode == 0, done.stderr
        found.append(torch.load(target, weights_only=True))
    one, two = found
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["hits"] == one["hits"] == (one["hits"][0], 8)
    assert one["gradients"].keys() == two["gradients"].keys() and len(one["gradients"]) > 40
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)
    assert max(g.abs().max() for g in one["gradients"].values()) > 1e-2


def test_two_processes_train_and_validate_together(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path, optim__epochs=1, run__processes=2)
    done = call(command(settings, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pevl classify") == 1, "one of them tells"
    facts = checkpoint.read_facts(tmp_path / "run" / "best")
    assert facts.training["val_clips"] == 3 and facts.training["val_top1"] in {0, 0.3333, 0.6667, 1}
    # Each looked at its share of the clips.
    model, _ = checkpoint.load(tmp_path / "run" / "best")
    clips = Clips(read_manifest(moves).of("train"), facts.labels.names, model.config, None)
    assert model.prototypes is not None
    expected = prototypes(sum_video_features(model, clips.examples(1, 0), 3))
    torch.testing.assert_close(model.prototypes, expected, atol=2e-2, rtol=0)


def test_coordinates_are_not_rounded_where_half_is_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(**ON_CLIP)
    given = {"run.precision": "bf16", "run.tracker": "none", "run.device": "cpu"}
    settings = load_settings(None, given | {"data.dataset": tmp_path}, base=model.config)
    trainer = training.Trainer(model, LabelSet(LABELS, LABELS), settings)
    seen = []
    encode = PeVL.encode

    def spy(self: PeVL, batch: Batch) -> object:
        seen.append(batch.joints)
        return encode(self, batch)

    monkeypatch.setattr(PeVL, "encode", spy)
    batch = tiny_batch(4)
    order = BatchPlan([0, 1, 2, 0], 4, 1, 1, 0.0, 0)
    trainer._step(iter([batch]), order, 1, 0)
    assert batch.joints is not None and torch.equal(seen[0], batch.joints)


def test_frozen_weights_are_held_in_half_where_half_is_computed_with(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        model = tiny_model(**ON_CLIP)
        given = {"run.precision": precision, "run.tracker": "none", "run.device": "cpu"}
        given |= {"data.dataset": tmp_path, "optim.batch_size": 3, "optim.lr": 0.1}
        settings = load_settings("mini", given, base=model.config)
        trainer = training.Trainer(model, LabelSet(LABELS, LABELS), settings)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        order = BatchPlan([0, 1, 2], 3, 1, 1, 0.0, 0)
        losses[precision], _, _ = trainer._step(iter([tiny_batch(3)]), order, 1, 0)
        for name, p in model.named_parameters():
            half = precision == "bf16" and not p.requires_grad and p.ndim > 1
            assert p.dtype == (torch.bfloat16 if half else torch.float32), name
            assert torch.equal(p, before[name]) != p.requires_grad, name
        held = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}
        texts = trainer._as_trained()
        with texts, torch.inference_mode():
            assert model(tiny_batch(3), model.encode_text(LABELS)).isfinite().all()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


# -- clips ----------------------------------------------------------------------------------------


def test_bad_clips_are_listed_and_left_out(moves: Path, tmp_path: Path) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")
    (data / "stay" / "empty.mp4").write_bytes(b"")
    result = training.train(settings_of(data, tmp_path / "run", optim__epochs=1))
    assert len(result.left_out) == 2
    with (tmp_path / "run" / "left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {"text.mp4", "empty.mp4"}
    assert all(row["label"] == "stay" and row["reason"] for row in rows)
    with pytest.raises(PevlError, match="2 of 17 clips cannot be read"):
        training.train(settings_of(data, tmp_path / "strict", data__strict=True))


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


def test_a_clip_that_vanishes_is_replaced_by_another_of_its_class(
    moves: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    manifest = read_manifest(data)
    clips = Clips(manifest.items, manifest.labels.names, tiny_config(**SMALL), None)
    shown = AugmentedClips(clips, Augmentation(), 0)
    gone = clips.labels.index(1)
    clips.items[gone].path.unlink()
    assert shown[Showing(1, 0, gone)].frames is not None
    for item in clips.items:
        if item.label == clips.items[gone].label:
            item.path.unlink(missing_ok=True)
    with pytest.raises(PevlError, match=str(clips.items[gone].path.name)):
        shown[Showing(1, 0, gone)]


def test_the_order_is_a_function_of_the_seed() -> None:
    labels = [0] * 30 + [1] * 6
    whole = list(BatchPlan(labels, 4, 5, 3, 0.5, seed=1))
    assert len(whole) == 15 and all(len(batch) == 4 for batch in whole)
    assert list(BatchPlan(labels, 4, 5, 3, 0.5, seed=2)) != whole
    late = BatchPlan(labels, 4, 5, 3, 0.5, seed=1)
    late.start = 7
    assert list(late) == whole[7:] and len(late) == 8
    halves = []
    for rank in (0, 1):
        order = BatchPlan(labels, 4, 5, 3, 0.5, seed=1)
        order.rank, order.world = rank, 2
        halves.append(list(order))
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_a_balanced_order_shows_rare_classes_more_often() -> None:
    labels = [0] * 90 + [1] * 10
    shares = []
    for balance in (0.0, 0.5, 1.0):
        order = BatchPlan(labels, 10, 3, 40, balance, seed=0)
        shown = [labels[place.clip] for batch in order for place in batch]
        shares.append(np.mean(shown))
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[0] < shares[1] < shares[2]


def test_an_epoch_longer_than_the_set_shows_every_clip_before_one_twice() -> None:
    order = BatchPlan([0, 0, 1], 4, 2, 1, 1.0, seed=0)
    shown = [place.clip for batch in order for place in batch]
    for start in (0, 3):
        assert sorted(shown[start : start + 3]) == [0, 1, 2]


def test_loader_processes_change_nothing(moves: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        given = {"data__workers": workers, "optim__epochs": 2, "optim__min_steps": 4}
        training.train(settings_of(moves, tmp_path / str(workers), **given))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


# -- few clips, other labels ----------------------------------------------------------------------


def test_a_few_shots_of_each_class(moves: Path, tmp_path: Path) -> None:
    given = {"data__shots": 2, "optim__epochs": 1}
    result = training.train(settings_of(moves, tmp_path / "run", **given))
    assert result.train_clips == 6 and result.val_clips == 3
    manifest = read_manifest(moves)
    chosen = []
    for seed in (0, 0, 1, 2):
        clips = Clips(manifest.of("train"), manifest.labels.names, tiny_config(**SMALL), None)
        clips.keep_shots(2, seed)
        assert [clips.labels.count(c) for c in range(3)] == [2, 2, 2]
        chosen.append([item.path for item in clips.items])
    assert chosen[0] == chosen[1] and len({tuple(c) for c in chosen}) > 1


def test_starting_from_a_checkpoint_with_other_labels(moves: Path, tmp_path: Path) -> None:
    training.train(settings_of(moves, tmp_path / "first"))
    data = shutil.copytree(moves, tmp_path / "other")
    (data / "stay").rename(data / "rest")
    given = {
        "data.dataset": data,
        "init": str(tmp_path / "first" / "best"),
        "run.out": tmp_path / "second",
        "run.device": "cpu",
        "optim.epochs": 1,
        "optim.min_steps": 1,
        "optim.batch_size": 4,
        "optim.lr": 1e-9,
        "optim.ema_decay": 0.0,
    }
    settings = training.settings_for("mini", given)
    assert settings.model.width == SMALL["width"], "the checkpoint's model"
    training.train(settings)
    old, _ = checkpoint.load(tmp_path / "first" / "best")
    new, facts = checkpoint.load(tmp_path / "second" / "last")
    assert facts.labels.names == ("rest", "run_back", "run_on")
    assert facts.training["init"] == given["init"]
    for (name, a), b in zip(old.named_parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-2, msg=name)
    with pytest.raises(UsageError, match="of config 'mini', not 'vit-b-16'"):
        training.settings_for("vit-b-16", given)
    other = training.settings_for(None, given, ["model.width=64", "model.heads=4"])
    with pytest.raises(PevlError, match="another size"):
        training.train(other)


def test_a_checkpoint_keeps_what_the_clips_of_each_label_look_like(
    moves: Path, tmp_path: Path
) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__ema_decay=0.5)
    training.train(settings)
    manifest = read_manifest(moves)
    for name in ("best", "last"):
        model, facts = checkpoint.load(tmp_path / "run" / name)
        assert model.prototypes is not None and model.prototypes.shape == (3, SMALL["embed_dim"])
        assert facts.calibration is not None and facts.calibration.familiarity is not None
        clips = Clips(manifest.of("train"), manifest.labels.names, model.config, None)
        seen = []
        for label in range(3):
            # As many as are validated: one of each.
            samples = [sample for c, sample in clips.examples(1, 0) if c == label]
            with torch.inference_mode():
                features = model.encode(collate([view(s, model.config) for s in samples]))
            assert features.video is not None and len(samples) == 1
            seen.append(torch.nn.functional.normalize(features.video.mean(0), dim=0))
        # Weights and these are kept in half precision.
        torch.testing.assert_close(model.prototypes, torch.stack(seen), atol=2e-2, rtol=0)
    file = tmp_path / "run" / "last" / "model.safetensors"
    state = load_file(file)
    save_file(state | {"prototypes": state["prototypes"][:2].clone()}, file)
    with pytest.raises(PevlError, match="differently shaped weight 'prototypes'"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize("patience", [0, 1])
def test_what_clips_look_like_survives_a_pause(moves: Path, tmp_path: Path, patience: int) -> None:
    """Continued when nothing is left to do, the last checkpoint is written anew."""
    given = {"optim__patience": patience, "optim__epochs": 6, "optim__lr": 1e-6}
    settings = settings_of(moves, tmp_path / "run", **given)
    assert training.train(settings).stopped_early == bool(patience)
    before, facts = checkpoint.load(tmp_path / "run" / "last")
    training.train(settings, resume=True)
    after, again = checkpoint.load(tmp_path / "run" / "last")
    assert before.prototypes is not None and after.prototypes is not None
    assert torch.equal(before.prototypes, after.prototypes)
    assert facts.calibration == again.calibration


def test_clips_of_poses_alone_leave_no_prototype() -> None:
    joints = np.random.default_rng(0).random((S, J, 3)).astype(np.float32)
    sample = Sample(Path("a.pose"), None, joints, (48, 48), 48.0, 0.0, 0.0, S, 1, None, ())
    summed = sum_video_features(tiny_model(), [(0, sample), (2, sample)], 3)
    assert summed.shape == (3, tiny_config().embed_dim) and prototypes(summed).isnan().all()


def test_fixed_classes_are_learnt_anew(moves: Path, tmp_path: Path) -> None:
    given = {"model__text": False, "model__similarities": ["vs"], "model__classes": 3}
    training.train(settings_of(moves, tmp_path / "first", optim__epochs=1, **given))
    model, _ = checkpoint.load(tmp_path / "first" / "best")
    assert model.class_vectors.shape[0] == 3


def test_early_stopping(moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third check is the best; it stops two epochs later, and again when continued."""
    values = iter([0.1, 0.2, 0.9, 0.3, 0.9, 0.5, 0.6, 0.7])  # as good is not better
    given = {"optim__patience": 2, "optim__epochs": 90, "optim__min_steps": 90}
    settings = settings_of(moves, tmp_path / "run", **given)

    def test(*_: object) -> Accuracy:
        value = next(values)
        return Accuracy(value, 1.0, value, 3, {}, [], Fitted(0.1, 0.9, 9.0, -4.0, 0.2))

    monkeypatch.setattr(training.Trainer, "test", test)
    result = training.train(settings)
    assert (result.stopped_early, result.best_epoch, result.epochs) == (True, 5, 5)
    again = training.train(settings, resume=True)
    assert (again.stopped_early, again.best_epoch, again.epochs) == (True, 5, 5)
    assert again.best is not None and again.best.top1 == 0.9


def test_patience_needs_something_to_judge_by(moves: Path, tmp_path: Path) -> None:
    manifest = read_manifest(moves)
    all_train = replace(
        manifest, items=tuple(replace(item, split="train") for item in manifest.items)
    )
    settings = settings_of(moves, tmp_path / "run", optim__patience=1)
    with pytest.raises(PevlError, match="patience needs validation clips"):
        training.train(settings, manifest=all_train)
    result = training.train(settings_of(moves, tmp_path / "run"), manifest=all_train)
    assert result.best is None and result.train_clips == 15
    assert checkpoint.load(tmp_path / "run" / "best")


def test_one_phrasing_is_drawn_and_all_are_averaged(moves: Path, tmp_path: Path) -> None:
    lines = ["path,label,text"]
    for label in MOVES:
        lines += [f"{moves / label / f'{k}.mp4'},{label},{label} | so {label}" for k in range(5)]
    table = tmp_path / "moves.csv"
    table.write_text("\n".join(lines))
    seen: set[str] = set()
    encode = PeVL.encode_text

    def spy(self: PeVL, prompts: list[str]) -> object:
        if self.training:
            assert len(prompts) <= 3
            seen.update(prompts)
        return encode(self, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeVL, "encode_text", spy)
        training.train(settings_of(table, tmp_path / "run"))
    assert len(seen) == 6, "both phrasings of each"
    model, facts = checkpoint.load(tmp_path / "run" / "best")
    assert facts.labels.others == (("so run_on",), ("so run_back",), ("so stay",))
    texts = encode_labels(model, facts.label_set)
    assert texts.label is not None and texts.label.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_learning_rate_rises_and_falls(moves: Path, tmp_path: Path) -> None:
    rates: list[float] = []

    def listener(event: training.Event) -> None:
        if event.learning_rate is not None:
            rates.append(event.learning_rate)

    given = {"optim__epochs": 10, "optim__min_steps": 40, "optim__warmup_epochs": 2}
    training.train(settings_of(moves, tmp_path / "run", **given), listener)
    assert len(rates) == 40
    assert rates[:8] == sorted(rates[:8]) and rates[7] == pytest.approx(1e-3)
    assert rates[8:] == sorted(rates[8:], reverse=True) and rates[-1] == pytest.approx(0, abs=1e-9)


# -- what a run leaves behind ---------------------------------------------------------------------


def test_a_run_says_how_it_was_made(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__epochs=1, run__tracker="csv")
    training.train(settings)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"] == settings.model_dump(mode="json")
    assert {"torch", "pevl", "python", "lightning_fabric", "git", "data_hash", "seed"} <= set(about)
    assert load_settings(tmp_path / "run" / "settings.yaml") == settings
    (metrics,) = (tmp_path / "run" / "log").glob("*/metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/loss"] for row in rows) and any(row["val/top1"] for row in rows)
    manifest = read_manifest(moves)
    assert run.data_hash(manifest) == about["data_hash"]
    assert run.data_hash(read_manifest(moves, seed=1)) != about["data_hash"]


def test_tensorboard_gets_the_curves(moves: Path, tmp_path: Path) -> None:
    given = {"optim__epochs": 1, "run__tracker": "tensorboard"}
    training.train(settings_of(moves, tmp_path / "run", **given))
    (events,) = (tmp_path / "run" / "log").glob("*/events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"val/top1" in events.read_bytes()


def test_a_tracker_that_is_not_installed(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(PevlError, match="pip install lightning wandb"):
        training.train(settings_of(moves, tmp_path / "run", run__tracker="wandb"))


def test_too_little_gpu_memory_is_one_sentence(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PeVL, "encode", full)
    with pytest.raises(PevlError) as told:
        training.train(settings_of(moves, tmp_path / "run"))
    for part in ("batch_size=2", "accumulate=2", "checkpointing=true", "--precision bf16"):
        assert part in str(told.value)


# -- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_activations_is_what_autograd_keeps(checkpointing: bool) -> None:
    config = tiny_config()
    model = tiny_model().train()
    stir(model)
    model.checkpointing = checkpointing
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    batch = tiny_batch(5)
    assert batch.frames is not None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = model.encode(batch)
    real = sum(size for size, _ in kept.values())
    guess = activation_bytes(config, 5, checkpointing)
    assert guess == pytest.approx(real, rel=0.1)


def test_the_paper_s_model_fits_a_32_gb_card_with_a_batch_of_8() -> None:
    config = CONFIGS["vit-b-16"]
    whole, less = activation_bytes(config, 8), activation_bytes(config, 8, checkpointing=True)
    assert 10e9 < whole < 30e9 and less < whole / 5


def test_a_plan_counts_steps_and_bytes(moves: Path, tmp_path: Path) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__epochs=5, optim__min_steps=12)
    plan = make_plan(settings, read_manifest(moves))
    assert (plan.train_clips, plan.val_clips, plan.classes, plan.steps) == (12, 3, 3, 15)
    training.train(settings)
    state = sum((tmp_path / "run" / n).stat().st_size for n in ("state.pt", "state.older.pt"))
    assert plan.state_bytes == pytest.approx(state, rel=0.2)
    stored = sum(f.stat().st_size for f in (tmp_path / "run").glob("*/model.safetensors"))
    assert plan.checkpoint_bytes == pytest.approx(stored, rel=0.2)
    assert plan.parameters == sum(p.numel() for p in PeVL(settings.model).parameters())


# -- large sets -----------------------------------------------------------------------------------


def test_files_that_are_only_opened_may_be_damaged_inside(moves: Path, tmp_path: Path) -> None:
    """Training goes on with another clip of the class, validation without the clip."""
    data = tmp_path / "moves"
    for split, source in (("train", "0123"), ("val", "4")):
        for label in MOVES:
            (data / split / label).mkdir(parents=True)
            for k in source:
                shutil.copy(moves / label / f"{k}.mp4", data / split / label)
    for split, k in (("train", 1), ("val", 4)):
        file = data / split / "stay" / f"{k}.mp4"
        content = bytearray(file.read_bytes())
        begin = content.index(b"mdat") + 4
        content[begin : content.index(b"moov")] = bytes(content.index(b"moov") - begin)
        file.write_bytes(bytes(content))
    (data / "train" / "stay" / "none.mp4").write_bytes(b"no video")
    settings = settings_of(data, tmp_path / "run", data__check="open")
    result = training.train(settings)
    assert [c.item.path.name for c in result.left_out] == ["none.mp4"]
    assert result.epochs == 4 and result.last is not None and result.last.count == 2
    decoded = training.train(settings_of(data, tmp_path / "decoded", data__check="decode"))
    assert len(decoded.left_out) == 3


def test_video_can_be_added_to_what_was_learnt_from_poses(moves: Path, tmp_path: Path) -> None:
    alone = settings_of(moves, tmp_path / "run", model__video=False, model__pose=True)
    labels = LabelSet(("a", "b"), ("one way", "another"))
    learnt, _ = training.make_model(alone, labels)
    stir(learnt)
    source = tmp_path / "poses"
    facts = checkpoint.facts_of(learnt.config, labels, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    both = settings_of(
        *(moves, tmp_path / "both"), init=str(source), model__pose=True, model__pose_layers=0
    )
    model, _ = training.make_model(both, labels)
    before, state = learnt.state_dict(), model.state_dict()
    added = {name.partition(".")[0] for name in state.keys() - before.keys()}
    assert added == {"video_adapters", "p2v", "v2p", "visual"}
    towers = {name.split(".")[1] for name in state.keys() - before.keys() if "visual." in name}
    assert towers == {"conv1", "body"}
    kept = state.keys() & before.keys()
    assert any(name.startswith("pose_embedding.") for name in kept)
    for name in kept:
        torch.testing.assert_close(state[name], before[name], msg=name)


def test_another_stem_starts_from_nothing_and_the_rest_is_kept(moves: Path, tmp_path: Path) -> None:
    old_stem = {"model__stem": "conv3d", "model__patch_size": 16}
    labels = LabelSet(("a", "b"), ("one way", "another"))
    learnt, _ = training.make_model(settings_of(moves, tmp_path / "run", **old_stem), labels)
    source = tmp_path / "before"
    facts = checkpoint.facts_of(learnt.config, labels, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    new_stem = {"model__stem": "pose", "model__patch_size": 32, "model__image_size": 64}
    settings = settings_of(moves, tmp_path / "new", init=str(source), **new_stem)
    model, _ = training.make_model(settings, labels)
    before, state = learnt.state_dict(), model.state_dict()
    network = pose_network_layers(BUNDLED_WEIGHTS).state_dict()
    for name, value in state.items():
        inside = name.removeprefix("visual.conv1.layers.")
        if inside != name:
            torch.testing.assert_close(value, network[inside], msg=name)
        elif not name.startswith("visual.conv1."):
            torch.testing.assert_close(value, before[name], msg=name)


def test_a_body_token_can_be_added_to_what_was_learnt_without(moves: Path, tmp_path: Path) -> None:
    labels = LabelSet(("a", "b"), ("one way", "another"))
    patches = {"model__class_token": "patches"}
    learnt, _ = training.make_model(settings_of(moves, tmp_path / "run", **patches), labels)
    source = tmp_path / "before"
    facts = checkpoint.facts_of(learnt.config, labels, None, {}, None)
    checkpoint.save(source, learnt.half().float().state_dict(), facts)
    body = {"model__class_token": "body", "model__pose": True}
    settings = settings_of(moves, tmp_path / "new", init=str(source), **body)
    model, _ = training.make_model(settings, labels)
    added = model.state_dict().keys() - learnt.state_dict().keys()
    assert any(name.startswith("visual.body.") for name in added)
    for name in model.state_dict().keys() - added:
        torch.testing.assert_close(model.state_dict()[name], learnt.state_dict()[name], msg=name)
