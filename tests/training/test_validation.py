"""Prototypes and calibration, as training leaves them in checkpoints."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import J, S, tiny_config, tiny_model
from tiny_runs import FAST, SMALL, settings_of

from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import Item, read_manifest
from pevl_cli.data.samples import Sample, collate, view
from pevl_cli.errors import PevlError
from pevl_cli.matching import (
    encode_labels,
    match_samples,
    normalise_prototypes,
    sum_video_features,
)
from pevl_cli.model import checkpoint
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.train import train
from pevl_cli.training.trainer import Trainer


@pytest.mark.slow
def test_a_checkpoint_keeps_what_the_clips_of_each_label_look_like(
    moves: Path, tmp_path: Path
) -> None:
    settings = settings_of(moves, tmp_path / "run", optim__ema_decay=0.5)
    train(settings)
    manifest = read_manifest(moves)
    for name in ("best", "last"):
        model, facts = checkpoint.load(tmp_path / "run" / name)
        assert model.prototypes is not None and model.prototypes.shape == (3, SMALL["embed_dim"])
        assert facts.calibration is not None and facts.calibration.prototype is not None
        clips = Clips(manifest.in_split("train"), manifest.labels.names, model.config, None)
        seen = []
        for label in range(3):
            # As many as are validated: one of each.
            samples = [clips[i] for i in clips.draw_examples(1, 0) if clips.labels[i] == label]
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


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 1])
def test_what_clips_look_like_survives_a_pause(moves: Path, tmp_path: Path, patience: int) -> None:
    """Continued when nothing is left to do, the last checkpoint is written anew."""
    given = {"optim__patience": patience, "optim__epochs": 6, "optim__lr": 1e-6}
    settings = settings_of(moves, tmp_path / "run", **given)
    assert train(settings).stopped_early == bool(patience)
    before, facts = checkpoint.load(tmp_path / "run" / "last")
    train(settings, resume=True)
    after, again = checkpoint.load(tmp_path / "run" / "last")
    assert before.prototypes is not None and after.prototypes is not None
    assert torch.equal(before.prototypes, after.prototypes)
    assert facts.calibration == again.calibration


class RecordingClips(Clips):
    """Clips that say which process read them."""

    def read(self, item: Item) -> Sample:
        with Path(os.environ["READ_BY"]).open("a") as file:
            file.write(f"{item.path.name} {os.getpid()}\n")
        return super().read(item)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_processes_read_all_validations_and_prototypes(
    moves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    record = tmp_path / "read_by.txt"
    monkeypatch.setenv("READ_BY", str(record))
    manifest = read_manifest(moves)
    # What a frozen stem makes of a clip is kept; this stem is not frozen.
    settings = settings_of(moves, tmp_path / "run", data__workers=workers, **FAST)
    train_clips, val_clips = (
        RecordingClips(manifest.in_split(split), manifest.labels.names, settings.model, None, 0)
        for split in ("train", "val")
    )
    train_clips.items[0] = replace(train_clips.items[0], path=tmp_path / "gone.mp4")
    trainer = Trainer(PeVL(settings.model), manifest.labels, settings)
    pids = []
    for _ in range(2):
        validation = trainer.validator.test(trainer.tested_model, val_clips)
        assert validation is not None
        prototypes = trainer.validator.prototypes(trainer.tested_model, train_clips, 12, 0)
        assert prototypes.isfinite().all()
        lines = [line.split() for line in record.read_text().splitlines()]
        assert len(lines) == 3 + 11 + 1
        pids.append({pid for _, pid in lines})
        record.unlink()
    assert pids[0] == pids[1] and len(pids[0]) == max(workers, 1)
    assert (str(os.getpid()) in pids[0]) == (workers == 0)
    trainer.validator.close()
    for pid in pids[0] - {str(os.getpid())}:
        assert not psutil.pid_exists(int(pid)), "a loader process is left"
    model = trainer.tested_model
    texts = encode_labels(model, manifest.labels)
    samples = [val_clips[i] for i in range(3)]
    expected = match_samples(model, samples, texts, flip_at_test=True)
    assert torch.equal(validation.similarities.values, expected.values)


def test_clips_of_poses_alone_leave_no_prototype() -> None:
    joints = np.random.default_rng(0).random((S, J, 3)).astype(np.float32)
    sample = Sample(Path("a.pose"), None, joints, (48, 48), 48.0, 0.0, 0.0, S, 1, None, ())
    one = view(sample, tiny_config())
    summed = sum_video_features(tiny_model(), [(0, one), (2, one)], 3)
    assert (
        summed.shape == (3, tiny_config().embed_dim) and normalise_prototypes(summed).isnan().all()
    )
