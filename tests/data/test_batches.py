"""Which clips an epoch shows, and in which order."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config
from tiny_runs import SMALL

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.batches import AugmentedClips, BatchPlan, Showing
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.errors import PevlError


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


def test_the_plan_is_a_function_of_the_seed() -> None:
    labels = [0] * 30 + [1] * 6
    whole = list(BatchPlan(labels, 4, 5, 3, 0.5, seed=1))
    assert len(whole) == 15 and all(len(batch) == 4 for batch in whole)
    assert list(BatchPlan(labels, 4, 5, 3, 0.5, seed=2)) != whole
    late = BatchPlan(labels, 4, 5, 3, 0.5, seed=1)
    late.start = 7
    assert list(late) == whole[7:] and len(late) == 8
    halves = []
    for rank in (0, 1):
        plan = BatchPlan(labels, 4, 5, 3, 0.5, seed=1)
        plan.rank, plan.world = rank, 2
        halves.append(list(plan))
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_a_balanced_plan_shows_rare_classes_more_often() -> None:
    labels = [0] * 90 + [1] * 10
    shares = []
    for balance in (0.0, 0.5, 1.0):
        plan = BatchPlan(labels, 10, 3, 40, balance, seed=0)
        shown = [labels[place.clip] for batch in plan for place in batch]
        shares.append(np.mean(shown))
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[0] < shares[1] < shares[2]


def test_an_epoch_longer_than_the_set_shows_every_clip_before_one_twice() -> None:
    plan = BatchPlan([0, 0, 1], 4, 2, 1, 1.0, seed=0)
    shown = [place.clip for batch in plan for place in batch]
    for start in (0, 3):
        assert sorted(shown[start : start + 3]) == [0, 1, 2]
