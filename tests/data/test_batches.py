"""The order of training clips, their variations, and what replaces an unreadable one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeVideo, picture
from tiny import tiny_config

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.batches import AugmentedClips, BatchPlan, Showing, load_batches
from pevl_cli.data.clips import Clips
from pevl_cli.data.manifest import read_manifest
from pevl_cli.data.samples import collate
from pevl_cli.errors import PevlError


@pytest.fixture
def augmented(make_video: MakeVideo, tmp_path: Path) -> AugmentedClips:
    """Two classes of three clips."""
    for label in ("a", "b"):
        for k in range(3):
            make_video(f"set/{label}/{k}.mp4", frames=[picture(100 + 9 * k + i) for i in range(8)])
    manifest = read_manifest(tmp_path / "set")
    config = tiny_config(image_size=32, pose=False, crop="full")
    clips = Clips(manifest.items, manifest.labels.names, config, None)
    return AugmentedClips(clips, Augmentation(mirror=False, brightness=0.3), seed=0)


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


def test_a_batch_is_its_showings_together_and_each_is_drawn_by_its_place(
    augmented: AugmentedClips,
) -> None:
    plan = BatchPlan(augmented.clips.labels, 3, 2, 1, 0.0, seed=5)
    batches = list(load_batches(augmented, plan, workers=0))
    assert len(batches) == 2
    for number, batch in enumerate(batches):
        expected = collate([augmented[showing] for showing in plan.batch(1, number)])
        assert batch.frames is not None and expected.frames is not None
        assert torch.equal(batch.frames, expected.frames)
    one, other = augmented[Showing(1, 0, 0)].frames, augmented[Showing(1, 1, 0)].frames
    assert one is not None and other is not None and not torch.equal(one, other)


def test_a_clip_that_vanishes_is_replaced_by_another_of_its_class(
    augmented: AugmentedClips,
) -> None:
    clips = augmented.clips
    gone = clips.labels.index(1)
    clips.items[gone].path.unlink()
    assert augmented[Showing(1, 0, gone)].frames is not None
    for item in clips.items:
        if item.label == clips.items[gone].label:
            item.path.unlink(missing_ok=True)
    with pytest.raises(PevlError, match=f"{clips.items[gone].path.name}: no such file"):
        augmented[Showing(1, 0, gone)]
    plan = BatchPlan(clips.labels, 6, 1, 1, 0.0, seed=0)
    with pytest.raises(PevlError, match=r"\.mp4: no such file or directory\.$"):
        list(load_batches(augmented, plan, workers=0))
