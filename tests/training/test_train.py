"""What one call of training does: clips that are bad or few, and too little memory."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MOVES
from tiny import tiny_config
from tiny_runs import FAST, SMALL, StopError, settings_of

from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError
from pevl_cli.model.pevl import PeVL
from pevl_cli.training import train as training
from pevl_cli.training.settings import TrainSettings
from pevl_cli.training.train import train


def test_bad_clips_are_listed_and_left_out(moves: Path, tmp_path: Path) -> None:
    data = shutil.copytree(moves, tmp_path / "moves")
    (data / "stay" / "text.mp4").write_text("not a video")
    (data / "stay" / "empty.mp4").write_bytes(b"")
    result = train(settings_of(data, tmp_path / "run", optim__epochs=1))
    assert len(result.left_out) == 2
    with (tmp_path / "run" / "left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {"text.mp4", "empty.mp4"}
    assert all(row["label"] == "stay" and row["reason"] for row in rows)
    with pytest.raises(PevlError, match="2 of 17 clips cannot be read"):
        train(settings_of(data, tmp_path / "strict", data__strict=True))


def test_a_few_shots_of_each_class(moves: Path, tmp_path: Path) -> None:
    given = {"data__shots": 2, "optim__epochs": 1}
    result = train(settings_of(moves, tmp_path / "run", **given))
    assert result.train_clips == 6 and result.val_clips == 3
    manifest = read_manifest(moves)
    chosen = []
    for seed in (0, 0, 1, 2):
        clips = Clips(manifest.in_split("train"), manifest.labels.names, tiny_config(**SMALL), None)
        clips.keep_shots(2, seed)
        assert [clips.labels.count(c) for c in range(3)] == [2, 2, 2]
        chosen.append([item.path for item in clips.items])
    assert chosen[0] == chosen[1] and len({tuple(c) for c in chosen}) > 1


def test_too_little_gpu_memory_is_one_sentence(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PeVL, "encode", full)
    with pytest.raises(PevlError) as caught:
        train(settings_of(moves, tmp_path / "run"))
    for part in ("batch_size=2", "accumulate=2", "checkpointing=true", "--precision bf16"):
        assert part in str(caught.value)


def test_each_process_detects_on_its_own_gpu(
    moves: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the second of two; its loader processes inherit the detector."""
    fabric = SimpleNamespace(
        device=torch.device("cuda", 1),
        global_rank=1,
        world_size=2,
        launch=lambda: None,
        strategy=SimpleNamespace(launcher=None),
    )
    monkeypatch.setattr(training, "make_fabric", lambda settings: fabric)

    def check(settings: TrainSettings, source: training.SampleSource, *_: object) -> None:
        assert source.detector is not None
        raise StopError(source.detector.device)

    monkeypatch.setattr(training, "_check_clips", check)
    options = {"model__crop": "follow", "run__pose_weights": weights, **FAST}
    with pytest.raises(StopError, match="cuda:1"):
        train(settings_of(moves, tmp_path / "run", **options))


@pytest.mark.slow
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
    result = train(settings)
    assert [c.item.path.name for c in result.left_out] == ["none.mp4"]
    assert result.epochs == 4 and result.last is not None and result.last.count == 2
    decoded = train(settings_of(data, tmp_path / "decoded", data__check="decode"))
    assert len(decoded.left_out) == 3
