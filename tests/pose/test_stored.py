"""The poses of one clip: who is the actor, gaps, and the frames of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MakeVideo
from poses import BODY, people

from pevl_cli.data.samples import pose_sample
from pevl_cli.errors import PevlError
from pevl_cli.media.video import sample_clip
from pevl_cli.model.config import CONFIGS
from pevl_cli.pose.stored import StoredPoses

MINI = CONFIGS["mini"]


def test_a_joint_that_one_end_of_a_gap_lacks_is_not_made_up() -> None:
    tracks = np.repeat(people(100)[:, None], 30, 1)
    tracks[0, 10] = 0
    tracks[0, 11, 5] = 0
    actor = StoredPoses.from_tracks("a", tracks, "coco17", 300, 200, None).actor()
    assert actor.bridged[10] and actor.joints[10, 5].tolist() == [0, 0, 0]
    np.testing.assert_allclose(actor.joints[10, 4], tracks[0, 9, 4], atol=1e-3)


def test_the_person_who_moves_most_in_the_middle_is_the_actor() -> None:
    rng = np.random.default_rng(0)
    frames = [
        np.concatenate([people(0), people(120) + rng.normal(0, 6, (1, 17, 3)) * [1, 1, 0]])
        for _ in range(20)
    ]
    actor = StoredPoses("two", [f.astype(np.float32) for f in frames], "coco17", 320, 200).actor()
    assert actor.people == 2 and actor.seen.all()
    assert actor.joints[:, :, 0].mean() > 150


def test_short_gaps_are_bridged_and_what_is_not_a_number_is_not_seen() -> None:
    tracks = np.repeat(people(0)[:, None], 30, 1)
    tracks[0, 10:12] = 0
    tracks[0, 20, 3] = np.nan
    tracks[0, :, :, 0] += np.arange(30)[:, None]
    tracks[0, 10:12] = 0
    actor = StoredPoses.from_tracks("a", tracks, "coco17", 200, 200, None).actor()
    assert actor.bridged.nonzero()[0].tolist() == [10, 11]
    np.testing.assert_allclose(actor.joints[10, :, 0], BODY[:, 0] + 10, atol=0.5)
    assert actor.joints[20, 3].tolist() == [0, 0, 0]


def test_joints_move_straight_between_the_frames_of_a_recording() -> None:
    tracks = np.repeat(people(0)[:, None], 24, 1)
    tracks[0, :, :, 0] += 2 * np.arange(24)[:, None]
    stored = StoredPoses.from_tracks("a", tracks, "coco17", 200, 200, None)
    sample = pose_sample(Path("poses.pkl"), stored, MINI)
    steps = np.diff(sample.joints[:, :, 0], axis=0) * 175 / MINI.image_size  # back in its pixels
    np.testing.assert_allclose(steps[1:-1], 1, atol=1e-3)  # 24 frames over 48 places
    assert sample.frames is None and sample.seen == 48


def test_nobody_in_a_recording_is_told() -> None:
    empty = StoredPoses.from_tracks("a", np.zeros((1, 5, 17, 3)), "coco17", 9, 9, None)
    with pytest.raises(PevlError, match="no person is visible in 'a'"):
        pose_sample(Path("poses.pkl"), empty, MINI)


def test_recorded_frames_are_those_of_the_video(make_video: MakeVideo) -> None:
    """A part of a video, whose stored has as many frames: each goes with its own."""
    video = make_video("a.mp4", frames=60)
    clip = sample_clip(video, 48, 0.4, 1.6)
    tracks = np.repeat(people(0)[:, None], clip.length, 1)
    tracks[0, :, :, 0] += np.arange(clip.length)[:, None]
    stored = StoredPoses.from_tracks("a", tracks, "coco17", clip.width, clip.height, None)
    actual = stored.actor_in(clip).joints[:, 0, 0] - tracks[0, 0, 0, 0]
    np.testing.assert_allclose(actual, clip.indices - 10, atol=1e-4)
