"""Random changes of samples in training: joints and pictures change together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from painted_clips import COLOURS, MIRROR, STILL, S, config_of, misplaced, painted
from tiny import tiny_model

from pevl_cli.data.augmentation import Augmentation
from pevl_cli.data.samples import Sample, collate, make_sample, view
from pevl_cli.data.variation import augment_sample
from pevl_cli.labels import LabelSet
from pevl_cli.model.config import ModelConfig
from pevl_cli.pose.skeletons import LAYOUTS
from pevl_cli.training.settings import load_settings
from pevl_cli.training.trainer import Trainer


@pytest.mark.parametrize("crop", ["follow", "full"])
@pytest.mark.parametrize(
    "change",
    [{"mirror": True}, {"scale": 0.3}, {"turn_deg": 25.0}, {"shift": 0.1}, {"aspect": 0.2}, {}],
    ids=["mirrored", "scaled", "turned", "shifted", "stretched", "all"],
)
def test_variations_move_joints_and_pictures_together(change: dict[str, float], crop: str) -> None:
    strong = {"mirror": True, "scale": 0.2, "turn_deg": 12.0, "shift": 0.08, "aspect": 0.1}
    augmentation = Augmentation(**{**vars(STILL), **(change or strong)})
    config = config_of(crop)
    sample = make_sample(*painted(at=(160, 100), step=(1.0, 0.5)), config)
    still = view(sample, config)
    changed = turned = 0
    for seed in range(10):
        batch = augment_sample(sample, config, augmentation, np.random.default_rng(seed))
        assert batch.joints is not None and still.joints is not None
        # A mirror image shows the dots in each other's colours.
        mirrored = bool(misplaced(batch))
        assert misplaced(batch, COLOURS[MIRROR] if mirrored else COLOURS) == []
        turned += mirrored
        changed += not torch.allclose(batch.joints, still.joints, atol=1e-3)
    assert changed >= 3, "nothing was varied"
    assert 0 < turned < 6 if augmentation.mirror else turned == 0


def test_a_variation_in_time_is_a_stretched_part_of_the_clip() -> None:
    """Frame f is grey value 5 f, and its joints stand at x = 100 + f px."""
    config = config_of("full")
    clip, actor = painted()
    clip.frames[:] = (np.arange(S) * 5)[:, None, None, None]
    actor.joints[..., 0] = 100 + np.arange(S)[:, None]
    sample = make_sample(clip, actor, config)
    augmentation = Augmentation(**{**vars(STILL), "shortest": 0.5})
    lengths, starts = [], []
    for seed in range(30):
        batch = augment_sample(sample, config, augmentation, np.random.default_rng(seed))
        assert batch.frames is not None and batch.joints is not None
        still = view(sample, config).joints
        assert still is not None
        unit = float(still[0, 1, 0, 0] - still[0, 0, 0, 0])
        times = ((batch.joints[0, :, 0, 0] - still[0, 0, 0, 0]) / unit).round().int().numpy()
        shown = (batch.frames[0].float().mean((1, 2, 3)) / 5).round().int().numpy()
        assert times.min() >= 0 and times.max() <= S - 1
        assert (np.diff(times) >= 0).all() and len(times) == S
        # A picture was kept of every third frame only.
        assert abs(shown - times[1::3]).max() <= 1
        lengths.append(int(times[-1] - times[0]))
        starts.append(int(times[0]))
    assert min(lengths) >= 0.5 * (S - 1) - 1 and max(lengths) <= S - 1
    assert max(lengths) - min(lengths) > 10 and len(set(starts)) > 5
    still_times = augment_sample(sample, config, STILL, np.random.default_rng(0)).joints
    torch.testing.assert_close(still_times, still)


def body_sample(config: ModelConfig) -> Sample:
    return make_sample(*painted(), config)


def test_a_variation_may_lose_a_stream_and_never_both() -> None:
    config = config_of("follow", 96)
    sample = body_sample(config)
    augmentation = Augmentation(**{**vars(STILL), "stream_dropout": 0.4})
    lost = []
    for seed in range(40):
        batch = augment_sample(sample, config, augmentation, np.random.default_rng(seed))
        assert batch.has_video is not None and batch.joints is not None
        assert batch.frames is not None
        video, pose = bool(batch.has_video), bool(batch.joints[..., 2].any())
        assert video == bool(batch.frames.any())
        lost.append((video, pose))
    assert set(lost) == {(True, True), (True, False), (False, True)}
    alone = make_sample(painted()[0], None, config)
    for seed in range(10):
        batch = augment_sample(alone, config, augmentation, np.random.default_rng(seed))
        assert batch.has_video is not None and batch.has_video.all(), "nothing would be left"


def test_colours_change_alike_in_all_frames_and_joints_stay() -> None:
    config = config_of("follow", 96)
    sample = body_sample(config)
    loud = {"brightness": 0.3, "contrast": 0.3, "colour": 0.3, "grey": 0.1, "erase": 0.3}
    still, plain = (
        view(sample, config),
        augment_sample(sample, config, STILL, np.random.default_rng(0)),
    )
    assert still.frames is not None and plain.frames is not None
    assert (still.frames.int() - plain.frames.int()).abs().max() <= 1
    batch = augment_sample(
        sample, config, Augmentation(**{**vars(STILL), **loud}), np.random.default_rng(1)
    )
    assert batch.frames is not None
    assert (batch.frames.int() - still.frames.int()).abs().float().mean() > 2
    torch.testing.assert_close(batch.joints, still.joints)
    assert (batch.frames[:, 0] == batch.frames[:, -1]).all(), "the painted body stood still"


def test_collating_keeps_the_order() -> None:
    config = config_of("follow", 96)
    sample = body_sample(config)
    ones = [
        augment_sample(sample, config, Augmentation(), np.random.default_rng(i)) for i in range(3)
    ]
    together = collate(ones)
    assert together.frames is not None and together.frames.shape[0] == 3
    for i, one in enumerate(ones):
        assert one.frames is not None and one.joints is not None
        assert together.joints is not None and together.has_video is not None
        assert torch.equal(together.frames[i], one.frames[0])
        assert torch.equal(together.joints[i], one.joints[0])
        assert torch.equal(together.has_video[i : i + 1], one.has_video)


@pytest.mark.parametrize(
    ("names", "texts", "mirrors"),
    [
        (("kick", "jump"), ("kick", "jump"), True),
        (("kick_left", "jump"), ("a kick", "a jump"), False),
        (("kick", "jump"), ("kick with the right foot", "jump"), False),
    ],
)
def test_labels_that_name_a_side_are_never_mirrored(
    names: tuple[str, str], texts: tuple[str, str], mirrors: bool
) -> None:
    labels = LabelSet(names, texts)
    given = {"data.dataset": ".", "run.tracker": "none", "run.device": "cpu"}
    trainer = Trainer(tiny_model(), labels, load_settings("mini", given))
    assert trainer.augmentation.mirror is mirrors


def test_time_runs_forward_at_a_changing_speed() -> None:
    still = {**vars(STILL), "warp": 0.6}
    sample = make_sample(*painted(at=(160, 100), step=(1.0, 0.0)), config_of("full"))
    places = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        batch = augment_sample(sample, config_of("full"), Augmentation(**still), rng)
        assert batch.joints is not None
        steps = batch.joints[0, 1:, 0, 0] - batch.joints[0, :-1, 0, 0]
        assert (steps >= -1e-6).all()  # the picture moves to the right throughout
        places.append(steps)
    assert any(float(s.max()) > 2 * float(s.mean()) for s in places)


def test_limbs_and_frames_are_lost_as_a_whole() -> None:
    sample = make_sample(*painted(at=(160, 100), step=(1.0, 0.0)), config_of("full"))
    config = config_of("full")

    def seen(change: dict[str, float]) -> np.ndarray:
        changed = Augmentation(**{**vars(STILL), **change})
        batch = augment_sample(sample, config, changed, np.random.default_rng(3))
        assert batch.joints is not None
        return batch.joints[0, :, :, 2].numpy() > 0

    whole = seen({})
    names = LAYOUTS[config.layout].names
    limb = [names.index("left_elbow"), names.index("left_wrist")]
    without = seen({"limb_dropout": 1.0})
    assert whole[:, limb].any() and not without[:, limb].any()
    assert (without[:, names.index("nose")] == whole[:, names.index("nose")]).all()
    frames = seen({"frame_dropout": 0.5}).any(1)
    assert whole.any(1).sum() > frames.sum() > 0
